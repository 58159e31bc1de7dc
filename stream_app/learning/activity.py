"""What the ranker reads of contents apart from any user: features of the whole catalogue at one time.

They are computed once and serve every user ranked at that time. Pure NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HALF_LIVES_H = (1 / 12, 1 / 3, 1.0, 4.0, 24.0, 96.0, 336.0, 1440.0)
"""Hours, from what is happening this minute to what lasted for months; as ``content-stats`` must have
them for the ranker."""

WEIGHTED = (2, 4, 6)
"""Which half-lives are also taken of the weighted sums: an hour, a day, two weeks."""

QUIET = 0.1
"""A tenth of an engagement is about where a content begins to be noticed: log(1 + x / QUIET)."""

NEVER = 15.0
"""What stands for the logarithm of the minutes since the last engagement where there was none."""

MINUTE_MS = 60_000.0

NAMES = (
    *(f"engaged_{name}" for name in ("5m", "20m", "1h", "4h", "1d", "4d", "14d", "60d")),
    *(f"weighted_{name}" for name in ("1h", "1d", "14d")),
    "readers",
    "since_engaged",
    "age",
    "newer",
    "engaged_later",
    "age_unnoticed",
    "unread",
)
"""Columns of :func:`catalogue_features`."""

AGE = NAMES.index("age")


@dataclass(frozen=True)
class Catalogue:
    """N contents at one time."""

    now: int
    """ms, stream time"""
    engaged: NDArray[np.float32]
    """[H, N], engagements of no negative weight, decayed to now at HALF_LIVES_H, ≥ 0"""
    weighted: NDArray[np.float32]
    """[len(WEIGHTED), N], sums of all weights, at those of the half-lives; ≥ 0"""
    engaged_at: NDArray[np.int64]
    """[N], ms, of the newest engagement; 0 where there was none"""
    readers: NDArray[np.float32]
    """[N], users who engaged with the content"""
    created_at: NDArray[np.int64]
    """[N], ms"""
    authors: NDArray[np.uint64]
    """[N], key64(author); 0 = unknown"""
    vectors: NDArray[np.float32]
    """[N, D], unit vectors, zero for contents without one; D may be 0"""
    mean: NDArray[np.float32]
    """[D], of the vectors of the contents published so far that have one"""


def log_minutes(age_ms: NDArray[np.int64]) -> NDArray[np.float32]:
    """``log(1 + minutes)``; what lies in the future has no age."""
    minutes = np.maximum(age_ms, 0) / MINUTE_MS
    logs: NDArray[np.float32] = np.log1p(minutes).astype(np.float32)
    return logs


def catalogue_features(catalogue: Catalogue) -> NDArray[np.float32]:
    """[N, len(NAMES)]: popularity at every half-life and what happens now, and age; each a logarithm, so
    that a weight is the exponent of a power law and the differences of two are trends.

    ``newer`` and ``engaged_later`` count contents: clocks that run as fast as the stream does.
    """
    n = len(catalogue.created_at)
    features = np.empty((n, len(NAMES)), np.float32)
    h, both = len(HALF_LIVES_H), len(HALF_LIVES_H) + len(WEIGHTED)
    features[:, :h] = np.log1p(catalogue.engaged.T * np.float32(1 / QUIET))
    features[:, h:both] = np.log1p(catalogue.weighted.T * np.float32(1 / QUIET))
    noticed = catalogue.engaged_at > 0
    age = log_minutes(catalogue.now - catalogue.created_at)
    readers = catalogue.readers
    features[:, both] = np.log1p(readers)
    features[:, both + 1] = np.where(noticed, log_minutes(catalogue.now - catalogue.engaged_at), NEVER)
    features[:, both + 2] = age
    features[:, both + 3] = np.log1p(_above(catalogue.created_at))
    features[:, both + 4] = np.log1p(_above(catalogue.engaged_at))
    features[:, both + 5] = np.where(readers < 2, age, 0)
    features[:, both + 6] = readers < 1
    return features


def _above(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N], how many are later than each."""
    ordered = np.sort(times)
    above: NDArray[np.int64] = len(times) - np.searchsorted(ordered, times, side="right")
    return above
