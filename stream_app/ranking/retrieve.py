"""Candidates: exact scores of every content for every user, priors added, masked, the top K kept.

The priors are what the blend adds for recency and popularity, so retrieval orders contents exactly as
the blend does but for the best match. See :mod:`stream_app.ranking.device` for the legend.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_app.content.index import ContentIndex
from stream_app.ranking.device import DeviceIndex
from stream_app.ranking.popularity import HOUR_MS, ContentStatistics
from stream_app.ranking.texts import SameTexts
from stream_app.ranking.users import DAY_MS
from stream_app.settings import Settings

_BLOCK = 32


@dataclass(frozen=True)
class Priors:
    """What each row of the index scores for anyone at one time; ``high`` rows, NumPy."""

    now: int
    """ms, stream time"""
    recency: NDArray[np.float32]
    """[N], 2^(-age / half-life) in 0..1; a content slightly ahead of stream time counts as new"""
    popularity: NDArray[np.float32]
    """[N] in 0..1"""
    bias: NDArray[np.float32]
    """[N], their weighted sum; -inf for a row that is free, older than ranking.max_age_days, or
    created after stream time by more than the clocks' skew (events.max_future_s); and for all but one of
    the rows that hold the same text, so that no slate says the same twice.
    """


def priors(
    settings: Settings, index: ContentIndex, statistics: ContentStatistics, texts: SameTexts, now_ms: int
) -> Priors:
    """The priors of all rows at ``now_ms``; ``texts`` are those of the index."""
    high, ranking = index.high, settings.ranking
    lead = index.created_by(now_ms) - now_ms  # [N], ms; positive: created after stream time
    age = np.maximum(-lead, 0).astype(np.float32)
    recency = np.exp2(age * np.float32(-1.0 / (ranking.recency_half_life_h * HOUR_MS)))
    half_life = statistics.nearest_half_life(ranking.popularity_half_life_h)
    popularity = statistics.popularity(half_life, now_ms)
    bias = np.float32(ranking.weight_recency) * recency + np.float32(ranking.weight_popularity) * popularity
    # a replayed year has its whole catalogue at hand: what it had not seen yet is none of its candidates
    future = lead > settings.events.max_future_s * 1000
    bias[~index.live[:high] | (age > ranking.max_age_days * DAY_MS) | future] = -np.inf
    bias[texts.spare(bias > -np.inf, popularity)] = -np.inf
    return Priors(now_ms, recency, popularity, bias)


@dataclass(frozen=True)
class Candidates:
    """K candidates of each user, in the order of their keys: later ties go to the lowest key."""

    rows: Tensor
    """[B, K], rows of the index"""
    valid: Tensor
    """[B, K], False where a user has fewer than K candidates"""
    vectors: Tensor
    """[B, K, D] float32"""


def retrieve(
    index: DeviceIndex,
    interests: Tensor,
    bias: Tensor,
    excluded_users: Tensor,
    excluded_rows: Tensor,
    weight_interest: float,
    count: int,
) -> Candidates:
    """Top ``count`` contents of each user by ``weight_interest · cosine + bias``.

    ``interests`` [B, D] float32 unit vectors or zero, ``bias`` [N] float32, ``excluded_*`` [X].
    """
    scores = masked_scores(index, interests, bias, excluded_users, excluded_rows, weight_interest)
    rows = top(scores, count, index.keys[: len(bias)])  # [B, K]
    order = index.keys[rows].argsort(dim=1)
    rows = rows.gather(1, order)
    valid = scores.gather(1, rows) > -torch.inf
    # index_select, because it copies whole rows in parallel where indexing does not
    vectors = index.vectors.index_select(0, rows.flatten()).float().view(*rows.shape, -1)  # [B, K, D]
    return Candidates(rows, valid, vectors)


def masked_scores(
    index: DeviceIndex,
    interests: Tensor,
    bias: Tensor,
    excluded_users: Tensor,
    excluded_rows: Tensor,
    weight_interest: float,
) -> Tensor:
    """[B, N], ``weight_interest · cosine + bias``, arguments as for :func:`retrieve`; -inf for what must not
    be recommended to the user."""
    scores = _scores(index.vectors[: len(bias)], interests * weight_interest, bias)
    scores[excluded_users, excluded_rows] = -torch.inf
    return scores


def _scores(contents: Tensor, interests: Tensor, bias: Tensor) -> Tensor:
    """[B, N] float32; in the contents' precision but for the bias, which halves would swallow."""
    if contents.dtype == torch.float32:
        return torch.addmm(bias, interests, contents.T)
    return (interests.to(contents.dtype) @ contents.T).float().add_(bias)


def top(scores: Tensor, count: int, keys: Tensor) -> Tensor:
    """Columns of the ``count`` largest of each row, of all where there are fewer; in no order.

    Equal ones, down to the last bit, count by the upper halves of their ``keys`` [N] or [B, N] int64, the
    lowest first: every worker takes the same contents, whatever rows they stand in. ``scores`` [B, N] are
    float32.
    """
    bits = scores.view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # of the same order as the scores
    return _largest((bits.long() << 32) + (0x7FFFFFFF - (keys >> 32)), count)


def _largest(scores: Tensor, count: int) -> Tensor:
    """:func:`top` of numbers that all differ.

    They lie in the ``count`` blocks with the largest maxima (and the rest that fills no block): that
    is exact, and reads [B, N] once at memory speed, where selecting from whole rows is slow for few rows.
    """
    b, n = scores.shape
    count = min(count, n)
    blocks = n // _BLOCK
    if blocks <= 2 * count:
        return scores.topk(count, dim=1, sorted=False).indices
    best = scores[:, : blocks * _BLOCK].view(b, blocks, _BLOCK).amax(dim=2)  # [B, N/32]
    largest = best.topk(count, dim=1, sorted=False).indices  # [B, K]
    inside = torch.arange(_BLOCK, device=scores.device)
    rest = torch.arange(blocks * _BLOCK, n, device=scores.device).expand(b, -1)
    inner = (largest.unsqueeze(2) * _BLOCK + inside).view(b, -1)
    columns = torch.cat([inner, rest], dim=1)  # [B, 32 K + rest]
    picked = scores.gather(1, columns).topk(count, dim=1, sorted=False).indices
    return columns.gather(1, picked)
