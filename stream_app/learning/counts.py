"""How often each content is engaged with, decayed at every half-life. Pure NumPy.

``engaged[h] = Σ ± 2^(-(t_ref - t)/h)`` over the engagements of no negative weight, and ``weighted[h]``
likewise over all, times their weights. Both stand at ``engaged_at``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.learning.activity import HALF_LIVES_H, WEIGHTED

HOUR_MS = 3_600_000.0
_WEIGHTED = list(WEIGHTED)


class EngagementCounts:
    """Counts of N contents: 48 N bytes."""

    def __init__(self, capacity: int) -> None:
        """``capacity`` N; nothing is counted yet."""
        self.engaged_at: NDArray[np.int64] = np.zeros(capacity, np.int64)
        """[N], ms, of the newest engagement; 0 where there was none"""
        self._engaged: NDArray[np.float32] = np.zeros((len(HALF_LIVES_H), capacity), np.float32)
        self._weighted: NDArray[np.float32] = np.zeros((len(WEIGHTED), capacity), np.float32)
        self._half_lives_ms = np.array(HALF_LIVES_H, np.float32)[:, None] * np.float32(HOUR_MS)

    def count(self, row: int, time: int, weight: float, *, undo: bool = False) -> None:
        """Count one engagement at ``time`` (ms), or take one back that had that time and weight."""
        sign = np.float32(-1 if undo else 1)
        engaged = np.full(len(HALF_LIVES_H), sign * (weight >= 0), np.float32)
        self.add(row, time, engaged, np.full(len(WEIGHTED), sign * np.float32(weight), np.float32))

    def add(self, row: int, time: int, engaged: NDArray[np.float32], weighted: NDArray[np.float32]) -> None:
        """Add counts that stand at ``time`` (ms): ``engaged`` [H] and ``weighted`` [len(WEIGHTED)]."""
        half_lives, newest = self._half_lives_ms[:, 0], max(time, int(self.engaged_at[row]))
        left = np.exp2(-np.float32(newest - self.engaged_at[row]) / half_lives)
        new = np.exp2(-np.float32(newest - time) / half_lives)
        self._engaged[:, row] = self._engaged[:, row] * left + new * engaged
        self._weighted[:, row] = self._weighted[:, row] * left[_WEIGHTED] + new[_WEIGHTED] * weighted
        self.engaged_at[row] = newest

    def at(self, now: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The counts of the rows below ``count``, decayed to ``now`` (ms): engaged [H, count] and weighted
        [len(WEIGHTED), count], both ≥ 0."""
        age = (now - self.engaged_at[:count]).astype(np.float32)
        left = np.exp2(-np.maximum(age, 0) / self._half_lives_ms)
        return (
            np.maximum(self._engaged[:, :count] * left, 0),
            np.maximum(self._weighted[:, :count] * left[_WEIGHTED], 0),
        )

    def forget(self, rows: NDArray[np.int64]) -> None:
        """Drop contents: their rows may be given to others."""
        self.engaged_at[rows] = 0
        self._engaged[:, rows] = self._weighted[:, rows] = 0
