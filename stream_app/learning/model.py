"""A listwise ranker trained by gradient steps on choices: softmax over candidates, Adagrad. Pure NumPy.

Score of a candidate with features x for a user in the groups a and b::

    z = clip((x - mean) / deviation, ±4)
    s(x) = (w + u[a] + u[b]) · x  +  v · max(0, Wᵀ z + c)

a linear part, whose weights may differ between groups of users, and a small hidden layer that bends it.
The user chose candidate t out of a list: the loss is the negative log likelihood of that choice under a
softmax (McFadden's conditional logit, 1973; ListNet's top-one probability, Cao et al., 2007),

    L = log Σ_j exp(s_j + o_j) - (s_t + o_t),        dL/ds_j = p_j - [j = t],

where o_j is the logarithm of how many candidates a drawn one stands for, so that a list with a sample of
the tail has the expected sum of the whole (importance sampling, Bengio and Senécal, 2003). Each parameter
moves by ``-rate · g / √(Σ g²)`` (Adagrad, Duchi et al., 2011): no rate has to fit the features' scale. A
step on several lists takes all gradients at the same parameters, and g is their sum: it goes no further than
that of one list, however much they agree. (With each list's own g² it could go √B times as far at once, and a
young model beyond its aim.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import NamedTuple

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


class Listed(NamedTuple):
    """One user's choice out of a list of n."""

    features: Floats
    """[n, F]"""
    groups: tuple[int, int]
    """Two different ones, that the user belongs to"""
    chosen: int
    """Place of what was chosen"""
    offsets: Floats
    """[n], o"""


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
        scores: Floats = features @ self._weights(np.array(groups))
        return scores + self._hidden(self._normal(features)) @ self.parameters["output"]

    def learn(self, lists: Sequence[Listed]) -> list[float]:
        """One step on the choices out of B lists; returns the losses [B] before it.

        Raises LearningError when a feature is out of range or a gradient not finite; the model is then as
        it was.
        """
        each, longest = np.arange(len(lists)), max(len(one.offsets) for one in lists)
        features = np.zeros((len(lists), longest, len(self.names)), np.float32)  # [B, n, F]
        offsets = np.full(features.shape[:2], -np.inf, np.float32)  # where a list is shorter nobody chooses
        for place, one in enumerate(lists):
            features[place, : len(one.offsets)] = one.features
            offsets[place, : len(one.offsets)] = one.offsets
        if not (fits := (np.abs(features) <= LARGEST).all(axis=(0, 1))).all():
            column = self.names[int(np.argmin(fits))]
            raise LearningError(f"feature {column} of a candidate is not finite or out of range")
        groups, chosen = np.array([one.groups for one in lists]), np.array([one.chosen for one in lists])
        output = self.parameters["output"]
        normal = self._normal(features)  # [B, n, F]
        active = self._hidden(normal)  # [B, n, H]
        logits = (features @ self._weights(groups)[:, :, None])[:, :, 0] + active @ output + offsets
        logits -= logits.max(axis=1, keepdims=True)
        odds = np.exp(logits)
        total = odds.sum(axis=1, keepdims=True)
        losses = np.log(total[:, 0]) - logits[each, chosen]
        error: Floats = odds / total  # [B, n], dL/ds
        error[each, chosen] -= 1
        behind = error[:, :, None] * output  # [B, n, H]
        behind *= active > 0
        weights = (error[:, None] @ features)[:, 0]  # [B, F]
        gradients = {
            "linear": weights,
            "hidden": normal.transpose(0, 2, 1) @ behind,
            "bias": behind.sum(axis=1),
            "output": (error[:, None] @ active)[:, 0],
        }
        if not (np.isfinite(losses).all() and all(np.isfinite(g).all() for g in gradients.values())):
            raise LearningError("a step of the learned ranker is not finite")
        for name, gradient in gradients.items():
            self._step(name, ..., gradient)
        for group in np.unique(groups):
            self._step("groups", int(group), weights[(groups == group).any(axis=1)])
        self._follow(features, np.isfinite(offsets))
        self.steps += len(lists)
        return [float(loss) for loss in losses]

    def _weights(self, groups: NDArray[np.integer]) -> Floats:
        """[..., F] of users in ``groups`` [..., 2]."""
        own = self.parameters["groups"]
        weights: Floats = self.parameters["linear"] + own[groups[..., 0]] + own[groups[..., 1]]
        return weights

    def _normal(self, features: Floats) -> Floats:
        scale = 1 / np.sqrt(self.variance + np.float32(LEAST_VARIANCE))
        normal: Floats = features - self.mean
        normal *= scale
        return np.clip(normal, -LIMIT, LIMIT, out=normal)

    def _hidden(self, normal: Floats) -> Floats:
        hidden: Floats = normal @ self.parameters["hidden"]
        hidden += self.parameters["bias"]
        return np.maximum(hidden, 0, out=hidden)

    def _step(self, name: str, place: int | EllipsisType, gradients: Floats) -> None:
        """By the sum of the ``gradients`` [b, ...] of b lists."""
        gradient = gradients.sum(axis=0)
        self.squares[name][place] += gradient * gradient
        step = self._rates[name] * gradient / np.sqrt(self.squares[name][place])
        self.parameters[name][place] -= step

    def _follow(self, features: Floats, listed: NDArray[np.bool_]) -> None:
        """Move mean and variance towards those of the ``features`` [B, n, F], of which some are ``listed``
        [B, n]; all lists count alike at first."""
        lists = len(features)
        part = np.float32(max(1 - (1 - LEAST_RATE) ** lists, lists / (self.steps + lists)))
        shares = (listed / listed.sum(axis=1, keepdims=True) / lists).astype(np.float32).ravel()  # [B n]
        features = features.reshape(-1, features.shape[2])
        self.mean += part * (shares @ features - self.mean)
        distance = features - self.mean
        self.variance += part * (shares @ (distance * distance) - self.variance)
