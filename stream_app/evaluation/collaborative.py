"""Baselines that know persons by what they engaged with: item-kNN, matrix factorisation, content profile."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stream_app.evaluation.baselines import HOUR_MS
from stream_app.evaluation.scorer import Scores, Touch, World
from stream_app.topics import DAY_MS

LARGEST_EXPONENT = 30.0


class ItemKnn:
    """Contents that were engaged with by the users who engaged with the same as this one, kept incrementally.

    ``score[j] = Σ_i 2^(-p[i]/f) · c[i, j] / (n[i]^a · n[j]^a)`` over the user's contents i, where c counts
    the users who engaged with both and n those who engaged with one, all decayed with one half-life; p[i]
    is how many contents the user has engaged with since i. Takes 4 N² bytes.

    Counts are kept as ``Σ 2^((t - t0)/h)``, which orders contents alike at any time; t0 moves on before
    float32 overflows.
    """

    def __init__(self, world: World, fading: float, exponent: float, half_life_h: float) -> None:
        n = world.contents
        self._exponent, self._half_life_ms = np.float32(exponent), half_life_h * HOUR_MS
        # newest first; what is further back weighs less than a thousandth
        self._fading: NDArray[np.float32] = np.exp2(-np.arange(math.ceil(10 * fading)) / fading).astype(
            np.float32
        )
        self._together = np.zeros((n, n), np.float32)
        self._readers = np.zeros(n, np.float32)
        self._known: dict[int, list[int]] = {}
        self._begin = int(world.due[0]) if n else 0

    def score(self, now: int, user: int, count: int) -> Scores:
        """Zeros for a user without a history."""
        known = self._known.get(user, [])[: -len(self._fading) - 1 : -1]
        if not known:
            return np.zeros(count, np.float32)
        damped: NDArray[np.float32] = np.maximum(self._readers, np.float32(1e-30)) ** -self._exponent
        weights: NDArray[np.float32] = damped[known] * self._fading[: len(known)]
        scores: NDArray[np.float32] = (weights @ self._together[known, :count]) * damped[:count]
        return scores

    def update(self, touch: Touch) -> None:
        """Count a first engagement, which may be worth nothing, with each of the user's earlier ones."""
        if not touch.first or touch.weight < 0:
            return
        exponent = (touch.time - self._begin) / self._half_life_ms
        if exponent > LARGEST_EXPONENT:
            self._together *= np.float32(2.0**-exponent)
            self._readers *= np.float32(2.0**-exponent)
            self._begin, exponent = touch.time, 0.0
        one = np.float32(2.0**exponent)
        known = self._known.setdefault(touch.user, [])
        self._together[known, touch.content] += one
        self._together[touch.content, known] += one
        self._readers[touch.content] += one
        known.append(touch.content)


class Bpr:
    """Matrix factorisation trained online on pairs: what was engaged with stands above ``negatives``
    contents drawn from those published that the user does not know.

    ``score = p[user] · q[content] + b[content]``; each first engagement takes one gradient step of
    ``-log σ(score_positive - score_negative)`` per negative.
    """

    def __init__(
        self,
        world: World,
        rate: float,
        dimensions: int = 32,
        negatives: int = 8,
        decay: float = 0.01,
        seed: int = 0,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._users = self._rng.normal(0, 0.1, (world.users, dimensions))
        self._contents = self._rng.normal(0, 0.1, (world.contents, dimensions))
        self._bias = np.zeros(world.contents)
        self._rate, self._negatives, self._decay = rate, negatives, decay
        self._due = world.due
        self._known: dict[int, set[int]] = {}

    def score(self, now: int, user: int, count: int) -> Scores:
        """Products and biases."""
        scores: Scores = self._contents[:count] @ self._users[user] + self._bias[:count]
        return scores

    def update(self, touch: Touch) -> None:
        """One step."""
        if not touch.first or touch.weight <= 0:
            return
        known = self._known.setdefault(touch.user, set())
        known.add(touch.content)
        count = int(np.searchsorted(self._due, touch.now, side="right"))
        drawn = [j for j in self._rng.integers(0, max(count, 1), self._negatives).tolist() if j not in known]
        negative = np.array(list(dict.fromkeys(drawn)), np.int64)
        p, q = self._users[touch.user].copy(), self._contents[touch.content].copy()
        others = self._contents[negative]
        margin = (q - others) @ p + self._bias[touch.content] - self._bias[negative]
        pull = self._rate / (1 + np.exp(np.clip(margin, -LARGEST_EXPONENT, LARGEST_EXPONENT)))  # [negatives]
        shrink = self._rate * self._decay
        self._users[touch.user] += pull @ (q - others) - shrink * p
        self._contents[touch.content] += pull.sum() * p - shrink * q
        self._contents[negative] -= pull[:, None] * p + shrink * others
        self._bias[touch.content] += pull.sum()
        self._bias[negative] -= pull


class ContentProfile:
    """Cosine of the content with the decayed, weighted sum of what the user engaged with; the mean of
    the contents engaged with so far is subtracted from all vectors."""

    def __init__(self, world: World, half_life_days: float) -> None:
        self._vectors = world.vectors
        self._half_life_ms = half_life_days * DAY_MS
        self._sums = np.zeros((world.users, world.vectors.shape[1]), np.float32)
        self._masses = np.zeros(world.users, np.float32)
        self._times = np.zeros(world.users, np.int64)
        self._mean = np.zeros(world.vectors.shape[1], np.float32)
        self._events = 0

    def score(self, now: int, user: int, count: int) -> Scores:
        """Zeros for a user without a history."""
        if not self._masses[user]:
            return np.zeros(count, np.float32)
        profile = self._sums[user] - self._masses[user] * self._mean
        both = self._vectors[:count] @ np.stack([profile, self._mean], axis=1)  # [count, 2]
        # |v - m|² from what is known of unit vectors
        squares = np.maximum(1 - 2 * both[:, 1] + np.float32(self._mean @ self._mean), np.float32(1e-6))
        scores: NDArray[np.float32] = (both[:, 0] - np.float32(self._mean @ profile)) / np.sqrt(squares)
        return scores

    def update(self, touch: Touch) -> None:
        """Decay the user's sum and add the content."""
        if touch.undo:
            return
        vector, user = self._vectors[touch.content], touch.user
        self._events += 1
        self._mean += (vector - self._mean) / np.float32(self._events)
        left = np.float32(2.0 ** (-max(touch.time - int(self._times[user]), 0) / self._half_life_ms))
        self._times[user] = max(touch.time, int(self._times[user]))
        weight = np.float32(touch.weight)
        self._sums[user] = self._sums[user] * left + weight * vector
        self._masses[user] = self._masses[user] * left + weight
