"""The learned ranker on the device: features of candidates, and their scores.

The same numbers as :func:`stream_app.learning.features.candidate_features` and
:meth:`SoftmaxRanker.score` for many users at once. See :mod:`stream_app.ranking.device` for the legend;
F features, M recent contents of a user, H hidden units.

A score is a logarithm of odds: one more multiplies the odds that the user chooses the content by e,
whoever the user and whatever the other candidates are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_app.learning import activity
from stream_app.learning.activity import AGE
from stream_app.learning.coengagement import AFTER, NEAR, STRONGLY, TOGETHER
from stream_app.learning.features import BEST_OF, NAMES, SHORT, STRONG_DECAY
from stream_app.learning.habits import AgeHabits
from stream_app.learning.model import LEAST_VARIANCE, LIMIT, SoftmaxRanker
from stream_app.ranking.candidates import Pool
from stream_app.ranking.catalogue import LiveCatalogue
from stream_app.ranking.device import DeviceIndex, products
from stream_app.ranking.histories import HistoryBatch
from stream_app.ranking.neighbours import NeighbourTable
from stream_app.ranking.ranked import SCORED

CHANNEL = (*(TOGETHER,) * 5, *(NEAR,) * 3, *(AFTER,) * 2, STRONGLY)
SCALE = (20.0, 10.0, 10.0, 10.0, 10.0, 50.0, 50.0, 10.0, 50.0, 50.0, 10.0)
REACH = (1, 48, None, None, None, 1, 48, None, 1, 48, None)
"""How many recent contents count: the last alone, those that have not faded (0.7^48 = 4e-8), or all. These
are of the eleven collaborative features."""
DAMPED = [1, 2, 3, 7]
"""Which of them also fall with the candidate's readers; the last one, with its strong ones."""

_PART = {
    **dict.fromkeys((n for n in NAMES if n.startswith(("engaged_", "weighted_"))), "popularity"),
    **dict.fromkeys(("readers", "since_engaged"), "popularity"),
    **dict.fromkeys(("age", "newer", "age_unnoticed", "unread"), "recency"),
    **dict.fromkeys((n for n in NAMES if n.startswith(("together_", "near_", "after_"))), "together"),
    **dict.fromkeys((n for n in NAMES if n.startswith("cosine_")), "interest"),
    "best_match": "match",
    "author": "author",
    **dict.fromkeys((n for n in NAMES if n.startswith(("age_habit", "age_dist", "age_follows"))), "habit"),
}


@dataclass(frozen=True)
class LearnedModel:
    """A published model; its arrays are on the device."""

    version: int
    habits: AgeHabits
    linear: Tensor
    """[F]"""
    groups: Tensor
    """[G, F], what is added for users of a group"""
    hidden: Tensor
    """[F, H]"""
    bias: Tensor
    """[H]"""
    output: Tensor
    """[H]"""
    reference: Tensor
    """[F], what scores are compared with: of the catalogue's features the mean, of the personal ones 0"""
    mean: Tensor
    """[F], of the features of candidates"""
    scale: Tensor
    """[F], one over their deviations"""
    parts: Tensor
    """[F, len(SCORED)], 1 where a feature belongs to a part"""

    @classmethod
    def of(cls, model: SoftmaxRanker, habits: AgeHabits, version: int, device: torch.device) -> LearnedModel:
        """A copy of ``model`` as it is now."""

        def put(array: NDArray[np.float32]) -> Tensor:
            return torch.from_numpy(array.copy()).to(device)

        parts = np.zeros((len(NAMES), len(SCORED)), np.float32)
        for feature, name in enumerate(NAMES):
            parts[feature, SCORED.index(_PART[name])] = 1
        return cls(
            version=version,
            habits=habits,
            **{name: put(array) for name, array in model.parameters.items()},
            reference=put(np.where(np.arange(len(NAMES)) < len(activity.NAMES), model.mean, np.float32(0))),
            mean=put(model.mean),
            scale=put(1 / np.sqrt(model.variance + np.float32(LEAST_VARIANCE))),
            parts=put(parts),
        )

    def weights(self, groups: Tensor) -> Tensor:
        """[B, F], the linear part's for users of ``groups`` [B, 2]."""
        return self.linear + self.groups[groups[:, 0]] + self.groups[groups[:, 1]]

    def score(self, features: Tensor, weights: Tensor) -> Tensor:
        """[B, K] for ``features`` [B, K, F] and ``weights`` [B, F].

        It is the model's score less what the linear part gives an average candidate of which nothing
        personal is to be said. That is the same for all candidates of a user, and so of no account; but the
        score tells how much the content stands out.
        """
        linear = products(weights, features) - (weights @ self.reference).unsqueeze(1)
        return linear + self._bend(features)

    def explained(self, features: Tensor, weights: Tensor) -> Tensor:
        """[B, k, len(SCORED)], the summands of :meth:`score`, by the part that each feature belongs to."""
        parts = ((features - self.reference) * weights.unsqueeze(1)) @ self.parts
        parts[:, :, SCORED.index("bend")] = self._bend(features)
        return parts

    def _bend(self, features: Tensor) -> Tensor:
        normal = ((features - self.mean) * self.scale).clamp_(-LIMIT, LIMIT)
        active = torch.addmm(self.bias, normal.flatten(0, 1), self.hidden).relu_()  # [B K, H]
        return (active @ self.output).view(features.shape[:2])


@dataclass(frozen=True)
class Users:
    """:class:`HistoryBatch` on the device; the fields have its names."""

    rows: Tensor
    lengths: Tensor
    coefficients: Tensor
    authors: Tensor
    author_values: Tensor
    lifts: Tensor
    last_age: Tensor
    follows: Tensor
    session: Tensor
    groups: Tensor

    @classmethod
    def of(cls, batch: HistoryBatch, device: torch.device) -> Users:
        """Copy."""
        return cls(
            **{name: torch.from_numpy(a).to(device, non_blocking=True) for name, a in vars(batch).items()}
        )

    def part(self, users: slice) -> Users:
        """Some of them."""
        return Users(**{name: tensor[users] for name, tensor in vars(self).items()})


def candidate_features(
    catalogue: LiveCatalogue, mirror: DeviceIndex, neighbours: NeighbourTable, pool: Pool, users: Users
) -> Tensor:
    """[B, K, F]; what stands at places that are not valid means nothing."""
    b, k = pool.rows.shape
    if pool.whole:
        shared = catalogue.shared.expand(b, -1, -1)
    else:
        shared = catalogue.shared.index_select(0, pool.rows.flatten()).view(b, k, -1)
    known = (users.lengths > 0).float().view(b, 1, 1)
    personal = torch.cat(
        [
            _collaborative(catalogue, neighbours, pool, users),
            _content(catalogue, mirror, pool, users),
            _author(mirror, pool, users).unsqueeze(2),
            _ages(catalogue, pool, users, shared[:, :, AGE]),
        ],
        dim=2,
    )
    return torch.cat([shared, personal * known], dim=2)


def _collaborative(catalogue: LiveCatalogue, neighbours: NeighbourTable, pool: Pool, users: Users) -> Tensor:
    """[B, K, 11]"""
    b, k = pool.rows.shape
    high, device = len(catalogue.shared), pool.rows.device
    m, width = users.rows.shape[1], neighbours.width  # M, Kn
    near = neighbours.rows[users.rows, :width].view(b, m * width).long()  # [B, M Kn], row + 1
    counts = neighbours.counts[users.rows, :, :width]  # [B, M, 4, Kn]
    if pool.whole:
        columns = near  # column 0 takes what is no neighbour
    else:
        places = torch.arange(1, k + 1, device=device).expand(b, -1)
        column_of = torch.zeros((b, high + 1), dtype=torch.int64, device=device)
        column_of.scatter_(1, torch.where(pool.valid, pool.rows + 1, 0), places)
        column_of[:, 0] = 0
        columns = column_of.gather(1, near)
    columns += torch.arange(b, device=device).unsqueeze(1) * (k + 1)
    columns = columns.view(b, m, width)
    sums = torch.zeros((len(CHANNEL), b * (k + 1)), device=device)
    for feature, (channel, reach) in enumerate(zip(CHANNEL, REACH, strict=True)):
        coefficients = users.coefficients[:, feature, :reach].unsqueeze(2)
        values = counts[:, :reach, channel] * coefficients  # [B, reach, Kn]
        sums[feature].scatter_add_(0, columns[:, :reach].flatten(), values.flatten())
    found = sums.view(len(CHANNEL), b, k + 1)[:, :, 1:]
    found = found * torch.tensor(SCALE, device=device).view(-1, 1, 1)
    own = catalogue.damped[:, pool.rows]  # [2, B, K]
    found[DAMPED] *= own[0]
    found[-1] *= own[1]
    return found.log1p_().permute(1, 2, 0)


def _content(catalogue: LiveCatalogue, mirror: DeviceIndex, pool: Pool, users: Users) -> Tensor:
    """[B, K, 4]"""
    b, m = users.rows.shape
    k, device, mean = pool.rows.shape[1], pool.rows.device, catalogue.mean
    place = torch.arange(m, device=device)
    present = place < users.lengths.unsqueeze(1)  # [B, M]
    recent = mirror.vectors.index_select(0, users.rows.flatten()).float().view(b, m, -1)
    present &= mirror.encoded[users.rows]  # the mean is no part of what has no vector
    recent = (recent - mean) * present.unsqueeze(2)
    decays = torch.stack([SHORT ** place.float(), STRONG_DECAY ** place.float()])  # [2, M]
    directions = torch.cat([recent[:, :1], decays @ recent, recent[:, :BEST_OF]], dim=1)  # [B, J, D]
    directions = directions / directions.norm(dim=2, keepdim=True).clamp(min=1e-6)
    offset = directions @ mean  # [B, J]
    if pool.whole:
        vectors = mirror.vectors[:k].float()  # [N, D]
        encoded = mirror.encoded[:k]  # [N]
        inner = (directions.flatten(0, 1) @ vectors.T).view(b, -1, k)  # [B, J, N]
        along = vectors @ mean  # [N]
    else:
        vectors = mirror.vectors.index_select(0, pool.rows.flatten()).float().view(b, k, -1)
        encoded = mirror.encoded[pool.rows].unsqueeze(1)  # [B, 1, K]
        inner = torch.bmm(directions, vectors.transpose(1, 2))  # [B, J, K]
        along = vectors @ mean  # [B, K]
    own = (1 - 2 * along + mean @ mean).clamp(min=0.05).sqrt()  # |v - mean| of unit vectors
    cosines = (inner - offset.unsqueeze(2)) / (own if own.dim() == 1 else own.unsqueeze(1))
    cosines *= encoded
    several = present[:, :BEST_OF]
    best = cosines[:, 3:].masked_fill(~several.unsqueeze(2), -2.0).amax(dim=1)
    best *= several.any(dim=1, keepdim=True)
    return torch.cat([cosines[:, :3], best.unsqueeze(1)], dim=1).transpose(1, 2)


def _author(mirror: DeviceIndex, pool: Pool, users: Users) -> Tensor:
    """[B, K]"""
    own = mirror.authors[pool.rows]
    place = torch.searchsorted(users.authors, own).clamp_(max=users.authors.shape[1] - 1)
    return torch.where(users.authors.gather(1, place) == own, users.author_values.gather(1, place), 0.0)


def _ages(catalogue: LiveCatalogue, pool: Pool, users: Users, age: Tensor) -> Tensor:
    """[B, K, 5] for contents of logarithmic ``age`` [B, K]."""
    lifts = users.lifts.gather(1, catalogue.bands[pool.rows])
    session = users.session.unsqueeze(1)
    distance = (age - users.last_age.unsqueeze(1)).abs()
    follows = users.follows.unsqueeze(1) * age
    return torch.stack([lifts, distance, distance * session, follows, follows * session], dim=2)
