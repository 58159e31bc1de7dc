"""Features: finite whatever happens, the same in any order of the contents, and meaning what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stream_app.learning import activity, features
from stream_app.learning.activity import HALF_LIVES_H, NEVER, WEIGHTED, Catalogue, catalogue_features
from stream_app.learning.coengagement import CoEngagement
from stream_app.learning.features import BANDS, NAMES, CandidateFeatures, bands
from stream_app.learning.habits import AgeHabits
from stream_app.learning.history import LONGEST, NOBODY, UserHistory
from stream_app.settings import Settings

NOW = 1_700_000_000_000
HOUR, DAY = 3_600_000, 86_400_000
CONTENTS = 30


def world(seed: int = 0, contents: int = CONTENTS, dimensions: int = 8) -> tuple[Catalogue, CoEngagement]:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(contents, dimensions)).astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    together = CoEngagement(contents, 16)
    for _ in range(40):
        read = random.permutation(contents)[:5]
        for place in range(len(read)):
            before = read[:place][::-1]
            together.learn(int(read[place]), bool(place % 2), before, before % 2 == 0)
    engaged_at = NOW - random.integers(0, 30 * DAY, contents)
    engaged_at[::7] = 0
    engagement = random.exponential(size=(len(HALF_LIVES_H), contents)).astype(np.float32)
    engagement[:, ::7] = 0
    catalogue = Catalogue(
        now=NOW,
        engaged=engagement,
        weighted=2 * engagement[list(WEIGHTED)],
        engaged_at=engaged_at,
        readers=together.users,
        created_at=NOW - random.integers(0, 90 * DAY, contents),
        authors=random.integers(0, 5, contents).astype(np.uint64),
        vectors=vectors,
        mean=vectors.mean(axis=0),
    )
    return catalogue, together


def somebody(rows: list[int], gap_ms: int = HOUR, away_ms: int = 0) -> UserHistory:
    """Newest first."""
    times = NOW - away_ms - gap_ms * np.arange(len(rows))
    return UserHistory(np.array(rows, np.int64), times, np.array(rows) % 2 == 0, len(rows))


def computed(catalogue: Catalogue, together: CoEngagement, history: UserHistory) -> np.ndarray:
    return CandidateFeatures(catalogue_features(catalogue), catalogue, together, AgeHabits()).of(history)


def column(found: np.ndarray, name: str) -> np.ndarray:
    return found[:, NAMES.index(name)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rows", [[], [3], [3, 7, 1, 20, 29, 14, 8, 9, 10, 11, 12]])
def test_features_are_finite_and_small(seed: int, rows: list[int]) -> None:
    found = computed(*world(seed), somebody(rows))
    assert found.shape == (CONTENTS, len(NAMES))
    assert found.dtype == np.float32
    assert np.abs(found).max() < 100


@pytest.mark.parametrize(
    "change",
    [
        {"created_at": np.full(CONTENTS, NOW + 400 * DAY)},
        {"created_at": np.zeros(CONTENTS, np.int64)},
        {"engaged_at": np.full(CONTENTS, NOW + DAY)},
        {"engaged": np.full((len(HALF_LIVES_H), CONTENTS), 1e9, np.float32)},
        {"vectors": np.zeros((CONTENTS, 0), np.float32), "mean": np.zeros(0, np.float32)},
        {"vectors": np.zeros((CONTENTS, 8), np.float32), "mean": np.zeros(8, np.float32)},
    ],
)
def test_odd_worlds_stay_finite(change: dict[str, np.ndarray]) -> None:
    catalogue, together = world()
    found = computed(replace(catalogue, **change), together, somebody([3, 7, 1]))
    assert np.isfinite(found).all()
    assert np.abs(found).max() < 200


def test_the_order_of_the_contents_does_not_matter() -> None:
    catalogue, together = world()
    order = np.random.default_rng(1).permutation(CONTENTS)
    back = np.argsort(order)  # old row → new row
    there = CoEngagement(CONTENTS, 16)
    there.users, there.strong_users = together.users[order], together.strong_users[order]
    there.counts = together.counts[:, order]
    there.neighbours = np.where(together.neighbours >= 0, back[together.neighbours], -1)[order].astype(
        np.int32
    )
    moved = Catalogue(
        now=NOW,
        engaged=catalogue.engaged[:, order],
        weighted=catalogue.weighted[:, order],
        mean=catalogue.mean,
        **{
            name: getattr(catalogue, name)[order]
            for name in ("engaged_at", "readers", "created_at", "authors", "vectors")
        },
    )
    rows = [3, 7, 1, 20, 29]
    expected = computed(catalogue, together, somebody(rows))[order]
    history = replace(somebody(rows), rows=back[rows])
    np.testing.assert_allclose(computed(moved, there, history), expected, rtol=1e-4, atol=1e-5)


def test_of_nobody_nothing_personal_is_known() -> None:
    catalogue, together = world()
    found = computed(catalogue, together, NOBODY)
    assert not found[:, len(activity.NAMES) :].any()
    np.testing.assert_array_equal(found[:, : len(activity.NAMES)], catalogue_features(catalogue))


def test_activity_counts_what_is_newer_and_what_was_engaged_with_later() -> None:
    catalogue, _ = world(contents=4)
    catalogue = replace(
        catalogue,
        created_at=NOW - DAY * np.array([4, 1, 1, 3]),
        engaged_at=np.array([NOW, 0, NOW - 59_000 * 60, NOW - 5]),
        readers=np.array([3, 0, 1, 2], np.float32),
    )
    found = catalogue_features(catalogue)
    get = {name: found[:, i] for i, name in enumerate(activity.NAMES)}
    np.testing.assert_allclose(np.expm1(get["newer"]), [3, 0, 0, 2], atol=1e-5)
    np.testing.assert_allclose(np.expm1(get["engaged_later"]), [0, 3, 2, 1], atol=1e-5)
    np.testing.assert_allclose(get["since_engaged"], [0, NEVER, np.log(60), 0], atol=1e-3)
    assert get["unread"].tolist() == [0, 1, 0, 0]
    assert (get["age_unnoticed"] > 0).tolist() == [False, True, True, False]


def test_what_readers_of_the_last_content_read_stands_out() -> None:
    catalogue, _ = world()
    together = CoEngagement(CONTENTS, 16)
    for _ in range(5):
        together.learn(4, True, np.zeros(0, np.int64), np.zeros(0, np.bool_))
        together.learn(8, True, np.array([4]), np.array([True]))
    found = computed(catalogue, together, somebody([4, 5]))
    for name in features.PERSONAL[:8]:
        assert column(found, name).argmax() == 8, name
        assert (np.delete(column(found, name), 8) == 0).all(), name
    backwards = computed(catalogue, together, somebody([8, 5]))
    assert column(backwards, "together_last")[4] > 0
    assert column(backwards, "after_last")[4] == 0


def test_cosines_are_those_of_centred_vectors() -> None:
    catalogue, together = world()
    rows = [3, 7, 1]
    centred = (catalogue.vectors - catalogue.mean).astype(np.float64)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    found = computed(catalogue, together, somebody(rows))
    np.testing.assert_allclose(column(found, "cosine_last"), centred @ centred[3], atol=1e-4)
    np.testing.assert_allclose(
        column(found, "best_match"), (centred @ centred[rows].T).max(axis=1), atol=1e-4
    )
    assert column(found, "best_match")[[3, 7, 1]] == pytest.approx(1, abs=1e-4)


def test_an_author_is_liked_by_how_much_of_theirs_was_read_lately() -> None:
    catalogue, together = world()
    authors = np.zeros(CONTENTS, np.uint64)
    authors[[1, 2, 10]], authors[[3, 11]], authors[12] = 7, 9, 4
    found = column(computed(replace(catalogue, authors=authors), together, somebody([1, 2, 3, 20])), "author")
    assert found[10] == pytest.approx(np.log1p(10 * (1 + 0.9)), abs=1e-5)
    assert found[11] == pytest.approx(np.log1p(10 * 0.81), abs=1e-5)
    assert found[12] == found[21] == 0  # another one, and an unknown one like that of content 20


def test_who_reads_what_is_new_is_told_from_who_reads_what_is_old() -> None:
    catalogue, together = world()
    created = NOW - np.where(np.arange(CONTENTS) < 15, 5 * 60_000, 60 * DAY)
    catalogue = replace(catalogue, created_at=created)
    for rows, alike in (([1, 2], 3), ([21, 22], 23)):
        other = 23 if alike == 3 else 3
        found = computed(catalogue, together, somebody(rows, gap_ms=60_000))
        assert column(found, "age_habit")[alike] > 0 > column(found, "age_habit")[other]
        assert column(found, "age_distance")[alike] < column(found, "age_distance")[other]
        assert column(found, "age_follows")[alike] > column(found, "age_follows")[other]
        assert column(found, "age_distance_session")[other] > 0
        later = computed(catalogue, together, somebody(rows, gap_ms=60_000, away_ms=HOUR))
        assert not column(later, "age_distance_session").any()


@pytest.mark.parametrize(
    ("contents", "away_ms", "expected"),
    [
        (0, None, (0, 6)),
        (1, 0, (1, 4)),
        (4, 29 * 60_000, (1, 4)),
        (5, 30 * 60_000, (2, 5)),
        (20, DAY, (3, 6)),
    ],
)
def test_users_belong_to_two_groups(contents: int, away_ms: int | None, expected: tuple[int, int]) -> None:
    history = NOBODY if away_ms is None else replace(somebody([1], away_ms=away_ms), contents=contents)
    assert bands(history, NOW) == expected
    assert max(expected) < BANDS


def test_a_history_has_each_content_once_newest_first() -> None:
    rows = np.array([4, -1, 5, 4, 6, 5, 7])
    weights = np.array([2, 1, 0.3, 0.3, 0.3, 0, -1], np.float32)
    seen = np.array([9, 8, -1, 4, 7, 5, 6])
    history = UserHistory.of_record(rows, np.arange(7) * 10, weights, seen, 9)
    assert history.rows.tolist() == [5, 6, 4, 8, 9]
    assert history.times.tolist() == [50, 40, 30, 0, 0]
    assert history.strong.tolist() == [False, False, True, False, False]
    assert (history.contents, history.last) == (9, 50)
    nothing = np.zeros(0, np.int64)
    assert UserHistory.of_record(nothing, nothing, np.zeros(0, np.float32), nothing, 0).last is None


def test_a_history_has_a_longest() -> None:
    rows = np.arange(3 * LONGEST)
    history = UserHistory.of_record(rows[-5:], rows[-5:], np.ones(5, np.float32), rows, len(rows))
    assert history.rows.tolist() == rows[::-1][:LONGEST].tolist()
    assert len(history.times) == len(history.strong) == LONGEST


def test_a_session_ends_after_half_an_hour() -> None:
    times = NOW - np.array([0, 60_000, 31 * 60_000, 31 * 60_000 + DAY])
    history = UserHistory(np.arange(4), times, np.zeros(4, np.bool_), 4)
    expected = [1, 0.7, 0.49 * 0.3, 0.343 * 0.09]
    np.testing.assert_allclose(history.session_weights(), expected, rtol=1e-5)
    assert history.in_session(NOW + 29 * 60_000)
    assert not history.in_session(NOW + 30 * 60_000)
    assert not NOBODY.in_session(NOW)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("read", [[], [3], [3, 7, 1, 20, 29, 14, 8, 9, 10, 11, 12]])
def test_features_of_a_few_contents_are_those_that_they_have_among_all(seed: int, read: list[int]) -> None:
    catalogue, together = world(seed)
    shared, history = catalogue_features(catalogue), somebody(read)
    among_all = CandidateFeatures(shared, catalogue, together, AgeHabits()).of(history)
    for rows in (np.array([29, 0, 3, 17, 8]), np.array([5]), np.zeros(0, np.int64), np.arange(CONTENTS)):
        few = CandidateFeatures(shared, catalogue, together, AgeHabits(), rows).of(history)
        np.testing.assert_allclose(few, among_all[rows], rtol=1e-5, atol=1e-6)


def test_the_statistics_have_by_default_the_half_lives_that_the_ranker_reads() -> None:
    assert Settings().interests.stats_half_lives_h == HALF_LIVES_H


def test_contents_without_a_vector_are_near_nothing() -> None:
    """Neither as candidates nor as what the user engaged with: the mean is not taken from nothing."""
    catalogue, together = world()
    vectors = catalogue.vectors.copy()
    vectors[[3, 4]] = 0
    catalogue = replace(catalogue, vectors=vectors, mean=vectors[vectors.any(axis=1)].mean(axis=0))
    near = slice(NAMES.index("cosine_last"), NAMES.index("best_match") + 1)
    found = computed(catalogue, together, somebody([7, 3, 9]))[:, near]
    assert (found[[3, 4]] == 0).all()
    without = replace(catalogue, vectors=np.delete(vectors, 3, axis=0))
    assert without.vectors.shape == (CONTENTS - 1, 8)
    other = computed(catalogue, together, somebody([7, 4, 9]))[:, near]
    assert found == pytest.approx(other)
    assert (computed(catalogue, together, somebody([3, 4]))[:, near] == 0).all()
    assert computed(catalogue, together, somebody([3, 7]))[7, near.stop - 1] == pytest.approx(1, abs=1e-3)
