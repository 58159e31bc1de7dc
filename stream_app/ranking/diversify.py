"""Slates that do not repeat themselves: greedy maximal marginal relevance and an author cap.

See :mod:`stream_app.ranking.device` for the legend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stream_app.ranking.device import products

_GRID = 2.0**20


def diversify(
    scores: Tensor, valid: Tensor, vectors: Tensor, authors: Tensor, places: int, diversity: float, cap: int
) -> Tensor:
    """Positions [B, places] of the chosen candidates in slate order, -1 where none is left.

    Each place takes the candidate with the largest ``(1 - λ) · score - λ · similarity``, where λ is
    ``diversity`` and the similarity is the largest cosine with what stands above it in the slate, at
    least 0 (being opposite to something is no merit). At most ``cap`` contents of one author, 0 = no
    cap; unknown authors (0) are never capped. Equal values, rounded to 2^-20 so that the last bits of
    a matrix product do not decide, go to the candidate that comes first.

    ``scores``, ``valid``, ``authors`` [B, K], ``vectors`` [B, K, D].
    """
    b, k = scores.shape
    users = torch.arange(b, device=scores.device)
    closed = ~valid  # [B, K]: chosen, capped or no candidate
    merit = _on_grid(scores) * (1.0 - diversity)
    similarity = torch.zeros_like(scores)
    by_author = torch.zeros_like(scores)  # [B, K]: how often the candidate's author stands in the slate
    chosen = torch.full((b, places), -1, dtype=torch.int64, device=scores.device)
    for place in range(min(places, k)):
        value = (merit - diversity * similarity).masked_fill_(closed, -torch.inf)
        best = value.argmax(dim=1)  # [B], the first of equals
        chosen[:, place] = torch.where(closed[users, best], -1, best)
        closed[users, best] = True
        if cap:
            author = authors[users, best].unsqueeze(1)  # [B, 1]
            by_author += (authors == author) & (author != 0)
            closed |= by_author >= cap
        if diversity and place + 1 < places:
            cosine = products(vectors[users, best], vectors)  # [B, K]
            similarity = torch.maximum(similarity, _on_grid(cosine))
    return chosen


def _on_grid(values: Tensor) -> Tensor:
    return torch.round(values * _GRID) / _GRID
