"""Checkpoints come back as they were, and nothing else comes in."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy

from stream_app.errors import LearningError
from stream_app.learning import checkpoint
from stream_app.learning.habits import AgeHabits
from stream_app.learning.model import Listed, SoftmaxRanker

NAMES = ("a", "b", "c", "d")
GROUPS = 5
META: dict[str, object] = {"version": 1, "features": ["a", "b", "c", "d"], "steps": 1}


def trained() -> tuple[SoftmaxRanker, AgeHabits]:
    model, habits = SoftmaxRanker(NAMES, GROUPS, 6, seed=3), AgeHabits()
    random = np.random.default_rng(0)
    for _ in range(30):
        features = random.normal(size=(20, 4)).astype(np.float32)
        model.learn([Listed(features, (0, 3), 5, np.zeros(20, np.float32))])
        habits.learn(float(random.uniform(0, 13)))
    return model, habits


def test_a_ranker_goes_on_where_it_stopped() -> None:
    model, habits = trained()
    again, usual = checkpoint.decode(checkpoint.encode(model, habits), NAMES, GROUPS)
    features = np.random.default_rng(9).normal(size=(20, 4)).astype(np.float32)
    for ranker in (model, again):
        ranker.learn([Listed(features, (1, 2), 7, np.zeros(20, np.float32))])
    assert again.steps == model.steps == 31
    assert checkpoint.encode(again, usual) == checkpoint.encode(model, habits)


@pytest.mark.parametrize("place", range(0, 400, 37))
def test_bytes_that_are_cut_off_are_refused(place: int) -> None:
    value = checkpoint.encode(*trained())
    with pytest.raises(LearningError, match="cannot be read"):
        checkpoint.decode(value[:place], NAMES, GROUPS)


@pytest.mark.parametrize(
    ("ranker", "message"),
    [
        (None, "cannot be read"),
        (META | {"version": 2}, "version 2"),
        (META | {"features": ["a", "b", "d", "c"]}, "other features"),
        (META | {"steps": "many"}, "cannot be read"),
    ],
)
def test_other_checkpoints_are_refused(ranker: dict[str, object] | None, message: str) -> None:
    tensors = safetensors.numpy.load(checkpoint.encode(*trained()))
    metadata = None if ranker is None else {"ranker": json.dumps(ranker)}
    with pytest.raises(LearningError, match=message):
        checkpoint.decode(safetensors.numpy.save(tensors, metadata), NAMES, GROUPS)


@pytest.mark.parametrize("name", ["parameters.linear", "squares.hidden", "mean", "habits.counts"])
@pytest.mark.parametrize("fault", ["missing", "shape", "dtype", "nan"])
def test_damaged_tensors_are_refused(name: str, fault: str) -> None:
    tensors = safetensors.numpy.load(checkpoint.encode(*trained()))
    if fault == "missing":
        del tensors[name]
    elif fault == "shape":
        tensors[name] = np.zeros((3, 3), np.float32)
    elif fault == "dtype":
        tensors[name] = tensors[name].astype(np.float64)
    else:
        tensors[name].flat[0] = np.nan
    with pytest.raises(LearningError, match=name):
        checkpoint.decode(safetensors.numpy.save(tensors, {"ranker": json.dumps(META)}), NAMES, GROUPS)


def test_a_ranker_that_is_not_finite_is_not_published() -> None:
    model, habits = trained()
    model.parameters["output"][0] = np.inf
    with pytest.raises(LearningError, match=r"parameters\.output"):
        checkpoint.encode(model, habits)


def test_another_number_of_groups_is_refused() -> None:
    with pytest.raises(LearningError, match=r"parameters\.groups"):
        checkpoint.decode(checkpoint.encode(*trained()), NAMES, GROUPS + 1)
