"""The learned ranker on the live path recommends what the trainer's own scores would."""

from __future__ import annotations

from functools import partial

import msgspec
import numpy as np
import pytest

from stream_app.evaluation import metrics
from stream_app.evaluation.learned import LearnedRanker
from stream_app.evaluation.log import EvaluationLog
from stream_app.evaluation.prequential import run
from stream_app.evaluation.product import LiveRanker
from stream_app.evaluation.scorer import World
from stream_app.settings import Settings
from tests.evaluation.small_logs import SETTINGS, event, fashions, read, walks

NEIGHBOURS = 64


def world_of(log: EvaluationLog) -> World:
    vectors = np.random.default_rng(7).normal(size=(len(log.catalogue), 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return World.of(log, vectors.astype(np.float16).astype(np.float32))  # as an index has them


def settings(**ranking: object) -> Settings:
    """Nothing but the scores decides."""
    ranking = {"diversity": 0.0, "calibration": 0.0, "author_cap": 0, "max_age_days": 10_000.0, **ranking}
    replace = msgspec.structs.replace
    return replace(
        SETTINGS,
        interests=replace(SETTINGS.interests, recent=64),
        learning=replace(SETTINGS.learning, neighbours=NEIGHBOURS),
        ranking=replace(SETTINGS.ranking, **ranking),
    )


def mixed(*, undo: bool) -> EvaluationLog:
    """Fashions, with likes and repeats between, some of them taken back."""
    records = fashions(contents=30)
    extra = [event(f"u{i % 20}", f"c{i % 13}", 200 * i, "likes", event_id=f"e{i}") for i in range(150)]
    extra += [
        event(f"u{i % 20}", f"c{i % 13}", 200 * i + 90, "likes", event_id=f"e{i}", undo=True)
        for i in range(0, 150 * undo, 5)
    ]
    contents = [r for r in records if not r.is_event]
    return read(contents + sorted([r for r in records if r.is_event] + extra, key=lambda r: r.time_ms))


@pytest.mark.parametrize(
    ("log", "all_up_to", "least"),
    [
        (walks(users=20, contents=50, events=500), 2000, 0.999),
        (mixed(undo=False), 0, 0.999),
        # an undo takes one engagement back live, and all with that content in the evaluation's account
        (mixed(undo=True), 2000, 0.97),
    ],
    ids=["walks, all contents", "fashions, a union of sources", "with undos"],
)
def test_the_live_path_recommends_what_the_trainer_scores_highest(
    log: EvaluationLog, all_up_to: int, least: float
) -> None:
    world = world_of(log)
    learner = partial(LearnedRanker, neighbours=NEIGHBOURS)
    expected = run(log, learner(world))
    live = run(log, LiveRanker(world, settings(all_up_to=all_up_to), log, learner))
    assert len(live.at) > 250
    gained, ideal = (metrics.gains(outcome)[0] for outcome in (live, expected))
    assert abs(float((gained - ideal).mean())) < 0.003
    pairs = [(set(a.tolist()), set(b.tolist())) for a, b in zip(live.lists, expected.lists, strict=True)]
    assert np.mean([len(a & b) / len(b) for a, b in pairs]) > least


def test_without_a_learner_the_blend_ranks() -> None:
    log = walks(users=10, contents=40, events=200)
    ranker = LiveRanker(world_of(log), settings(), log)
    outcome = run(log, ranker)
    assert len(outcome.at) > 100
    assert ranker._engine.neighbours is None
