"""Choices become a step: draw a list around what was chosen, learn from it, keep the account."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream_app.errors import LearningError
from stream_app.learning.model import Floats, Listed, SoftmaxRanker

HARD, DRAWN = 200, 50
"""Candidates of a list: those with the highest scores, which the choice must be told from, and a sample
of the others, which keeps what is out of sight where it belongs."""
REACH = 0.002
"""Weight of the newest choice in the running loss, which so reaches back some hundred of them."""


class OnlineTrainer:
    """Trains one model, which nobody else changes."""

    def __init__(self, model: SoftmaxRanker, seed: int = 0) -> None:
        self.model = model
        self.loss: float | None = None
        """Prequential: running mean of the choices' losses before their steps; None before the first"""
        self._random = np.random.default_rng(seed)

    def listed(
        self,
        features: Floats,
        scores: Floats,
        candidates: NDArray[np.bool_],
        groups: tuple[int, int],
        chosen: int,
        stands_for: Floats | None = None,
    ) -> Listed:
        """The list around a choice: a user of these ``groups`` chose row ``chosen`` among the
        ``candidates`` [N] of contents with ``features`` [N, F], which the model gives ``scores`` [N];
        ``stands_for`` [N] are logarithms of how many contents each stands for, None = itself."""
        rows, offsets = self._list(scores, candidates, chosen)
        if stands_for is not None:
            offsets += stands_for[rows]
        return Listed(features[rows], groups, len(rows) - 1, offsets)

    def learn(self, lists: Sequence[Listed]) -> list[float | LearningError]:
        """One step on all ``lists`` [B]. Returns the losses before it, and what was wrong with those that
        the model refuses: they cost the others nothing."""
        if not lists:
            return []
        try:
            losses = self.model.learn(lists)
        except LearningError as error:
            if len(lists) == 1:
                return [error]
            return [outcome for one in lists for outcome in self.learn([one])]
        for steps, loss in enumerate(losses, self.model.steps - len(lists) + 1):
            part = max(REACH, 1 / steps)
            self.loss = loss if self.loss is None else self.loss + part * (loss - self.loss)
        return [*losses]

    def _list(
        self, scores: Floats, candidates: NDArray[np.bool_], chosen: int
    ) -> tuple[NDArray[np.int64], Floats]:
        """Rows of the step's candidates [k], the chosen one last, and their offsets [k]."""
        others = np.flatnonzero(candidates)
        others = others[others != chosen]
        if len(others) <= HARD + DRAWN:
            rows = np.append(others, chosen)
            return rows, np.zeros(len(rows), np.float32)
        order = np.argpartition(-scores[others], HARD)
        tail = order[HARD:]
        drawn = self._random.choice(tail, DRAWN, replace=False)
        rows = np.concatenate([others[order[:HARD]], others[drawn], [chosen]])
        offsets = np.zeros(len(rows), np.float32)
        offsets[HARD:-1] = np.log(len(tail) / DRAWN)
        return rows, offsets
