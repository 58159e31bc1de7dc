"""Co-engagement counts: exact while there is room, bounded always, and what lasts outlives what is chance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.learning.coengagement import (
    AFTER,
    AFTER_DECAY,
    AFTER_REACH,
    CHANNELS,
    NEAR,
    NEAR_DECAY,
    NEAR_REACH,
    STRONGLY,
    TOGETHER,
    Among,
    CoEngagement,
)

CONTENTS = 12
ROWS = st.lists(
    st.lists(
        st.tuples(st.integers(0, CONTENTS - 1), st.booleans()), min_size=1, unique_by=lambda pair: pair[0]
    ),
    max_size=8,
)


def read(together: CoEngagement, contents: list[tuple[int, bool]]) -> None:
    """One user engages with the contents, one after the other."""
    for place, (row, strong) in enumerate(contents):
        before = contents[:place][::-1]
        rows, strongs = [row for row, _ in before], [strong for _, strong in before]
        together.learn(row, strong, np.array(rows, np.int64), np.array(strongs, np.bool_))


def counts(together: CoEngagement, channel: int, contents: int = CONTENTS) -> np.ndarray:
    """[N, N], counts of every pair."""
    each = np.array([[1.0]], np.float32)
    return np.concatenate(
        [
            together.gather(np.array([row]), {channel: each}, Among(contents, high=contents))
            for row in range(contents)
        ]
    )


@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from([CONTENTS - 1, CONTENTS]))
def test_counts_are_exact_while_there_is_room(users: list[list[tuple[int, bool]]], neighbours: int) -> None:
    together = CoEngagement(CONTENTS, neighbours)
    expected = np.zeros((len(CHANNELS), CONTENTS, CONTENTS))
    for contents in users:
        read(together, contents)
        for later, (row, strong) in enumerate(contents):
            for earlier, (other, other_strong) in enumerate(contents[:later]):
                between = later - earlier - 1
                for one, two in ((row, other), (other, row)):
                    expected[TOGETHER, one, two] += 1
                    expected[NEAR, one, two] += NEAR_DECAY**between
                    expected[STRONGLY, one, two] += strong and other_strong
                expected[AFTER, other, row] += AFTER_DECAY**between if between < AFTER_REACH else 0
    for channel in range(len(CHANNELS)):
        np.testing.assert_allclose(counts(together, channel), expected[channel], rtol=1e-5, atol=1e-6)
    read_by = [sum(row == content for user in users for content, _ in user) for row in range(CONTENTS)]
    assert together.users.tolist() == read_by


def test_what_is_too_far_away_is_not_near() -> None:
    together = CoEngagement(40, 39)
    read(together, [(row, False) for row in range(40)])
    near = counts(together, NEAR, 40)
    assert np.flatnonzero(near[0]).tolist() == list(range(1, NEAR_REACH + 1))
    assert np.flatnonzero(near[39]).tolist() == list(range(39 - NEAR_REACH, 39))


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(1, 4))
def test_memory_is_bounded_and_rows_stay_sound(users: list[list[tuple[int, bool]]], neighbours: int) -> None:
    together = CoEngagement(CONTENTS, neighbours)
    arrays = ("neighbours", "counts", "users", "strong_users")
    shapes = [getattr(together, name).shape for name in arrays]
    for contents in users:
        read(together, contents)
    assert [getattr(together, name).shape for name in arrays] == shapes
    assert (together.counts >= 0).all()
    for row in range(CONTENTS):
        near = together.neighbours[row][together.neighbours[row] >= 0].tolist()
        assert len(near) == len(set(near))
        assert row not in near


def test_lasting_neighbours_outlive_chance_ones() -> None:
    together, random = CoEngagement(1000, 8), np.random.default_rng(0)
    for _ in range(300):
        read(together, [(0, False), (1 + int(random.integers(4)), False)])
        read(together, [(0, False), (5 + int(random.integers(995)), False)])
    assert {1, 2, 3, 4} <= set(together.neighbours[0].tolist())


def test_what_came_long_after_takes_nobodys_place() -> None:
    together = CoEngagement(60, NEAR_REACH)
    read(together, [(row, False) for row in range(60)])
    assert sorted(together.row(0)[0].tolist()) == list(range(1, NEAR_REACH + 1))


@pytest.mark.parametrize("later", [False, True])
def test_what_becomes_strong_later_counts_like_what_was_at_once(later: bool) -> None:
    together = CoEngagement(CONTENTS, CONTENTS)
    read(together, [(3, True), (4, False), (5, not later)])
    if later:
        together.strengthen(5, np.array([4, 3]), np.array([False, True]))
    assert counts(together, STRONGLY)[3, 5] == counts(together, STRONGLY)[5, 3] == 1
    assert counts(together, STRONGLY)[4].sum() == 0
    assert together.strong_users[5] == 1


@pytest.mark.parametrize("neighbours", [CONTENTS - 1, CONTENTS])
def test_a_forgotten_content_is_nobodys_neighbour(neighbours: int) -> None:
    together = CoEngagement(CONTENTS, neighbours)
    read(together, [(1, True), (2, True), (3, True)])
    together.forget(2)
    assert together.users[2] == 0
    for channel in range(len(CHANNELS)):
        assert not counts(together, channel)[2].any()
        assert not counts(together, channel)[:, 2].any()
    assert counts(together, TOGETHER)[1, 3] == 1


@pytest.mark.parametrize("neighbours", [CONTENTS - 1, CONTENTS])
def test_sums_are_weighted_and_stop_at_the_highest_row(neighbours: int) -> None:
    together = CoEngagement(CONTENTS, neighbours)
    read(together, [(1, False), (2, False), (9, False)])
    coefficients = np.array([[1.0, 0.0], [0.5, 0.25]], np.float32)
    sums = together.gather(np.array([1, 2]), {TOGETHER: coefficients}, Among(CONTENTS, high=9))
    assert sums.shape == (2, 9)
    assert sums[0].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert sums[1].tolist() == [0, 0.25, 0.5, 0, 0, 0, 0, 0, 0]
    among = Among(CONTENTS, np.array([7, 2]))
    with among.and_also(np.array([1])):
        some = together.gather(np.array([1, 2]), {TOGETHER: coefficients}, among)
    assert some.tolist() == [[0, 1, 0], [0, 0.5, 0.25]]
    again = together.gather(np.array([1, 2]), {TOGETHER: coefficients, STRONGLY: coefficients[:1]}, among)
    assert again.tolist() == [[0, 1], [0, 0.5], [0, 0]]


def learned(contents: int = CONTENTS, neighbours: int = 6) -> CoEngagement:
    together, random = CoEngagement(contents, neighbours), np.random.default_rng(4)
    for _ in range(50):
        read(together, [(int(row), bool(row % 2)) for row in random.permutation(contents)[:4]])
    return together


@pytest.mark.parametrize("places", [CONTENTS - 1, CONTENTS])
def test_rows_that_are_put_elsewhere_say_the_same(places: int) -> None:
    together, other = learned(), CoEngagement(CONTENTS, places)
    changed = together.take_changed(CONTENTS)
    assert sorted(changed.tolist()) == list(range(CONTENTS))
    for row in changed.tolist():
        rows, there = together.row(row)
        other.put(row, float(together.users[row]), float(together.strong_users[row]), rows, there)
    for channel in range(len(CHANNELS)):
        np.testing.assert_array_equal(counts(other, channel), counts(together, channel))
    np.testing.assert_array_equal(other.users, together.users)
    np.testing.assert_array_equal(other.strong_users, together.strong_users)
    assert not len(other.take_changed(CONTENTS))


def test_of_too_many_neighbours_the_nearest_are_put() -> None:
    together, few = learned(), CoEngagement(CONTENTS, 3)
    rows, there = together.row(5)
    few.put(5, 1.0, 0.0, rows, there)
    kept, _ = few.row(5)
    assert len(kept) == 3
    least = there[NEAR, np.isin(rows, kept)].min()
    assert least >= there[NEAR, ~np.isin(rows, kept)].max()


def test_changed_rows_are_taken_once_and_those_that_changed_most_first() -> None:
    together = learned()
    together.take_changed(CONTENTS)
    assert not len(together.take_changed(CONTENTS))
    nobody = np.zeros(0, np.int64)
    for row, times in ((2, 1), (7, 30), (4, 8)):
        for _ in range(times):
            together.learn(row, False, nobody, nobody.astype(np.bool_))
    together.users[:] = 10
    assert together.take_changed(1).tolist() == [7]
    assert together.take_changed(1).tolist() == [4]
    assert together.take_changed(5).tolist() == [2]


def test_contents_that_are_forgotten_leave_no_trace() -> None:
    together, one_by_one = learned(), learned()
    together.forget(np.array([1, 5, 11]))
    for row in (1, 5, 11):
        one_by_one.forget(row)
    np.testing.assert_array_equal(together.neighbours, one_by_one.neighbours)
    np.testing.assert_array_equal(together.counts, one_by_one.counts)
    assert not np.isin(together.neighbours, (1, 5, 11)).any()
    assert not counts(together, TOGETHER)[[1, 5, 11]].any()
    assert not {1, 5, 11} & set(together.take_changed(CONTENTS).tolist())
