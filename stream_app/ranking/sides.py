"""The sides of a user: what the recent interactions were about, and which side a candidate speaks to.

There are no categories, so a side is a heap of the user's recent contents that are like each other. See
:mod:`stream_app.ranking.device` for the legend; S sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stream_app.ranking.device import on_grid

MOST = 8
"""S: sides of one user; contents beyond the heaviest of them count nowhere."""
NONE = MOST
"""The side of contents without a vector: nobody's."""
ALIKE = 0.3
"""Cosine, the catalogue's mean subtracted, from which two contents are on one side."""


@dataclass(frozen=True)
class Sides:
    """Of B users, the heaviest side first."""

    of: Tensor
    """[B, K], the side of each candidate; NONE for what has no vector"""
    shares: Tensor
    """[B, S + 1], what each side has of the user's recent weight; they add up to 1, or are all 0 where a user
    has no side. That of NONE, the last one, is 0"""


def sides(vectors: Tensor, recent: Tensor, weights: Tensor, mean: Tensor) -> Sides:
    """Sides of the users, and of their candidates.

    ``vectors`` [B, K, D] of the candidates, ``recent`` [B, R, D] and ``weights`` [B, R] of the recent
    interactions, ``mean`` [D] of the catalogue; zeros for what has no vector. That and what has a weight of 0
    or less is on no side. The content that has the most weight around it (itself included) makes a side with
    all that is like it, then the next of those left over, up to MOST. A candidate is on the side of the
    recent content nearest to it.
    """
    weights = weights.clamp(min=0.0) * recent.any(dim=2)
    recent = torch.nn.functional.normalize(recent - mean, dim=2)
    users = torch.arange(len(weights), device=weights.device)
    alike = torch.bmm(recent, recent.transpose(1, 2)) >= ALIKE  # [B, R, R]
    # what lies at the mean has no direction, and is at least like itself
    alike |= torch.eye(alike.shape[1], dtype=torch.bool, device=alike.device)
    own = torch.zeros_like(weights, dtype=torch.int64)  # [B, R]
    free = weights > 0
    several = []
    for side in range(MOST):
        left = weights * free
        around = on_grid((alike * left.unsqueeze(1)).sum(dim=2)).masked_fill_(~free, -1.0)
        members = alike[users, around.argmax(dim=1)] & free
        own = torch.where(members, side, own)  # by a mask it would wait for the device
        several.append((left * members).sum(dim=1))
        free = free & ~members
    several.append(torch.zeros_like(several[0]))  # NONE's
    shares = torch.stack(several, dim=1)
    counted = (weights > 0) & ~free
    near = torch.bmm(torch.nn.functional.normalize(vectors - mean, dim=2), recent.transpose(1, 2))
    near = on_grid(near).masked_fill_(~counted.unsqueeze(1), -torch.inf)  # [B, K, R]
    of = own.gather(1, near.argmax(dim=2)).masked_fill_(~vectors.any(dim=2), NONE)
    return Sides(of, shares / shares.sum(dim=1, keepdim=True).clamp(min=1e-12))
