"""What a record remembers when settings change, and of contents had long ago."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from stream_app.hashing import key64
from stream_app.interests.record import decode, seen_by_arrival
from stream_app.interests.seen import fingerprints, keys_of
from stream_app.interests.statistics_record import Outcomes
from stream_app.ranking.device import SortedRows
from stream_app.settings import Action
from tests.interests.test_batch import CONTENTS, HOUR_MS, VECTORS, World, configured

DAY = 24


def lives(
    directory: Path, first: dict[str, float], then: dict[str, float], fill: Callable[[World], None]
) -> World:
    """A world that is filled under the settings ``first`` and goes on under ``then``."""
    world = World(configured(**first), directory)
    world.know(*range(CONTENTS))
    fill(world)
    world.flush()
    world.close()
    later = World(configured(**then), directory)
    later.know(*range(CONTENTS))
    later.offset = 1000
    return later


def summed(acts: list[tuple[int, float]], half_life_days: float) -> tuple[np.ndarray, float]:
    """Vector and mass of (content, age in days) at age 0."""
    left = [2.0 ** (-age / half_life_days) for _, age in acts]
    return sum(w * VECTORS[c].astype(np.float64) for (c, _), w in zip(acts, left, strict=True)), sum(left)


def test_a_whole_history_is_as_if_the_new_half_life_had_always_been(tmp_path: Path) -> None:
    def fill(world: World) -> None:
        world.take("likes", [world.event("ana", 1, 35 * DAY * HOUR_MS), world.event("ana", 2, DAY * HOUR_MS)])

    later = lives(tmp_path, {"half_life_days": 7.0}, {"half_life_days": 30.0}, fill)
    later.take("likes", [later.event("ana", 3)])
    vector, mass = summed([(1, 35), (2, 1), (3, 0)], 30.0)
    record = later.record("ana")
    np.testing.assert_allclose(record.vector, vector, rtol=1e-5, atol=1e-6)
    assert record.mass == pytest.approx(mass)
    assert record.header["half_life_h"] == 720
    later.close()


def test_what_has_left_the_record_stands_as_it_was_and_what_has_not_is_undone_exactly(tmp_path: Path) -> None:
    ages = [40, 30, 20, 10, 5]

    def fill(world: World) -> None:
        acts = [world.event("ana", n, age * DAY * HOUR_MS, event_id=f"e{n}") for n, age in enumerate(ages)]
        world.take("likes", acts)

    later = lives(tmp_path, {"half_life_days": 7.0, "recent": 2}, {"half_life_days": 30.0, "recent": 2}, fill)
    later.take("likes", [later.event("ana", 5)])
    left, left_mass = summed([(n, ages[n] - 5) for n in range(3)], 7.0)  # at t_ref of before, 5 days ago
    new, new_mass = summed([(3, 10), (4, 5), (5, 0)], 30.0)
    fade = 2.0 ** (-5 / 30)
    np.testing.assert_allclose(later.record("ana").vector, fade * left + new, rtol=1e-4, atol=1e-5)
    assert later.record("ana").mass == pytest.approx(fade * left_mass + new_mass, rel=1e-6)
    later.take("likes", [later.event("ana", 4, event_id="e4", undo=True)])
    new, new_mass = summed([(3, 10), (5, 0)], 30.0)
    np.testing.assert_allclose(later.record("ana").vector, fade * left + new, rtol=1e-4, atol=1e-5)
    later.close()


def test_a_lower_bound_forgets_the_oldest_and_they_leave_a_fingerprint(tmp_path: Path) -> None:
    def fill(world: World) -> None:
        for content in range(8):
            world.take("likes", [world.event("ana", content)])

    first, then = {"seen": 6, "recent": 2, "seen_long": 100}, {"seen": 3, "recent": 1, "seen_long": 100}
    later = lives(tmp_path, first, then, fill)
    later.take("likes", [later.event("ana", 7)])
    record = later.record("ana")
    keys = [key64(b"c%d" % n) for n in range(8)]
    assert seen_by_arrival(record).tolist() == keys[5:]
    assert sorted(record.long.tolist()) == sorted(fingerprints(np.array(keys[:5], np.uint64)).tolist())
    later.close()


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_contents_come_back_never_within_the_long_memory(size: int, tmp_path: Path) -> None:
    world = World(configured(seen=5, recent=4, seen_long=12), tmp_path)
    many = np.random.default_rng(1).standard_normal((40, VECTORS.shape[1]))
    world.know(*range(40), vectors=(many / np.linalg.norm(many, axis=1, keepdims=True)).astype(np.float16))
    events = [world.event("ana", content) for content in range(30)]
    for at in range(0, 30, size):
        world.take("likes", events[at : at + size])
    record = world.record("ana")
    keys = np.array([key64(b"c%d" % n) for n in range(40)], np.uint64)
    assert set(record.seen.tolist()) == set(keys[25:30].tolist())
    first, last = keys_of(record.long)
    remembered = ((first[:, None] <= keys) & (keys <= last[:, None])).any(axis=0)
    assert set(keys[remembered].tolist()) == set(keys[13:25].tolist())
    world.take("likes", [world.event("ana", 20)])  # had before: not a new content
    again = world.record("ana")
    assert again.header["seen_total"] == 30
    assert decode(world.table[b"ana"]).long.tolist() == record.long.tolist()
    world.close()


def test_fingerprints_find_every_content_that_shares_one() -> None:
    keys = np.array([0, 1 << 40, (1 << 40) + 5, 2 << 40, (1 << 64) - 1], np.uint64)
    asked = fingerprints(np.array([2 << 40, 9 << 40, 1 << 40, (1 << 64) - 9], np.uint64))
    rows = SortedRows()
    rows.replace(np.zeros(0, np.bool_), np.arange(len(keys)), keys)
    places, found = rows.like(asked)
    assert list(zip(places.tolist(), found.tolist(), strict=True)) == [(0, 3), (2, 1), (2, 2), (3, 4)]


def test_who_has_seen_little_pays_nothing(tmp_path: Path) -> None:
    world = World(configured(), tmp_path)
    world.know(*range(CONTENTS))
    world.take("likes", [world.event("ana", n) for n in range(4)])
    assert len(world.table[b"ana"]) == 96 + 4 * VECTORS.shape[1] + 32 * 4 + 8 * 4
    world.close()


def test_forty_views_leave_a_share_to_be_undone_and_recognised(tmp_path: Path) -> None:
    view = Action(name="view", topic="views", weight=0.1)
    plain = configured(recent=8, kept=8)
    events = msgspec.structs.replace(plain.events, actions=(*plain.events.actions, view))
    world = World(msgspec.structs.replace(plain, events=events), tmp_path)
    world.know(*range(CONTENTS))
    share = world.event("ana", 1, event_id="s")
    world.take("comments", [share])
    world.take("views", [world.event("ana", n % CONTENTS) for n in range(40)])
    world.take("comments", [share])
    assert world.committed == Outcomes(applied=41, duplicates=1)
    world.flush()
    world.state.slab.release([world.state.slab.index[b"ana"]])  # and from disk as well
    world.take("comments", [world.event("ana", 1, event_id="s", undo=True), share])
    assert world.committed == Outcomes(applied=42, duplicates=2)
    assert world.record("ana").mass == pytest.approx(4.0)
    world.close()
