"""Is a series flat, and what was a histogram's quantile: the arithmetic of the soak. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

TOLERANCE = 0.02
"""Growth over the judged window, as a share of the mean, that still counts as flat."""


@dataclass(frozen=True)
class Trend:
    """A least-squares line through one series after its warm-up."""

    mean: float
    growth: float
    """Of the line, from the window's start to its end; in the series' unit."""
    noise: float
    """Standard deviation of what the line does not explain."""
    per_hour: float
    """Slope."""

    @property
    def flat(self) -> bool:
        """It grew by less than 2 % of its mean, or by less than it varies anyway. Shrinking is flat."""
        return self.growth <= max(TOLERANCE * abs(self.mean), self.noise)


def trend(seconds: Sequence[float], values: Sequence[float | None], warm_up_s: float) -> Trend | None:
    """The trend of the values after ``warm_up_s``, counted from the first sample.

    None with fewer than three values there: no line says anything about them.
    """
    if not seconds:
        return None
    start = seconds[0] + warm_up_s
    pairs = [(t, v) for t, v in zip(seconds, values, strict=True) if v is not None and t >= start]
    if len(pairs) < 3:
        return None
    t, v = np.array(pairs, np.float64).T
    slope, at_zero = np.polyfit(t - t[0], v, 1)
    noise = float(np.std(v - (at_zero + slope * (t - t[0]))))
    figures = (v.mean(), slope * (t[-1] - t[0]), noise, 3600.0 * slope)
    return Trend(*(round(float(figure), 6) for figure in figures))  # a constant's slope is exactly 0


def quantile(before: Mapping[float, float], after: Mapping[float, float], share: float) -> float | None:
    """A quantile of what a cumulative histogram (upper bound → count) took in between two readings.

    Linear within its bucket; the highest finite bound for what lies beyond it. None when nothing came.
    """
    bounds = sorted(after)
    counts = [after[bound] - before.get(bound, 0.0) for bound in bounds]
    if not counts or counts[-1] <= 0:
        return None
    wanted, below, lower = share * counts[-1], 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if count >= wanted and count > below:
            return (
                lower
                if bound == float("inf")
                else lower + (bound - lower) * (wanted - below) / (count - below)
            )
        below, lower = count, lower if bound == float("inf") else bound
    return lower
