"""What is known of each (user, candidate): the features that a ranker weighs.

See :mod:`stream_app.ranking.device` for the legend.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stream_app.ranking.device import products
from stream_app.ranking.retrieve import Candidates


@dataclass(frozen=True)
class Features:
    """Features of the candidates, each [B, K] float32."""

    interest: Tensor
    """cosine of S and the content, -1..1"""
    recency: Tensor
    """2^(-age / half-life), 0..1"""
    popularity: Tensor
    """decayed popularity, 0..1"""
    match: Tensor
    """best match: the largest of cosine · remaining weight over the recent positive interactions, 0..1"""
    closeness: Tensor
    """[B, K, R], cosine of each candidate and each recent interaction's content"""


def features(
    candidates: Candidates,
    interests: Tensor,
    recent_vectors: Tensor,
    recent_match: Tensor,
    recency: Tensor,
    popularity: Tensor,
) -> Features:
    """Features of all candidates.

    ``interests`` [B, D], ``recent_vectors`` [B, R, D], ``recent_match`` [B, R], ``recency`` and
    ``popularity`` [N] of the whole index.
    """
    closeness = torch.bmm(candidates.vectors, recent_vectors.transpose(1, 2))  # [B, K, R]
    # at least 0, as padding is worth 0: no match must not depend on whether there is padding
    match = (closeness * recent_match.unsqueeze(1)).amax(dim=2).clamp(min=0)
    return Features(
        interest=products(interests, candidates.vectors),
        recency=recency[candidates.rows],
        popularity=popularity[candidates.rows],
        match=match,
        closeness=closeness,
    )
