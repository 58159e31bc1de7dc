"""Reciprocal-rank fusion: ``Σ_s 1 / (k + rank_s)`` over several scorers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stream_app.evaluation.scorer import Maker, Scores, Touch, World


class Fusion:
    """Scores contents by their places in the members' rankings; equals share the best of their places."""

    def __init__(self, world: World, members: Sequence[Maker], k: float) -> None:
        self._members = [make(world) for make in members]
        self._k = k

    def score(self, now: int, user: int, count: int) -> Scores:
        """The sums of reciprocal ranks."""
        total = np.zeros(count)
        for member in self._members:
            scores = -np.array(member.score(now, user, count), np.float64)
            places = np.searchsorted(np.sort(scores), scores)
            total += 1 / (self._k + 1 + places)
        return total

    def update(self, touch: Touch) -> None:
        """Each member learns."""
        for member in self._members:
            member.update(touch)
