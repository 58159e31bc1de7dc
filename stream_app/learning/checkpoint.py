"""A ranker and everybody's habits as bytes: safetensors, with version and feature names. No I/O.

Tensors, all float32: ``parameters.*`` and ``squares.*`` (see :class:`SoftmaxRanker`), ``mean`` [F],
``variance`` [F], ``habits.counts`` [BANDS], ``habits.usual`` []; and, where it is to go on learning,
``exposure.logs`` and ``exposure.squares`` [POSITIONS]. The metadata have one entry, ``ranker`` (several
would come in any order): JSON with ``version``, the names of the ``features``, and ``steps``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from stream_app.errors import LearningError
from stream_app.learning.exposure import Exposure
from stream_app.learning.habits import AgeHabits
from stream_app.learning.model import Floats, SoftmaxRanker

VERSION = 1
_LENGTH = 8
"""Bytes before a safetensors header, which say how long it is."""


class _Ranker(msgspec.Struct):
    version: int
    features: list[str]
    steps: int


class _Metadata(msgspec.Struct):
    ranker: str


class _Header(msgspec.Struct):
    metadata: _Metadata = msgspec.field(name="__metadata__")


def encode(model: SoftmaxRanker, habits: AgeHabits, exposure: Exposure | None = None) -> bytes:
    """The checkpoint. Raises LearningError when something in it is not finite: it must not be published."""
    tensors = {**_tensors(model, habits), **({} if exposure is None else _exposure(exposure))}
    if wrong := [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]:
        raise LearningError(f"the learned ranker is not finite in {', '.join(wrong)}")
    ranker = msgspec.json.encode(_Ranker(VERSION, list(model.names), model.steps)).decode()
    return safetensors.numpy.save(dict(tensors), {"ranker": ranker})


def decode(value: bytes, names: Sequence[str], groups: int) -> tuple[SoftmaxRanker, AgeHabits]:
    """The ranker and the habits, which go on learning where they stopped.

    Raises LearningError when the bytes are no checkpoint of this version, of the features ``names`` and
    of that many ``groups``, or when a number in it is not finite.
    """
    try:
        found = safetensors.numpy.load(value)
        length = int.from_bytes(value[:_LENGTH], "little")
        header = msgspec.json.decode(value[_LENGTH : _LENGTH + length], type=_Header)
        ranker = msgspec.json.decode(header.metadata.ranker, type=_Ranker)
    except (SafetensorError, msgspec.MsgspecError, ValueError, KeyError, TypeError) as error:
        raise LearningError(f"a checkpoint of {len(value)} bytes cannot be read: {error}") from None
    if ranker.version != VERSION:
        raise LearningError(f"a checkpoint of version {ranker.version}, expected {VERSION}")
    if ranker.features != list(names):
        raise LearningError("a checkpoint of other features than this ranker's: train anew")
    bias = found.get("parameters.bias")
    model, habits = SoftmaxRanker(names, groups, 0 if bias is None else bias.size), AgeHabits()
    for name, tensor in _tensors(model, habits).items():
        read = found.get(name)
        if read is None or read.shape != tensor.shape or read.dtype != np.float32:
            raise LearningError(f"a checkpoint without a float32 {name} of shape {tensor.shape}")
        if not np.isfinite(read).all():
            raise LearningError(f"a checkpoint whose {name} is not finite")
        tensor[...] = read
    model.steps = max(ranker.steps, 0)
    return model, habits


def decode_exposure(value: bytes) -> Exposure:
    """The exposure of a checkpoint that can be read; an untrained one where it has none."""
    exposure, found = Exposure(), safetensors.numpy.load(value)
    for name, tensor in _exposure(exposure).items():
        read = found.get(name)
        if read is None or read.shape != tensor.shape or not np.isfinite(read).all():
            return Exposure()
        tensor[...] = read
    return exposure


def _exposure(exposure: Exposure) -> Mapping[str, Floats]:
    return {"exposure.logs": exposure.logs, "exposure.squares": exposure.squares}


def _tensors(model: SoftmaxRanker, habits: AgeHabits) -> Mapping[str, Floats]:
    """All that is learned, by name; the arrays themselves, not copies."""
    return {
        **{f"parameters.{name}": tensor for name, tensor in model.parameters.items()},
        **{f"squares.{name}": tensor for name, tensor in model.squares.items()},
        "mean": model.mean,
        "variance": model.variance,
        "habits.counts": habits.counts,
        "habits.usual": habits.usual,
    }
