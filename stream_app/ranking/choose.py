"""The tensor part of a ranking: from a micro-batch of users to the places of their slates.

Two rankers of one pattern: candidates → features → scores → diversify → explain. Each synchronises the GPU
once, at its end, so on CUDA that step's seconds hold what the ones before have queued. See
:mod:`stream_app.ranking.device` for the legend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_app.observability import metrics
from stream_app.ranking.blend import blend
from stream_app.ranking.candidates import Pool, everything, union
from stream_app.ranking.catalogue import LiveCatalogue
from stream_app.ranking.device import DeviceIndex
from stream_app.ranking.diversify import diversify
from stream_app.ranking.explain import shares, top_reasons
from stream_app.ranking.fatigue import Tired
from stream_app.ranking.features import features
from stream_app.ranking.histories import HistoryBatch
from stream_app.ranking.learned import LearnedModel, Users, candidate_features
from stream_app.ranking.neighbours import NeighbourTable
from stream_app.ranking.ranked import SCORED
from stream_app.ranking.retrieve import masked_scores, retrieve, top
from stream_app.ranking.sides import sides
from stream_app.ranking.users import UserBatch
from stream_app.settings import Ranking

NEAR_CONTENTS = 8
"""Recent contents of a user whose neighbours are candidates."""
CPU_FEATURES = 8
"""Users whose features are computed at a time on a CPU: beyond some 30 MB a tensor gets fresh pages from the
system each time, and touching those took most of the time."""
BLEND_ODDS = 9.0
"""What one point of the blend is worth as a logarithm of odds, when variety and balance count beside it: the
slope at which its scores say best what users of a recorded log chose."""
_GRID = 2.0**14
"""Learned scores are rounded to this part of one: what differs by less is equal, and ordered by key."""


@dataclass(frozen=True)
class Chosen:
    """What the device hands back for B users: [B, k] and so on, on the host."""

    rows: NDArray[np.int64]
    """[B, k], -1 where there is none"""
    parts: NDArray[np.float64]
    """[B, k, P], in the order of SCORED"""
    shares: NDArray[np.float64]
    """[B, k, r], descending"""
    reasons: NDArray[np.int64]
    """[B, k, r], slots of the recent interactions"""
    fatigue: NDArray[np.float64]
    """[B, k], what was taken from the score; not among the parts"""
    full: NDArray[np.bool_]
    """[B], whether there may be more contents for the user than the candidates"""


@dataclass(frozen=True)
class UploadedPriors:
    """:class:`stream_app.ranking.retrieve.Priors` on the device, each [N]."""

    bias: Tensor
    recency: Tensor
    popularity: Tensor


@dataclass(frozen=True)
class Learned:
    """All that the learned ranker needs beside the index."""

    model: LearnedModel
    catalogue: LiveCatalogue
    neighbours: NeighbourTable


def choose_by_blend(
    ranking: Ranking, mirror: DeviceIndex, priors: UploadedPriors, batch: UserBatch, tired: Tired
) -> Chosen:
    """Slates by the fixed blend."""
    device = mirror.device
    with metrics.RANK_SECONDS.labels("retrieve").time():
        interests = _put(batch.interests, device)
        candidates = retrieve(
            mirror,
            interests,
            priors.bias,
            _put(batch.excluded.users, device),
            _put(batch.excluded.rows, device),
            ranking.weight_interest,
            ranking.candidates,
        )
    with metrics.RANK_SECONDS.labels("blend").time():
        recent = _recent_vectors(mirror, batch)
        known = features(
            candidates,
            interests,
            recent,
            _put(batch.recent_match, device),
            priors.recency,
            priors.popularity,
        )
        parts = blend(known, ranking)  # [B, K, 4]
        lost = tired.of_candidates(candidates.rows)  # [B, K]
    scores = BLEND_ODDS * (parts.sum(dim=2) - lost)
    chosen = diversified(
        ranking, mirror, batch, candidates.rows, candidates.valid, candidates.vectors, scores
    )
    with metrics.RANK_SECONDS.labels("explain").time():
        place = chosen.clamp(min=0)
        deep = place.unsqueeze(2)
        share, slots = top_reasons(
            shares(
                known.closeness.gather(1, deep.expand(-1, -1, recent.shape[1])),
                _put(batch.recent_share, device),
                known.interest.gather(1, place),
                _put(batch.norms, device),
            ),
            ranking.reasons,
        )
        rows = torch.where(chosen < 0, -1, candidates.rows.gather(1, place))
        parts = parts.gather(1, deep.expand(-1, -1, 4))
        full = candidates.valid.all(dim=1) & (candidates.valid.shape[1] < len(priors.bias))
        return _to_host_synchronising(rows, parts, share, slots, lost.gather(1, place), full)


def choose_by_model(
    ranking: Ranking,
    mirror: DeviceIndex,
    bias: Tensor,
    learned: Learned,
    batch: UserBatch,
    histories: HistoryBatch,
    tired: Tired,
) -> Chosen:
    """Slates by the learned ranker.

    Its scores are logarithms of odds, and variety and balance count beside them as they are: what a content
    like those above it loses has a meaning of its own, whoever the user and whatever the other candidates.
    Scaled by the spread of a user's candidates, one λ would mean another thing in every catalogue.
    """
    device = mirror.device
    users = Users.of(histories, device)
    model, neighbours = learned.model, learned.neighbours
    with metrics.RANK_SECONDS.labels("retrieve").time():
        interests = _put(batch.interests, device)
        without = _put(batch.excluded.users, device), _put(batch.excluded.rows, device)
        retrieval = masked_scores(mirror, interests, bias, *without, ranking.weight_interest)  # [B, N]
        if retrieval.shape[1] <= ranking.all_up_to:
            pool = everything(retrieval)
        else:
            near = neighbours.rows[users.rows[:, :NEAR_CONTENTS], : ranking.candidates_near]
            near = torch.where(_present(users, near), near.long() - 1, -1).flatten(1)
            retrieved = top(retrieval, ranking.candidates, mirror.keys[: len(bias)])
            pool = union(retrieval, retrieved, learned.catalogue.popular, near)
    with metrics.RANK_SECONDS.labels("score").time():
        size = CPU_FEATURES if device.type == "cpu" else len(users.rows)
        chunks = [slice(start, start + size) for start in range(0, len(users.rows), size)]
        several = [_best(ranking, mirror, learned, pool.part(some), users.part(some)) for some in chunks]
        best = Best(*(torch.cat(tensors) for tensors in zip(*several, strict=True)))
        vectors = mirror.vectors.index_select(0, best.rows.flatten()).float().view(*best.rows.shape, -1)
        lost = tired.of_candidates(best.rows)  # [B, K']
    chosen = diversified(ranking, mirror, batch, best.rows, best.valid, vectors, best.scores - lost)
    with metrics.RANK_SECONDS.labels("explain").time():
        place = chosen.clamp(min=0)
        deep = place.unsqueeze(2)
        known = best.features.gather(1, deep.expand(-1, -1, best.features.shape[2]))
        parts = model.explained(known, model.weights(users.groups))
        shown = vectors.gather(1, deep.expand(-1, -1, vectors.shape[2]))  # [B, k, D]
        share = shares(
            torch.bmm(shown, _recent_vectors(mirror, batch).transpose(1, 2)),
            _put(batch.recent_share, device),
            (shown * interests.unsqueeze(1)).sum(dim=2),
            _put(batch.norms, device),
        )
        # closeness to past interactions is a reason only where it spoke for the content
        for_it = parts[:, :, SCORED.index("interest")] + parts[:, :, SCORED.index("match")] > 0
        share, slots = top_reasons(share * for_it.unsqueeze(2), ranking.reasons)
        rows = torch.where(chosen < 0, -1, best.rows.gather(1, place))
        full = best.valid.all(dim=1) & (best.valid.shape[1] < len(bias))
        return _to_host_synchronising(rows, parts, share, slots, lost.gather(1, place), full)


class Best(NamedTuple):
    """The K' candidates of each user that the learned ranker scores highest, in the order of their keys."""

    rows: Tensor
    """[B, K']"""
    valid: Tensor
    """[B, K'], False where there are fewer"""
    scores: Tensor
    """[B, K'], 0 where not valid"""
    features: Tensor
    """[B, K', F]"""


def _best(ranking: Ranking, mirror: DeviceIndex, learned: Learned, pool: Pool, users: Users) -> Best:
    model = learned.model
    known = candidate_features(learned.catalogue, mirror, learned.neighbours, pool, users)  # [B, K, F]
    scores = torch.round(model.score(known, model.weights(users.groups)) * _GRID) / _GRID + 0.0  # no -0
    scores.masked_fill_(~pool.valid, -torch.inf)
    keys = mirror.keys[pool.rows]
    best = top(scores, ranking.candidates, keys)  # [B, K']
    best = best.gather(1, keys.gather(1, best).argsort(dim=1))
    scores = scores.gather(1, best)
    valid = scores > -torch.inf
    return Best(
        rows=pool.rows.gather(1, best),
        valid=valid,
        scores=scores.masked_fill_(~valid, 0.0),
        features=known.gather(1, best.unsqueeze(2).expand(-1, -1, known.shape[2])),
    )


def diversified(
    ranking: Ranking,
    mirror: DeviceIndex,
    batch: UserBatch,
    rows: Tensor,
    valid: Tensor,
    vectors: Tensor,
    scores: Tensor,
) -> Tensor:
    """[B, k], places of the slate among the candidates [B, K']; -1 where there is none"""
    with metrics.RANK_SECONDS.labels("diversify").time():
        of_user = None
        if ranking.calibration:
            weights = _put(batch.recent_share, mirror.device)
            of_user = sides(vectors, _recent_vectors(mirror, batch), weights, mirror.mean)
        return diversify(
            scores,
            valid,
            vectors,
            mirror.authors[rows],
            ranking.slate_size,
            ranking.diversity,
            ranking.author_cap,
            of_user,
            ranking.calibration,
        )


def _present(users: Users, near: Tensor) -> Tensor:
    """Which of ``near`` [B, m, X] are of a recent content of the user, and are any: the rest is padding."""
    place = torch.arange(near.shape[1], device=near.device)
    return (place < users.lengths.unsqueeze(1)).unsqueeze(2) & (near > 0)


def _recent_vectors(mirror: DeviceIndex, batch: UserBatch) -> Tensor:
    """[B, R, D] float32"""
    recent = _put(batch.recent_rows, mirror.device)
    return mirror.vectors.index_select(0, recent.flatten()).float().view(*recent.shape, -1)


def _put(array: NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)


def _to_host_synchronising(
    rows: Tensor, parts: Tensor, share: Tensor, slots: Tensor, lost: Tensor, full: Tensor
) -> Chosen:
    """Waits for the device. Floats are rounded to 6 digits, beyond which they say nothing."""
    return Chosen(
        rows.cpu().numpy(),
        np.round(parts.double().cpu().numpy(), 6),
        np.round(share.double().cpu().numpy(), 6),
        slots.cpu().numpy(),
        np.round(lost.double().cpu().numpy(), 6),
        full.cpu().numpy(),
    )
