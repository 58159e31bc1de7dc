"""What a ranking yields for one user: contents in order, with their scores and the reasons.

These are message parts as well: a slate (:mod:`stream_app.recommendations.slate`) carries its items
just as they were ranked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from stream_app.interests.record import InterestRecord

Kind = Literal["personal", "cold_start", "fallback"]


class Reason(msgspec.Struct, frozen=True):
    """A past interaction that speaks for the content; see :mod:`stream_app.ranking.explain`."""

    content_id: str
    action: str
    share: float
    """Part of the interest score that this interaction carries."""


class Parts(msgspec.Struct, frozen=True):
    """The weighted summands of a score."""

    interest: float
    recency: float
    popularity: float
    match: float


class Item(msgspec.Struct, frozen=True):
    """One recommended content."""

    content_id: str
    score: float
    """Sum of the parts. The order of a slate is not that of the scores alone: diversity counts."""
    parts: Parts
    reasons: list[Reason]


@dataclass(frozen=True, slots=True)
class Ranked:
    """One user's ranking."""

    user_id: bytes
    record: InterestRecord | None
    """What it was ranked by"""
    kind: Kind
    items: list[Item]
    """Best first"""
