"""Learning from what was shown: what was passed over falls, and where something stood earns it nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_app.errors import LearningError
from stream_app.learning import checkpoint
from stream_app.learning.coengagement import CoEngagement
from stream_app.learning.exposure import MOST, POSITIONS, Exposure
from stream_app.learning.features import BANDS, NAMES
from stream_app.learning.history import NOBODY
from stream_app.learning.online import Choice, Contents, Engagement, OnlineLearning, Shown
from stream_app.learning.shadow import judged

NOW = 1_700_000_000_000
DAY = 86_400_000
N = 300
"""Contents: a third of each kind, told apart by their age."""
NONE = np.zeros(0, np.int64)
kind_of = np.arange(N) % 3


def learning(candidates: int | None = None) -> OnlineLearning:
    created_at = NOW - 20 * DAY + 6 * DAY * kind_of.astype(np.int64)
    columns = Contents(
        created_at, np.zeros(N, np.uint64), np.zeros((N, 0), np.float32), np.ones(N, np.bool_), DAY
    )
    online = OnlineLearning(columns, CoEngagement(N, 4), hidden=8, candidates=candidates)
    for row in range(N):  # somebody published them all
        online.counts.count(row, NOW, 1.0)
    return online


def choose(online: OnlineLearning, step: int, row: int, shown: NDArray[np.int64] | None) -> Choice:
    """A user of whom nothing is known chooses a row among those shown, the topmost first."""
    given = None
    if shown is not None:
        given = Shown(shown, np.arange(len(shown), dtype=np.uint16), np.zeros(len(shown), np.float32))
    engagement = Engagement(row, NOW + step, 1.0, True, NOBODY, NONE, shown=given)
    (choice,) = online.learn([engagement], NOW + step, N).choices
    return choice


def preference(online: OnlineLearning, better: int, than: int, step: int) -> float:
    """How much higher contents of one kind score than those of another."""
    scores = online.consider(NOW + step, NOBODY, N).scores
    return float(scores[kind_of == better].mean() - scores[kind_of == than].mean())


def test_what_is_passed_over_falls_below_what_is_chosen_as_often() -> None:
    """Kinds 0 and 1 are chosen equally often, but 1 only where 0 is not shown beside it."""
    preferred = {}
    for tell in (True, False):
        online, random = learning(), np.random.default_rng(1)
        for step in range(500):
            row = random.choice(np.flatnonzero(kind_of == step % 2))
            other = random.choice(np.flatnonzero(kind_of == step % 2 + 1))
            choose(online, step, int(row), random.permutation([row, other]) if tell else None)
        preferred[tell] = preference(online, 0, 1, 500)
    assert preferred[True] > max(0.5, 2 * preferred[False]), preferred


def test_where_it_stood_earns_a_content_nothing() -> None:
    """Kind 0 is liked three times as much as kind 1, but 1 mostly stands on top, where users look."""
    online, random = learning(), np.random.default_rng(2)
    liked, noticed = np.log([3.0, 1.0, 0.2]), np.log([8.0, 1.0])
    chosen = np.zeros(3)
    for step in range(1_500):
        kinds = [1, 0] if random.random() < 0.8 else [0, 1]
        shown = np.array([random.choice(np.flatnonzero(kind == kind_of)) for kind in kinds])
        odds = np.exp(liked[kinds] + noticed)
        place = int(random.random() > odds[0] / odds.sum())
        chosen[kinds[place]] += 1
        choose(online, step, int(shown[place]), shown)
    assert chosen[1] > 1.3 * chosen[0]
    assert preference(online, 0, 1, 1_500) > 0.5
    logs, begun = online.exposure.logs, Exposure().logs
    assert logs[0] - logs[1] > begun[0] - begun[1] + 0.3
    assert ((logs >= 0) & (logs <= MOST)).all()
    assert (logs[2:] == begun[2:]).all()


def test_fatigue_explains_why_something_was_passed_over() -> None:
    """A content that had been shown too often is no less liked, nor its position less noticed, for that."""
    falls = []
    for penalty in (0.0, 3.0):
        online = learning()
        given = Shown(np.array([3, 4]), np.arange(2, dtype=np.uint16), np.array([0, penalty], np.float32))
        online.learn([Engagement(3, NOW, 1.0, True, NOBODY, NONE, shown=given)], NOW, N)
        falls.append(float(Exposure().logs[1] - online.exposure.logs[1]))
    assert 0 < falls[1] < 0.3 * falls[0]


@pytest.mark.parametrize("candidates", [None, 50])
def test_what_was_shown_is_among_the_candidates_unless_it_is_known_or_gone(candidates: int | None) -> None:
    online = learning(candidates)
    assert online._contents.live is not None
    online._contents.live[7] = False
    shown = np.array([7, 250, 31, 99, 100])
    given = Shown(shown, np.arange(5, dtype=np.uint16), np.zeros(5, np.float32))
    engagement = Engagement(31, NOW, 1.0, True, NOBODY, np.array([99]), shown=given)
    before = online.exposure.logs.copy()
    (choice,) = online.learn([engagement], NOW, N).choices
    alternatives = set(choice.among.rows[choice.allowed].tolist())
    assert {250, 31, 100} <= alternatives
    assert not {7, 99} & alternatives
    changed = np.flatnonzero(online.exposure.logs != before)
    assert changed.tolist() == [1, 2, 4]
    assert (choice.among.offsets[np.isin(choice.among.rows, shown)] == 0).all()  # each stands for itself


def test_a_list_longer_than_the_candidates_is_a_list() -> None:
    online = learning(candidates=50)
    choice = choose(online, 0, 5, np.arange(64))
    assert len(np.unique(choice.among.rows)) == len(choice.among.rows) <= 50 + 64
    assert choice.among.rows[choice.place] == 5


def test_models_are_judged_by_what_they_are_taught() -> None:
    """By the choice among what was noticed; a model is not worse for what nobody saw."""
    online = learning()
    choice = choose(online, 0, 31, np.array([250, 31, 100]))
    scores = np.random.default_rng(4).normal(size=N).astype(np.float32)
    loss, gain = judged(scores, choice)
    noticed = np.full(N, 0.0)
    noticed[[250, 31, 100]] = Exposure().logs[:3]
    logits = scores + noticed
    assert loss == pytest.approx(np.log(np.exp(logits).sum()) - logits[31], rel=1e-5)
    unseen = judged(scores, replace(choice, noticed=None))
    assert unseen[0] > loss + 1
    assert unseen[1] == gain


def test_deep_positions_are_alike_and_the_bounds_hold() -> None:
    exposure = Exposure()
    deep = np.array([POSITIONS - 1, POSITIONS, 65_535], np.uint16)
    for _ in range(2_000):
        exposure.learn(deep, np.array([1, 1, 1], np.float32))
        exposure.learn(np.array([0], np.uint16), np.array([-1], np.float32))
    assert (exposure.offsets(deep) == 0).all()
    assert exposure.logs[0] == MOST


def test_a_checkpoint_brings_the_exposure_back_and_one_without_begins_anew() -> None:
    online = learning()
    choose(online, 0, 5, np.array([5, 6, 7]))
    model, habits = online.trainer.model, online.habits
    value = checkpoint.encode(model, habits, online.exposure)
    again = checkpoint.decode_exposure(value)
    np.testing.assert_array_equal(again.logs, online.exposure.logs)
    np.testing.assert_array_equal(again.squares, online.exposure.squares)
    assert checkpoint.decode(value, NAMES, BANDS)[0].steps == 1
    fresh = checkpoint.decode_exposure(checkpoint.encode(model, habits))
    np.testing.assert_array_equal(fresh.logs, Exposure().logs)
    online.exposure.logs[0] = np.nan
    with pytest.raises(LearningError, match=r"exposure\.logs"):
        checkpoint.encode(model, habits, online.exposure)
