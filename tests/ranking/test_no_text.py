"""Contents without text rank by what is done with them: no number of theirs is made up, none is missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stream_app.content.index import ContentIndex
from stream_app.interests import record
from stream_app.learning import neighbours_record
from stream_app.learning.coengagement import CHANNELS
from stream_app.learning.neighbours_record import Neighbours
from stream_app.ranking.device import DeviceIndex
from stream_app.ranking.diversify import diversify
from stream_app.ranking.engine import RankingEngine
from stream_app.ranking.popularity import ContentStatistics
from stream_app.ranking.ranked import Ranked, User
from stream_app.ranking.sides import NONE, sides
from stream_app.settings import Settings
from tests.ranking import learned_world
from tests.ranking import ranking_world as world
from tests.ranking.ranking_world import Engagement

RANKERS = ["blend", "learned"]


def settings(ranker: str, **ranking: object) -> Settings:
    arms = [{"name": "all", "ranker": ranker, "share": 1.0}]
    return learned_world.settings(ranking={"arms": arms, "calibration": 0.5, **ranking})


def silent_index(config: Settings, count: int, every: int = 1) -> ContentIndex:
    """Contents of which one in ``every`` has no text; the last ones are the newest."""
    rng = np.random.default_rng(6)
    index = ContentIndex(config, world.MODEL)
    for i in range(count):
        at, author = world.NOW - (count - i) * world.HOUR, f"author-{i % 50}"
        if i % every:
            world.put(index, world.content_id(i), rng.normal(size=world.D) + 0.4, at, author)
        else:
            world.put_silent(index, world.content_id(i), at, author)
    return index


def reader(config: Settings, index: ContentIndex, *contents: int) -> User:
    seen = [world.content_id(i) for i in contents]
    engagements = [Engagement(id_, world.NOW - n * world.HOUR) for n, id_ in enumerate(seen)]
    return b"reader", record.decode(world.interest_record(config, index, engagements, seen=seen))


def sound(slate: Ranked) -> bool:
    numbers = [n for item in slate.items for n in (item.score, *astuple_of(item.parts))]
    return bool(np.isfinite(numbers).all()) and len({i.content_id for i in slate.items}) == len(slate.items)


def astuple_of(parts: object) -> tuple[float, ...]:
    return tuple(getattr(parts, name) for name in type(parts).__struct_fields__)  # type: ignore[attr-defined]


def numbers_of(slate: Ranked) -> list[int]:
    return [int(item.content_id.removeprefix("content-")) for item in slate.items]


@pytest.mark.parametrize("ranker", RANKERS)
@pytest.mark.parametrize(("all_up_to", "every"), [(2000, 1), (50, 1), (2000, 2), (50, 2)])
def test_slates_of_a_catalogue_without_text_are_full_and_finite(
    ranker: str, all_up_to: int, every: int
) -> None:
    config = settings(ranker, all_up_to=all_up_to, candidates=60)
    index = silent_index(config, 300, every)
    engine = learned_world.engine_over(config, index, learned_world.published(2))
    users: list[User] = [reader(config, index, 0, 2, 4), *world.some_users(config, index, 30), (b"new", None)]
    engine.refresh()
    together = engine.rank_prepared(users)
    for slate, user in zip(together, users, strict=True):
        assert len(slate.items) == 10
        assert sound(slate)
        (alone,) = engine.rank_prepared([user])
        assert numbers_of(alone) == numbers_of(slate)
        for item in slate.items:
            if int(item.content_id.removeprefix("content-")) % every == 0:
                assert item.reasons == []
                assert (item.parts.interest, item.parts.match) == pytest.approx(
                    (0, 0) if ranker == "blend" else (item.parts.interest, item.parts.match)
                )


@pytest.mark.parametrize("ranker", RANKERS)
def test_what_is_popular_and_what_is_new_stands_on_top(ranker: str) -> None:
    config = settings(ranker, author_cap=0)
    index = silent_index(config, 300)
    statistics = ContentStatistics(config, index)
    statistics.stream_time = world.NOW
    for i in (3, 77):
        counts = {"like": [40.0] * len(config.interests.stats_half_lives_h)}
        statistics.apply([(world.content_id(i), world.statistics_value(config, 0, world.NOW, counts))])
    engine = RankingEngine(config, index, statistics)
    one = learned_world.published(2, strength=0.0)
    one.model.parameters["output"][:] = 0
    for name, weight in (("engaged_1d", 1.0), ("age", -0.1)):
        one.model.parameters["linear"][one.model.names.index(name)] = weight
    engine.adopt(one)
    (slate,) = engine.rank([reader(config, index, 5, 6)])
    assert set(numbers_of(slate)[:2]) == {3, 77}
    assert numbers_of(slate)[2:] == [299 - n for n in range(8)]


def test_what_has_the_same_readers_stands_on_top() -> None:
    config = settings("learned", author_cap=0, all_up_to=50, candidates=60)
    index = silent_index(config, 300)
    statistics = ContentStatistics(config, index)
    statistics.stream_time = world.NOW
    engine = RankingEngine(config, index, statistics)
    assert engine.neighbours is not None
    keys = index.keys[[11, 12, 13]]
    counts = np.full((len(CHANNELS), 3), 9.0, np.float32)
    engine.neighbours.apply(
        [(world.content_id(5), neighbours_record.encode(Neighbours(9.0, 9.0, keys, counts)))]
    )
    one = learned_world.published(2, strength=0.0)
    one.model.parameters["output"][:] = 0
    one.model.parameters["linear"][one.model.names.index("together_last")] = 1.0
    engine.adopt(one)
    (slate,) = engine.rank([reader(config, index, 5)])
    assert set(numbers_of(slate)[:3]) == {11, 12, 13}
    assert all(item.parts.together > 0 for item in slate.items[:3])


def test_the_mean_is_of_vectors_and_is_no_vector() -> None:
    """Whatever comes and goes; else all contents without text would lie opposite of the catalogue."""
    config = settings("blend")
    index = ContentIndex(config, world.MODEL)
    mirror, rng = DeviceIndex(index, torch.device("cpu")), np.random.default_rng(7)
    for _ in range(40):
        for _ in range(int(rng.integers(1, 9))):
            id_ = world.content_id(int(rng.integers(30)))
            kind = rng.random()
            if kind < 0.3:
                index.delete(id_)
            elif kind < 0.6:
                world.put_silent(index, id_, world.NOW)
            else:
                world.put(index, id_, rng.normal(size=world.D) + 1, world.NOW)
        mirror.refresh()
        mirror.copy()
        said = index.vectors[: index.high][index.vectors[: index.high].any(axis=1)]
        expected = said.mean(axis=0) if len(said) else np.zeros(world.D)
        assert mirror.mean.numpy() == pytest.approx(expected, abs=1e-6)
        assert (mirror.encoded[: index.high].numpy() == index.vectors[: index.high].any(axis=1)).all()


def test_they_are_on_no_side_and_repeat_nothing() -> None:
    subjects = torch.eye(8)[:2]
    nothing = torch.zeros(8)
    candidates = torch.stack([subjects[0], nothing, subjects[1], nothing])[None]
    recent = torch.stack([subjects[1], nothing, subjects[0]])[None]
    found = sides(candidates, recent, torch.tensor([[1.0, 5.0, 3.0]]), torch.full((8,), 0.2))
    assert found.of.tolist() == [[0, NONE, 1, NONE]]
    assert found.shares[0].tolist() == pytest.approx([0.75, 0.25] + [0.0] * (len(found.shares[0]) - 2))
    scores = torch.tensor([[1.0, 0.9, 0.8, 0.7]])
    authors, valid = torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool)
    for diversity in (0.0, 0.5, 1.0):
        chosen = diversify(scores, valid, candidates, authors, 4, diversity, 0, found, 0.5)
        assert sorted(chosen[0].tolist()) == [0, 1, 2, 3]


def test_one_without_text_is_like_no_other() -> None:
    """Two of them are not the same text: both may stand in a slate, and who liked one is shown the next."""
    config = settings("blend", author_cap=0)
    index = silent_index(config, 5)
    statistics = ContentStatistics(config, index)
    statistics.stream_time = world.NOW
    (slate,) = RankingEngine(config, index, statistics).rank([reader(config, index, 2)])
    assert sorted(numbers_of(slate)) == [0, 1, 3, 4]
    assert slate.kind == "cold_start"
