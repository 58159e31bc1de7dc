"""The cap on authors: kept while others are left, wherever they stand, and given up when nobody is."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from stream_app.content.index import ContentIndex
from stream_app.interests import record
from stream_app.ranking.engine import RankingEngine
from stream_app.ranking.ranked import Ranked, User
from tests.ranking import learned_world
from tests.ranking import ranking_world as world
from tests.ranking.ranking_world import Engagement

METHODS = ["blend", "learned", "fallback"]


def made(method: str, authors: list[str], **ranking: object) -> tuple[RankingEngine, list[User]]:
    """One content for each of the authors, the first ones best by far; readers of the best."""
    config = learned_world.settings(
        ranking={
            "arms": [{"name": "all", "ranker": "learned" if method == "learned" else "blend", "share": 1.0}],
            "candidates": 30,
            "all_up_to": 20,
            "candidates_popular": 5,
            "candidates_near": 1,
            **ranking,
        }
    )
    index, rng = ContentIndex(config, world.MODEL), np.random.default_rng(5)
    subject = rng.normal(size=world.D) * 2
    for i, author in enumerate(authors):
        at = world.NOW - i * world.HOUR
        away = 0.3 if author == "prolific" else 3.0
        world.put(index, world.content_id(i), subject + away * rng.normal(size=world.D), at, author)
    value = world.interest_record(
        config, index, [Engagement(world.content_id(i), world.NOW) for i in (0, 1)], seen=[]
    )
    users: list[User] = [(b"u-%d" % u, record.decode(value)) for u in range(3)]
    engine = learned_world.engine_over(config, index, learned_world.published(2))
    return engine, [*users, (b"new", None)]


def ranked(method: str, engine: RankingEngine, users: list[User]) -> list[Ranked]:
    engine.refresh()
    return engine.fallback(users, "queue_full") if method == "fallback" else engine.rank_prepared(users)


def by_author(engine: RankingEngine, slate: Ranked, authors: list[str]) -> Counter[str]:
    return Counter(authors[int(item.content_id.removeprefix("content-"))] for item in slate.items)


@pytest.mark.parametrize("method", METHODS)
def test_a_catalogue_of_one_author_fills_slates(method: str) -> None:
    authors = ["solo"] * 30
    engine, users = made(method, authors)
    for slate in ranked(method, engine, users):
        assert len(slate.items) == 10
        assert len({item.content_id for item in slate.items}) == 10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("others", [100, 4])
def test_the_cap_holds_beyond_the_candidates(method: str, others: int) -> None:
    """All candidates are of one author, and what comes after them is not."""
    authors = ["prolific"] * 120 + [f"other-{i}" for i in range(others)]
    engine, users = made(method, authors)
    slates = ranked(method, engine, users)
    for slate in slates:
        found = by_author(engine, slate, authors)
        assert len(slate.items) == 10
        assert found["prolific"] == max(3, 10 - others)
        ids = [item.content_id for item in slate.items]
        assert len(set(ids)) == 10
    alone = [ranked(method, engine, [user])[0] for user in users]
    assert [[i.content_id for i in s.items] for s in alone] == [
        [i.content_id for i in s.items] for s in slates
    ], "whoever else is in the batch"


@pytest.mark.parametrize("method", METHODS)
def test_several_prolific_authors_share(method: str) -> None:
    authors = ["prolific"] * 60 + ["second"] * 60 + ["third"] * 60
    engine, users = made(method, authors)
    for slate in ranked(method, engine, users):
        found = by_author(engine, slate, authors)
        assert len(slate.items) == 10
        assert sorted(found.values()) == [3, 3, 4], "the tenth place is nobody else's"


def test_no_cap_is_no_cap() -> None:
    authors = ["prolific"] * 120 + [f"other-{i}" for i in range(20)]
    engine, users = made("blend", authors, author_cap=0)
    assert by_author(engine, ranked("blend", engine, users)[0], authors)["prolific"] == 10
