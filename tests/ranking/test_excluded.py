"""What a slate must not say, whichever way it is made: own posts, what was engaged with, the same again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from stream_app.content.index import ContentIndex
from stream_app.hashing import key64
from stream_app.interests import record
from stream_app.ranking.engine import RankingEngine
from stream_app.ranking.ranked import Ranked, User
from stream_app.settings import Settings
from tests.ranking import learned_world
from tests.ranking import ranking_world as world
from tests.ranking.ranking_world import Engagement

Way = Callable[[RankingEngine, list[User]], list[Ranked]]
METHODS = ["blend", "learned", "learned, many contents", "fallback", "cold start"]
COPIES = 4


def made(method: str, **ranking: object) -> tuple[Settings, ContentIndex, RankingEngine, Way]:
    """200 texts; those of content-0 to content-9 stand under four more ids each, one step of half precision
    apart, half of them newer. ana wrote content-20 to content-29, and content-20 was copied."""
    size = {"all_up_to": 20, "candidates": 40} if "many" in method else {}
    config = learned_world.settings(
        ranking={
            "arms": [{"name": "all", "ranker": "learned" if "learned" in method else "blend", "share": 1.0}],
            "explore": 0.2,
            **size,
            **ranking,
        }
    )
    index, rng = ContentIndex(config, world.MODEL), np.random.default_rng(4)
    subjects = rng.normal(size=(6, world.D))
    for i in range(200):
        vector = subjects[i % 6] + 0.7 * rng.normal(size=world.D)
        vector /= np.linalg.norm(vector)
        author = "ana" if 20 <= i < 30 else f"author-{i % 40}"
        world.put(index, world.content_id(i), vector, world.NOW - int(rng.integers(9 * world.DAY)), author)
        for copy in range(COPIES if i < 10 or i == 20 else 0):
            again = vector + rng.uniform(-1e-5, 1e-5, world.D)
            at = world.NOW - int(rng.integers(9 * world.DAY))
            world.put(index, b"copy-%d-of-%d" % (copy, i), again, at, f"copycat-{copy}")
    engine = learned_world.engine_over(config, index, learned_world.published(2))

    def way(engine: RankingEngine, users: list[User]) -> list[Ranked]:
        if method == "fallback":
            engine.refresh()
            return engine.fallback(users, "queue_full")
        if method == "cold start":
            users = [(user, None) for user, _ in users]
        return engine.rank(users)

    return config, index, engine, way


def users_of(config: Settings, index: ContentIndex, count: int = 12) -> list[User]:
    """Each has engaged with three of the texts that have copies, the last one under a copy's id."""
    users: list[User] = []
    for u in range(count):
        names = [world.content_id(u % 10), world.content_id((u + 3) % 10), b"copy-1-of-%d" % ((u + 5) % 10)]
        engagements = [Engagement(name, world.NOW - i * world.HOUR) for i, name in enumerate(names)]
        value = world.interest_record(config, index, engagements, seen=names[:2])  # the last: a recent one
        users.append((b"user-%d" % u, record.decode(value)))
    return users


def texts(slate: Ranked) -> list[str]:
    """Numbers of the texts in a slate."""
    return [item.content_id.rsplit("-", 1)[1] for item in slate.items]


@pytest.mark.parametrize("method", METHODS)
def test_a_text_stands_in_a_slate_once(method: str) -> None:
    config, index, engine, way = made(method)
    slates = way(engine, [*users_of(config, index), (b"nobody", None)])
    for slate in slates:
        assert len(slate.items) == config.ranking.slate_size
        assert len(set(texts(slate))) == len(slate.items)


@pytest.mark.parametrize("method", METHODS[:-1])
def test_what_was_engaged_with_does_not_come_back_under_another_id(method: str) -> None:
    config, index, engine, way = made(method, slate_size=40, author_cap=0)
    users = users_of(config, index)
    for u, slate in enumerate(way(engine, users)):
        known = {str(u % 10), str((u + 3) % 10), str((u + 5) % 10)}
        assert not known & set(texts(slate))
        assert len(slate.items) == 40
    engine.refresh()
    alone = [way(engine, [user])[0] for user in users]
    assert [texts(s) for s in alone] == [texts(s) for s in way(engine, users)]


@pytest.mark.parametrize("method", METHODS)
def test_nobody_is_recommended_what_they_wrote(method: str) -> None:
    everything = {"slate_size": 200, "author_cap": 0, "candidates": 300, "explore": 0.0}
    for own, expected in ((False, set()), (True, {str(i) for i in range(20, 30)})):
        config, index, engine, way = made(method, **everything, own=own)
        (_, of_ana), *others = users_of(config, index)
        ana, mara = way(engine, [(b"ana", of_ana), (b"mara", others[0][1])])
        written = {str(i) for i in range(20, 30)}
        assert written & set(texts(ana)) == expected, "neither under its own id nor under a copy's"
        assert written <= set(texts(mara))


def test_the_one_engaged_with_most_stands_for_its_text() -> None:
    config = world.settings(ranking={"slate_size": 5})
    index = ContentIndex(config, world.MODEL)
    for i in range(4):
        world.put(index, b"a-%d" % i, np.eye(world.D)[0], world.NOW - i * world.DAY)
    from stream_app.ranking.popularity import ContentStatistics

    statistics = ContentStatistics(config, index)
    statistics.stream_time = world.NOW
    engine = RankingEngine(config, index, statistics)
    assert [i.content_id for i in engine.rank([(b"new", None)])[0].items] == ["a-3"]
    statistics.apply([(b"a-1", world.statistics_value(config, 0, world.NOW, {"like": [3.0] * 5}))])
    index.delete(b"a-3")
    assert [i.content_id for i in engine.rank([(b"new", None)])[0].items] == ["a-1"]
    index.delete(b"a-1")
    assert [i.content_id for i in engine.rank([(b"new", None)])[0].items] == ["a-2"]


@pytest.mark.parametrize("method", METHODS[:-1])
def test_who_has_seen_everything_is_shown_nothing(method: str) -> None:
    config, index, engine, way = made(method)
    seen = list(index.rows)
    value = world.interest_record(config, index, [Engagement(seen[0], world.NOW)], seen=seen)
    (slate,) = way(engine, [(b"all", record.decode(value))])
    assert slate.items == []
    assert key64("ana") in index.authors
