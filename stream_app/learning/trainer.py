"""One engagement becomes one step: draw a list around what was chosen, learn from it, keep the account."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.learning.model import Floats, SoftmaxRanker

HARD, DRAWN = 200, 50
"""Candidates of a list: those with the highest scores, which the choice must be told from, and a sample
of the others, which keeps what is out of sight where it belongs."""
REACH = 0.002
"""Weight of the newest step in the running loss, which so reaches back some hundred steps."""


class OnlineTrainer:
    """Trains one model, which nobody else changes."""

    def __init__(self, model: SoftmaxRanker, seed: int = 0) -> None:
        self.model = model
        self.loss: float | None = None
        """Prequential: running mean of each step's loss before the step; None before the first"""
        self._random = np.random.default_rng(seed)

    def learn(self, features: Floats, groups: tuple[int, int], chosen: int) -> float:
        """One step: the user chose candidate ``chosen`` of those with ``features`` [n, F]. Returns the loss
        before the step. Raises LearningError as :meth:`SoftmaxRanker.learn`."""
        rows, place, offsets = self._list(self.model.score(features, groups), chosen)
        loss = self.model.learn(features[rows], groups, place, offsets)
        part = max(REACH, 1 / self.model.steps)
        self.loss = loss if self.loss is None else self.loss + part * (loss - self.loss)
        return loss

    def _list(self, scores: Floats, chosen: int) -> tuple[NDArray[np.int64], int, Floats]:
        """Candidates of the step [k], where the chosen one stands among them, and offsets [k]."""
        others = np.delete(np.arange(len(scores)), chosen)
        if len(others) <= HARD + DRAWN:
            rows = np.append(others, chosen)
            return rows, len(others), np.zeros(len(rows), np.float32)
        order = np.argpartition(-scores[others], HARD)
        tail = order[HARD:]
        drawn = self._random.choice(tail, DRAWN, replace=False)
        rows = np.concatenate([others[order[:HARD]], others[drawn], [chosen]])
        offsets = np.zeros(len(rows), np.float32)
        offsets[HARD:-1] = np.log(len(tail) / DRAWN)
        return rows, len(rows) - 1, offsets
