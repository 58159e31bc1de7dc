"""The state by definition: an independent float64 model that goes over events one at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sent:
    """One record as a producer sent it."""

    user: bytes
    content: int
    event: int
    time: int
    weight: float = 1.0
    undo: bool = False


def closed_form(
    sent: list[Sent], vectors: NDArray[np.float32], half_life_ms: float
) -> dict[bytes, tuple[int, float, NDArray[np.float64]]]:
    """(t_ref, mass, S) of each user: distinct accepted events, less those that were undone."""
    states = {}
    for user in {e.user for e in sent}:
        mine = [e for e in sent if e.user == user]
        t_ref = max(e.time for e in mine)
        undone = {e.event for e in mine if e.undo}
        standing = {e.event: e for e in mine if not e.undo and e.event not in undone}
        total = np.zeros(vectors.shape[1])
        mass = 0.0
        for e in standing.values():
            left = e.weight * 2.0 ** (-(t_ref - e.time) / half_life_ms)
            total += left * vectors[e.content].astype(np.float64)
            mass += abs(left)
        states[user] = (t_ref, mass, total)
    return states
