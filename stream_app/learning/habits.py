"""How old contents are when they are engaged with: by everybody, and by one user. Pure NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BANDS = 8
OLDEST = 12.5
"""log(1 + minutes) of half a year, where the last band begins; the others are equally wide."""
PRIOR = 1.0
"""Engagements of everybody's habit that are added to a user's own."""
BEGINNING = 0.1
"""Of an engagement in each band, before the first."""
USUAL_AT_FIRST = 6.0
"""log(1 + minutes) of about seven hours."""


def age_bands(ages: NDArray[np.float32]) -> NDArray[np.int64]:
    """Band of each logarithmic age ≥ 0, 0 to BANDS - 1."""
    bands: NDArray[np.int64] = np.minimum((ages * ((BANDS - 1) / OLDEST)).astype(np.int64), BANDS - 1)
    return bands


class AgeHabits:
    """Everybody's habit: a histogram over age bands, and the mean of the logarithmic ages."""

    def __init__(self) -> None:
        self.counts: NDArray[np.float32] = np.full(BANDS, BEGINNING, np.float32)
        """[BANDS], float32: exact up to 16 million engagements, and then they stand still"""
        self.usual: NDArray[np.float32] = np.array(USUAL_AT_FIRST, np.float32)
        """[], mean logarithmic age"""

    def learn(self, age: float) -> None:
        """An engagement with a content of that logarithmic age."""
        self.counts[age_bands(np.array(age, np.float32))] += 1
        self.usual += np.float32((age - self.usual) / (self.counts.sum() + 1))

    def lifts(self, ages: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """[BANDS], ``log((n[b] + PRIOR g[b]) / (Σ n + PRIOR) / g[b])``: how much more often than everybody
        (shares g) a user engages with contents of that age; n are the sums of ``weights`` [m]."""
        return self.lifted(np.bincount(age_bands(ages), weights, BANDS))

    def lifted(self, own: NDArray[np.floating | np.integer]) -> NDArray[np.float32]:
        """:meth:`lifts`, from the sums n [..., BANDS] of users."""
        shares = self.counts / self.counts.sum()
        whole = own.sum(axis=-1, keepdims=True)
        lifts: NDArray[np.float32] = np.log((own / shares + PRIOR) / (whole + PRIOR)).astype(np.float32)
        return lifts
