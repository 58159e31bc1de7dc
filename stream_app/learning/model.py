"""A listwise ranker trained by one gradient step a choice: softmax over candidates, Adagrad. Pure NumPy.

Score of a candidate with features x for a user in the groups a and b::

    z = clip((x - mean) / deviation, ±4)
    s(x) = (w + u[a] + u[b]) · x  +  v · max(0, Wᵀ z + c)

a linear part, whose weights may differ between groups of users, and a small hidden layer that bends it.
The user chose candidate t out of a list: the loss is the negative log likelihood of that choice under a
softmax (McFadden's conditional logit, 1973; ListNet's top-one probability, Cao et al., 2007),

    L = log Σ_j exp(s_j + o_j) - (s_t + o_t),        dL/ds_j = p_j - [j = t],

where o_j is the logarithm of how many candidates a drawn one stands for, so that a list with a sample of
the tail has the expected sum of the whole (importance sampling, Bengio and Senécal, 2003). Each parameter
moves by ``-rate · g / √(Σ g²)`` (Adagrad, Duchi et al., 2011): no rate has to fit the features' scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType

import numpy as np
from numpy.typing import NDArray

from stream_app.errors import LearningError

Floats = NDArray[np.float32]

LIMIT = 4.0
"""Deviations beyond which a feature of the hidden layer counts as no larger."""
LEAST_RATE = 0.002
"""Of forgetting in the running mean and deviation: they reach back some hundred lists."""
LEAST_VARIANCE = 1e-4
LARGEST = 1e6
"""No feature may be larger: they are logarithms, cosines and shares."""


@dataclass(frozen=True)
class Rates:
    """Adagrad's steps, and the sums of squares it begins with (larger: more careful at first)."""

    linear: float = 0.1
    linear_begin: float = 1e-6
    groups: float = 0.05
    groups_begin: float = 1.0
    hidden: float = 0.05
    hidden_begin: float = 0.1


class SoftmaxRanker:
    """F features, G groups of users, H hidden units; float32 throughout."""

    def __init__(
        self, names: Sequence[str], groups: int, hidden: int = 64, seed: int = 0, rates: Rates | None = None
    ) -> None:
        """An untrained model of the features ``names`` [F]; its scores are nearly zero."""
        rates = rates or Rates()
        random = np.random.default_rng(seed)
        f = len(names)
        self.names = tuple(names)
        self.steps = 0
        self.parameters: dict[str, Floats] = {
            "linear": np.zeros(f, np.float32),
            "groups": np.zeros((groups, f), np.float32),
            "hidden": (random.normal(size=(f, hidden)) / np.sqrt(max(f, 1))).astype(np.float32),
            "bias": np.zeros(hidden, np.float32),
            "output": random.normal(scale=0.1, size=hidden).astype(np.float32),
        }
        """w [F], u [G, F], W [F, H], c [H], v [H]"""
        rate = {"linear": rates.linear, "groups": rates.groups}
        begin = {"linear": rates.linear_begin, "groups": rates.groups_begin}
        self._rates = {name: np.float32(rate.get(name, rates.hidden)) for name in self.parameters}
        self.squares: dict[str, Floats] = {
            name: np.full_like(p, begin.get(name, rates.hidden_begin)) for name, p in self.parameters.items()
        }
        """Sums of squared gradients, shaped like the parameters"""
        self.mean: Floats = np.zeros(f, np.float32)
        """[F], running mean of the features over candidates"""
        self.variance: Floats = np.ones(f, np.float32)
        """[F], running mean of the squared distance from it"""

    def score(self, features: Floats, groups: tuple[int, int]) -> Floats:
        """[n] scores of the candidates with ``features`` [n, F]; reads only, and a candidate's score does
        not depend on the others."""
        scores: Floats = features @ self._weights(groups)
        return scores + self._hidden(self._normal(features)) @ self.parameters["output"]

    def learn(self, features: Floats, groups: tuple[int, int], chosen: int, offsets: Floats) -> float:
        """One step on a list of candidates with ``features`` [n, F] and ``offsets`` o [n], of which the
        user chose the one at ``chosen``. Returns the loss before the step.

        Raises LearningError when a feature is out of range or a gradient not finite; the model is then as
        it was.
        """
        if not (np.abs(features) <= LARGEST).all():
            column = int(np.argmin((np.abs(features) <= LARGEST).all(axis=0)))
            raise LearningError(f"feature {self.names[column]} of a candidate is not finite or out of range")
        normal = self._normal(features)  # [n, F]
        active = self._hidden(normal)  # [n, H]
        logits = features @ self._weights(groups) + active @ self.parameters["output"] + offsets
        logits -= logits.max()
        odds = np.exp(logits)
        total = odds.sum()
        loss = float(np.log(total) - logits[chosen])
        error: Floats = odds / total  # [n], dL/ds
        error[chosen] -= 1
        behind = np.outer(error, self.parameters["output"])  # [n, H]
        behind *= active > 0
        weights = error @ features
        gradients = {
            "linear": weights,
            "hidden": normal.T @ behind,
            "bias": behind.sum(axis=0),
            "output": error @ active,
        }
        if not (np.isfinite(loss) and all(np.isfinite(g).all() for g in gradients.values())):
            raise LearningError("a step of the learned ranker is not finite")
        for name, gradient in gradients.items():
            self._step(name, ..., gradient)
        for group in set(groups):
            self._step("groups", group, weights)
        self._follow(features)
        self.steps += 1
        return loss

    def _weights(self, groups: tuple[int, int]) -> Floats:
        own = self.parameters["groups"]
        weights: Floats = self.parameters["linear"] + own[groups[0]] + own[groups[1]]
        return weights

    def _normal(self, features: Floats) -> Floats:
        scale = 1 / np.sqrt(self.variance + np.float32(LEAST_VARIANCE))
        normal: Floats = np.clip((features - self.mean) * scale, -LIMIT, LIMIT)
        return normal

    def _hidden(self, normal: Floats) -> Floats:
        hidden: Floats = np.maximum(normal @ self.parameters["hidden"] + self.parameters["bias"], 0)
        return hidden

    def _step(self, name: str, place: int | EllipsisType, gradient: Floats) -> None:
        self.squares[name][place] += gradient * gradient
        step = self._rates[name] * gradient / np.sqrt(self.squares[name][place])
        self.parameters[name][place] -= step

    def _follow(self, features: Floats) -> None:
        """Move mean and variance towards those of one list; all lists count alike at first."""
        part = np.float32(max(LEAST_RATE, 1 / (self.steps + 1)))
        self.mean += part * (features.mean(axis=0) - self.mean)
        distance = features - self.mean
        self.variance += part * ((distance * distance).mean(axis=0) - self.variance)
