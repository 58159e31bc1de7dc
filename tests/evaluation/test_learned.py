"""The learned ranker in the harness: it learns, knows nothing of the future, and asking changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from stream_app.evaluation import metrics, prequential
from stream_app.evaluation.collaborative import ItemKnn
from stream_app.evaluation.learned import LEFT_OUT, LearnedRanker
from stream_app.evaluation.log import EvaluationLog
from stream_app.evaluation.prequential import run
from stream_app.evaluation.scorer import Scores, Touch, World
from stream_app.learning.features import NAMES
from tests.evaluation.small_logs import content, event, read, walks


def world_of(log: EvaluationLog) -> World:
    vectors = np.random.default_rng(7).normal(size=(len(log.catalogue), 8))
    return World.of(log, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))


@pytest.fixture(scope="module")
def log() -> EvaluationLog:
    return walks(users=40, contents=100, events=1500)


class Restless:
    """Is asked about somebody else before every question and every event."""

    def __init__(self, inner: LearnedRanker, log: EvaluationLog) -> None:
        self._inner, self._log = inner, log

    def score(self, now: int, user: int, count: int) -> Scores:
        self._inner.score(now, (user + 1) % len(self._log.user_ids), count)
        return self._inner.score(now, user, count)

    def update(self, touch: Touch) -> None:
        others = (touch.user + 1) % len(self._log.user_ids)
        self._inner.score(touch.now, others, int(self._log.published[touch.place]))
        self._inner.update(touch)


def test_it_learns_what_follows_what(log: EvaluationLog) -> None:
    world = world_of(log)
    learned = float(metrics.gains(run(log, LearnedRanker(world)))[0].mean())
    neighbours = float(metrics.gains(run(log, ItemKnn(world, 5, 0.5, 1e9)))[0].mean())
    assert learned > 0.98 > 0.9 > neighbours


def test_the_same_seed_gives_the_same_ranks_and_asking_changes_nothing(log: EvaluationLog) -> None:
    world = world_of(log)
    once = run(log, LearnedRanker(world), end=0.5)
    np.testing.assert_array_equal(run(log, LearnedRanker(world), end=0.5).ranks, once.ranks)
    restless = run(log, Restless(LearnedRanker(world), log), end=0.5)
    np.testing.assert_array_equal(restless.ranks, once.ranks)


def test_a_log_that_ends_earlier_gives_the_same_ranks_until_then() -> None:
    records = [content(f"c{i}", i) for i in range(40)]
    random = np.random.default_rng(3)
    for minute in range(41, 400):
        name = f"c{random.integers(40)}" if minute < 300 else f"c{random.integers(20)}"
        records.append(event(f"u{random.integers(8)}", name, minute, "likes" if minute % 3 else "views"))
    whole, part = read(records), read(records[:240])
    later = run(whole, LearnedRanker(world_of(whole)), begin=0.0).ranks
    earlier = run(part, LearnedRanker(world_of(part)), begin=0.0).ranks
    assert len(earlier) > 50
    np.testing.assert_array_equal(later[: len(earlier)], earlier)


def test_learning_goes_on_during_the_warm_up(log: EvaluationLog) -> None:
    ranker = LearnedRanker(world_of(log))
    run(log, ranker, end=prequential.WARM_UP)
    ranker.settle()
    steps = int(log.touch[: int(len(log) * prequential.WARM_UP)].sum())
    assert ranker.trainer.model.steps == steps > 100


def test_undone_and_disliked_contents_are_no_history() -> None:
    records = [content(f"c{i}") for i in range(6)] + [event("first", f"c{i}", 1) for i in range(6)]
    records += [event("u", "c0", 2), event("u", "c1", 3, event_id="e1"), event("u", "c2", 4, "likes")]
    records.append(event("u", "c1", 5, event_id="e1", undo=True))
    log = read(records)
    ranker = LearnedRanker(world_of(log))
    run(log, ranker)
    history = ranker._users.history(log.user_ids.index(b"u"))
    numbers = [log.catalogue.ids.index(name) for name in (b"c2", b"c0")]
    assert history.rows.tolist() == numbers
    assert history.strong.tolist() == [True, False]


@pytest.mark.parametrize("part", LEFT_OUT)
def test_what_is_left_out_says_nothing(log: EvaluationLog, part: str) -> None:
    world = world_of(log)
    ranker, whole = LearnedRanker(world, **LEFT_OUT[part]), LearnedRanker(world)
    ranks = [run(log, scorer, begin=0.0, end=0.3).ranks for scorer in (ranker, whole)]
    assert (ranks[0] != ranks[1]).any()
    learned = ranker.trainer.model.parameters
    silent = [NAMES.index(name) for name in LEFT_OUT[part].get("without", ())]
    assert not learned["linear"][silent].any()
    assert learned["linear"].any()
    if "groups" in LEFT_OUT[part]:
        assert not learned["groups"].any()
    if part == "persons":
        now, count = int(log.now[-1]), len(log.catalogue)
        np.testing.assert_array_equal(ranker.score(now, 0, count), ranker.score(now, 1, count))
