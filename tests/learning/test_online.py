"""Online learning: features are those from before the engagement, and lists are bounded and fair."""

from __future__ import annotations

import numpy as np
import pytest

from stream_app.learning.coengagement import CoEngagement
from stream_app.learning.features import NAMES
from stream_app.learning.history import UserHistory
from stream_app.learning.online import (
    BATCH,
    SAMPLE,
    Choice,
    Contents,
    Engagement,
    OnlineLearning,
    same_batch,
)

NOW = 1_700_000_000_000
MINUTE = 60_000
N, D = 400, 8


def world(
    candidates: int | None = None, contents: int = N, future: int = 0
) -> tuple[Contents, OnlineLearning]:
    """Contents of which ``future`` are created days from now, and a ranker that knows nothing of them."""
    random = np.random.default_rng(1)
    vectors = random.normal(size=(contents, D)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    created_at = NOW - random.integers(0, 10_000, contents) * MINUTE
    created_at[contents - future :] = NOW + 9_000 * MINUTE
    columns = Contents(
        created_at, np.zeros(contents, np.uint64), vectors, np.ones(contents, np.bool_), MINUTE
    )
    return columns, OnlineLearning(columns, CoEngagement(contents, 16), candidates=candidates)


def engagement(row: int, minute: int, before: list[int], weight: float = 1.0) -> Engagement:
    """Of somebody who engaged with ``before``, newest first."""
    rows = np.array(before, np.int64)
    times = NOW + (minute - 1 - np.arange(len(rows))) * MINUTE
    history = UserHistory(rows, times, np.ones(len(rows), np.bool_), len(rows))
    return Engagement(row, NOW + minute * MINUTE, weight, row not in before, history, rows)


def engage(online: OnlineLearning, given: Engagement, contents: int = N) -> Choice | None:
    choices = online.learn([given], given.time, contents).choices
    return choices[0] if choices else None


def read_by_many(online: OnlineLearning, users: int = 200, contents: int = N) -> list[Choice]:
    """Users who each read five contents, the low numbers more often."""
    random = np.random.default_rng(2)
    choices = []
    for user in range(users):
        read: list[int] = []
        for row in np.unique((contents * random.random(5) ** 3).astype(int)).tolist():
            if (choice := engage(online, engagement(row, user, read[::-1]), contents)) is not None:
                choices.append(choice)
            read.append(row)
    return choices


def test_features_are_those_from_before_the_engagement() -> None:
    _, online = world()
    assert engage(online, engagement(7, 0, [])) is None  # nobody could choose what nobody had published
    choice = engage(online, engagement(7, 10, [3]))
    assert choice is not None
    own = dict(zip(NAMES, choice.among.features[choice.place].tolist(), strict=True))
    assert own["readers"] == pytest.approx(np.log1p(1))
    assert own["since_engaged"] == pytest.approx(np.log1p(10))
    assert own["engaged_20m"] == pytest.approx(np.log1p(10 * 0.5**0.5), rel=1e-5)
    assert own["together_last"] == 0
    after = online.consider(NOW + 10 * MINUTE, engagement(9, 11, [3]).history, N)
    then = dict(zip(NAMES, after.features[7].tolist(), strict=True))
    assert then["readers"] == pytest.approx(np.log1p(2))
    assert then["since_engaged"] == 0
    assert then["together_last"] > 0


def test_what_the_user_knows_and_what_is_not_there_is_no_alternative() -> None:
    contents, online = world(future=20)
    assert contents.live is not None
    contents.live[30] = False
    engage(online, engagement(7, 0, []))
    choice = engage(online, engagement(7, 10, [3, 12]))
    assert choice is not None
    left_out = set(np.flatnonzero(~choice.allowed).tolist())
    assert left_out == {3, 12, 30, *range(N - 20, N)}


def test_lists_are_bounded_each_content_stands_once_and_the_drawn_stand_for_all() -> None:
    contents, online = world(candidates=100, future=20)
    assert contents.live is not None
    choices = read_by_many(online)
    assert len(choices) > 500
    for choice in choices[-200:]:
        rows = choice.among.rows
        assert len(rows) <= 100
        assert len(np.unique(rows)) == len(rows)
        assert choice.allowed[choice.place]
        assert np.delete(rows, choice.place).max() < N - 20
        assert np.exp(choice.among.offsets).sum() == pytest.approx(N - 20, rel=0.02)
    popular = set(np.argsort(-online.together.users)[:5].tolist())
    assert all(popular <= set(choice.among.rows.tolist()) for choice in choices[-50:])


def test_a_sample_teaches_what_the_whole_teaches() -> None:
    losses = []
    for candidates in (None, 100):
        _, online = world(candidates)
        read_by_many(online, 100)
        losses.append(online.trainer.loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert losses[0] is not None
    assert losses[0] < np.log(N) - 0.5


def test_a_row_that_is_given_to_another_content_begins_with_nothing() -> None:
    contents, online = world()
    read_by_many(online, 100)
    row = int(np.argmax(online.together.users))
    assert online.counts.engaged_at[row]
    mean = online.consider(NOW, engagement(1, 0, []).history, N)
    contents.vectors[row] = 0
    contents.vectors[row, 0] = 1
    online.together.forget(row)
    online.contents_changed(np.array([row]), np.array([row]))
    now = online.consider(NOW, engagement(1, 0, []).history, N)
    own = dict(zip(NAMES, now.features[row].tolist(), strict=True))
    assert own["readers"] == own["engaged_60d"] == own["weighted_14d"] == 0
    assert own["unread"] == 1
    assert mean.features[row][NAMES.index("readers")] > 0


def test_a_batch_sees_nothing_of_itself_and_is_one_step_on_one_sample() -> None:
    _, online = world(candidates=100)
    read_by_many(online, 50)
    readers, steps = online.together.users.copy(), online.trainer.model.steps
    batch = [engagement(7, 60, [300 + user]) for user in range(SAMPLE)]
    choices = online.learn(batch, batch[0].time, N).choices
    assert len(choices) == SAMPLE
    assert online.trainer.model.steps == steps + SAMPLE
    for choice in choices:
        own = dict(zip(NAMES, choice.among.features[choice.place].tolist(), strict=True))
        assert own["readers"] == pytest.approx(np.log1p(readers[7]))
        assert choice.among.rows[choice.place] == 7
    assert online.together.users[7] == readers[7] + SAMPLE
    common = set.intersection(*(set(choice.among.rows.tolist()) for choice in choices))
    assert len(common) > 70


def test_of_many_a_sample_is_learned_from_and_all_are_counted() -> None:
    _, online = world()
    read_by_many(online, 50)
    readers, steps = online.together.users.sum(), online.trainer.model.steps
    batch = [engagement(row, 60, [300 + row]) for row in range(3 * SAMPLE)]
    possible = {one.row for one in batch if online.counts.engaged_at[one.row]}
    assert len(possible) > SAMPLE
    chosen = [int(c.among.rows[c.place]) for c in online.learn(batch, batch[0].time, N).choices]
    assert len(chosen) == SAMPLE == online.trainer.model.steps - steps
    assert set(chosen) < possible
    assert chosen != sorted(possible)[:SAMPLE]  # drawn by lot
    assert online.together.users.sum() == readers + len(batch)
    assert all(online.counts.engaged_at[one.row] == one.time for one in batch)


@pytest.mark.parametrize(
    ("size", "first", "now", "same"),
    [
        (1, NOW, NOW + 999, True),
        (1, NOW + 999, NOW + 1000, False),  # a second of the clock, whenever it begins
        (BATCH - 1, NOW, NOW, True),
        (BATCH, NOW, NOW, False),
    ],
)
def test_a_batch_is_of_one_second_and_bounded(size: int, first: int, now: int, same: bool) -> None:
    assert same_batch(size, first, now) is same


@pytest.mark.parametrize("replaced", [3, N // 2])
def test_the_mean_of_the_vectors_follows_what_is_replaced(replaced: int) -> None:
    contents, online = world()
    online.consider(NOW, engagement(1, 0, []).history, N)
    rows = np.arange(replaced)
    contents.vectors[rows] = np.eye(1, D, dtype=np.float32)
    online.contents_changed(rows, rows)
    online.consider(NOW, engagement(1, 0, []).history, N)
    assert online._current is not None
    expected = contents.vectors.mean(axis=0)
    far = np.abs(online._current.catalogue.mean - expected).max()
    assert far < (0.02 if replaced == 3 else 1e-5)  # a few of many may wait


def test_the_mean_is_of_the_contents_that_have_a_vector() -> None:
    contents, online = world(contents=50)
    contents.vectors[10:20] = 0
    engage(online, engagement(7, 0, [3]), 50)
    choice = engage(online, engagement(7, 1, [3, 12]), 50)
    assert choice is not None
    assert online._current is not None
    said = np.delete(contents.vectors, np.arange(10, 20), axis=0)
    assert online._current.catalogue.mean == pytest.approx(said.mean(axis=0), abs=1e-6)
    near = slice(NAMES.index("cosine_last"), NAMES.index("best_match") + 1)
    assert (choice.among.features[10:20, near] == 0).all()
    assert np.isfinite(choice.among.features).all()
