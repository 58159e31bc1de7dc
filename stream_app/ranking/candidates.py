"""Whom the learned ranker scores: a union of sources, a fixed number of places for each user.

See :mod:`stream_app.ranking.device` for the legend.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pool:
    """K candidates of each user."""

    rows: Tensor
    """[B, K], rows of the index"""
    valid: Tensor
    """[B, K], False for places that hold no candidate; a valid row stands at one place only"""
    whole: bool
    """Whether ``rows`` are all rows of the index, in their order, for every user"""

    def part(self, users: slice) -> Pool:
        """Of some of the users."""
        return Pool(self.rows[users], self.valid[users], self.whole)


def everything(scores: Tensor) -> Pool:
    """All rows of the index; ``scores`` [B, N] are -inf where a content is none of the user's candidates."""
    b, n = scores.shape
    return Pool(torch.arange(n, device=scores.device).expand(b, -1), scores > -torch.inf, whole=True)


def union(scores: Tensor, retrieved: Tensor, popular: Tensor, near: Tensor) -> Pool:
    """What was retrieved [B, K'], what is popular or new [G], and neighbours of the user's contents [B, X].

    ``scores`` [B, N] as for :func:`everything`; -1 in ``near`` stands for nothing.
    """
    b, n = scores.shape
    rows = torch.cat([retrieved, popular.expand(b, -1), near], dim=1)
    rows = rows.masked_fill(rows < 0, n).sort(dim=1).values  # [B, K]
    valid = rows < n
    valid[:, 1:] &= rows[:, 1:] != rows[:, :-1]
    rows = rows.clamp(max=n - 1)
    valid &= scores.gather(1, rows) > -torch.inf
    return Pool(rows, valid, whole=False)
