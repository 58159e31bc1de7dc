"""Baselines that know no person: a lot, the newest, and popularity with and without decay."""

from __future__ import annotations

import numpy as np

from stream_app.evaluation.scorer import Scores, Touch, World

HOUR_MS = 3_600_000.0


class Random:
    """Everything is worth the same: the harness's lots decide."""

    def __init__(self, world: World) -> None:
        self._scores = np.zeros(world.contents)

    def score(self, now: int, user: int, count: int) -> Scores:
        """Zeros."""
        return self._scores[:count]

    def update(self, touch: Touch) -> None:
        """Nothing to learn."""


class Newest:
    """The content created last comes first."""

    def __init__(self, world: World) -> None:
        self._created_at = world.created_at.astype(np.float64)

    def score(self, now: int, user: int, count: int) -> Scores:
        """Creation times; what is created in the future counts as just created."""
        return np.minimum(self._created_at[:count], now)

    def update(self, touch: Touch) -> None:
        """Nothing to learn."""


class Popularity:
    """How many users have engaged with a content."""

    def __init__(self, world: World) -> None:
        self._readers = np.zeros(world.contents)

    def score(self, now: int, user: int, count: int) -> Scores:
        """The counts."""
        return self._readers[:count]

    def update(self, touch: Touch) -> None:
        """Count a first engagement."""
        if touch.first and touch.weight > 0:
            self._readers[touch.content] += 1


class DecayedPopularity:
    """The same with a half-life h: ``Σ 2^(-(now - t)/h)`` over the users' first engagements.

    Kept as ``log2 Σ 2^(t/h)``, which orders contents alike at any time: nothing has to be decayed,
    and nothing underflows however short the half-life.
    """

    def __init__(self, world: World, half_life_h: float) -> None:
        self._half_life_ms = half_life_h * HOUR_MS
        self._begin = int(world.due[0]) if world.contents else 0
        self._logs = np.full(world.contents, -1e300)  # never touched: last, but recommended

    def score(self, now: int, user: int, count: int) -> Scores:
        """The logarithms."""
        return self._logs[:count]

    def update(self, touch: Touch) -> None:
        """Count a first engagement."""
        if touch.first and touch.weight > 0:
            gain = (touch.time - self._begin) / self._half_life_ms
            self._logs[touch.content] = np.logaddexp2(self._logs[touch.content], gain)
