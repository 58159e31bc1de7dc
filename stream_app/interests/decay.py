"""Exponential decay in event time: the arithmetic behind interests and content statistics. Pure NumPy.

For events *i* with weight wᵢ, unit vector eᵢ and event time tᵢ, and a half-life h::

    S(t) = Σᵢ wᵢ 2^(-(t - tᵢ)/h) eᵢ          mass(t) = Σᵢ |wᵢ| 2^(-(t - tᵢ)/h)

S is stored at t_ref, the newest event time. A newer event decays S forward to its own time; an older
one is added scaled by its age. The sum is the same in whatever order events arrive.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CHUNK = 1024
"""Contributions gathered at a time: [CHUNK, D] float32 stays in the second-level cache at D = 384."""

LONG = 24
"""Segments longer than this are summed one by one, as a product; shorter ones side by side."""


def remaining(age_ms: NDArray[np.int64] | int, half_life_ms: float) -> NDArray[np.float64]:
    """2^(-age/h): what is left of a weight of 1 after ``age_ms`` milliseconds.

    >>> float(remaining(np.array([0, 1000]), 1000.0)[1])
    0.5
    """
    return np.exp2(np.asarray(age_ms, np.float64) / -half_life_ms)


def segment_sums(
    coefficients: NDArray[np.float32],
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    vectors: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Σ coefficient · vectors[row] over each segment.

    ``coefficients`` and ``rows`` [C] lie segment by segment; ``starts`` [G] are the segments' first
    positions, ascending, none empty; ``vectors`` [N, D]. Returns [G, D] float32.

    ``np.add.reduceat`` does the same in four times the time where segments are short.
    """
    counts = np.diff(np.append(starts, len(rows)))
    sums = np.zeros((len(starts), vectors.shape[1]), np.float32)
    for group in np.flatnonzero(counts > LONG):
        for lo in range(starts[group], starts[group] + counts[group], CHUNK):
            hi = min(lo + CHUNK, starts[group] + counts[group])
            sums[group] += coefficients[lo:hi] @ vectors[rows[lo:hi]]
    groups = np.flatnonzero(counts <= LONG)
    rank = 0
    while len(groups):  # round by round: the rank-th member of every segment that has one
        members = starts[groups] + rank
        for lo in range(0, len(groups), CHUNK):
            some = members[lo : lo + CHUNK]
            block = vectors[rows[some]]
            block *= coefficients[some, None]
            sums[groups[lo : lo + CHUNK]] += block
        rank += 1
        groups = groups[counts[groups] > rank]
    return sums
