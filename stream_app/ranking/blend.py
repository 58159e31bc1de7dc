"""The fixed blend: a score is the weighted sum of the features, its parts are the summands."""

from __future__ import annotations

import torch
from torch import Tensor

from stream_app.ranking.features import Features
from stream_app.settings import Ranking

PARTS = ("interest", "recency", "popularity", "match")
"""Names of the parts, in the order of :func:`blend`'s last axis."""


def blend(features: Features, ranking: Ranking) -> Tensor:
    """Weighted parts [B, K, 4]; a candidate's score is their sum."""
    return torch.stack([getattr(features, f) * getattr(ranking, f"weight_{f}") for f in PARTS], dim=2)
