"""Nothing of the future reaches a score.

With each user's future shuffled in time there is nothing left to predict: whatever still predicts it has
seen it. Every method must fall to chance then, and methods that peek must be found out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch

from stream_app.evaluation import metrics
from stream_app.evaluation.baselines import DecayedPopularity
from stream_app.evaluation.collaborative import Bpr, ContentProfile, ItemKnn
from stream_app.evaluation.fusion import Fusion
from stream_app.evaluation.learned import LearnedRanker
from stream_app.evaluation.log import EvaluationLog
from stream_app.evaluation.prequential import WARM_UP, Outcome, run
from stream_app.evaluation.product import LiveRanker
from stream_app.evaluation.scorer import Scorer, Scores, Touch, World
from stream_app.ranking.device import limit_threads
from tests.evaluation.small_logs import SETTINGS, fashions, read, shuffled_futures

DIMENSIONS = 16
SIGMAS = 4
PRODUCT, LIVE = "the product", "the product's learned ranker"
METHODS = {
    "decayed popularity": lambda world, log: DecayedPopularity(world, 6.0),
    "item-kNN": lambda world, log: ItemKnn(world, 5.0, 0.5, 24.0),
    "BPR": lambda world, log: Bpr(world, 0.1),
    "content profile": lambda world, log: ContentProfile(world, 7.0),
    "rank fusion": lambda world, log: Fusion(
        world, [partial(DecayedPopularity, half_life_h=6.0), partial(Bpr, rate=0.1)], 60.0
    ),
    "learned ranker": lambda world, log: LearnedRanker(world),
    PRODUCT: lambda world, log: LiveRanker(world, SETTINGS, log),
    LIVE: lambda world, log: LiveRanker(world, SETTINGS, log, LearnedRanker),
}


class Early:
    """Takes each event in before it is asked about it, instead of after."""

    def __init__(self, inner: Scorer, log: EvaluationLog) -> None:
        self._inner, self._log, self._next = inner, log, 0

    def score(self, now: int, user: int, count: int) -> Scores:
        log, i = self._log, self._next
        names = ("times", "now", "users", "contents", "actions", "weights", "undo", "first")
        self._inner.update(Touch(i, *(getattr(log, name)[i].item() for name in names)))
        self._next = -1  # the same event comes again
        return self._inner.score(now, user, count)

    def update(self, touch: Touch) -> None:
        if self._next != -1:
            self._inner.update(touch)
        self._next = touch.place + 1


class Prophet:
    """Knows what each user will touch next."""

    def __init__(self, log: EvaluationLog) -> None:
        self._log, self._next = log, 0

    def score(self, now: int, user: int, count: int) -> Scores:
        scores = np.zeros(count)
        later = np.flatnonzero(self._log.users[self._next :] == user)[:3]
        scores[self._log.contents[self._next + later]] = 1.0
        return scores

    def update(self, touch: Touch) -> None:
        self._next = touch.place + 1


def world_of(log: EvaluationLog) -> World:
    vectors = np.random.default_rng(7).normal(size=(len(log.catalogue), DIMENSIONS))
    return World.of(log, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))


def check_chance(outcome: Outcome) -> None:
    """The hits are as many as lots would have drawn."""
    chances = np.minimum(10 / outcome.candidates, 1.0)
    hits = metrics.gains(outcome)[1]
    spread = float(np.sqrt((chances * (1 - chances)).sum()))
    assert abs(hits.sum() - chances.sum()) < SIGMAS * spread, f"{hits.sum()} hits, chance has {chances.sum()}"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors, and a machine with other work: more threads wait for each other."""
    before = torch.get_num_threads()
    limit_threads(1)
    yield
    torch.set_num_threads(before)


def log_of(method: str, *, shuffled: bool) -> EvaluationLog:
    """A small one for the product, which takes milliseconds for what others do in microseconds."""
    records = fashions(users=5, contents=50) if method in (PRODUCT, LIVE) else fashions(users=12)
    return read(shuffled_futures(records, WARM_UP) if shuffled else records)


@pytest.mark.parametrize("method", METHODS)
def test_with_shuffled_futures_everyone_falls_to_chance(method: str) -> None:
    log = log_of(method, shuffled=True)
    outcome = run(log, METHODS[method](world_of(log), log))
    assert len(outcome.at) > 150
    check_chance(outcome)


@pytest.mark.parametrize("method", ["decayed popularity", "rank fusion", "learned ranker", PRODUCT, LIVE])
def test_without_shuffling_there_was_something_to_predict(method: str) -> None:
    log = log_of(method, shuffled=False)
    outcome = run(log, METHODS[method](world_of(log), log))
    with pytest.raises(AssertionError, match="chance has"):
        check_chance(outcome)
    assert metrics.gains(outcome)[1].mean() > 0.7


@pytest.mark.parametrize("method", ["decayed popularity", "BPR", "learned ranker", PRODUCT, LIVE])
def test_an_update_that_comes_before_its_score_is_found_out(method: str) -> None:
    log = log_of(method, shuffled=True)
    outcome = run(log, Early(METHODS[method](world_of(log), log), log))
    with pytest.raises(AssertionError, match="chance has"):
        check_chance(outcome)


def test_a_prophet_is_found_out() -> None:
    log = log_of("prophet", shuffled=True)
    with pytest.raises(AssertionError, match="chance has"):
        check_chance(run(log, Prophet(log)))
