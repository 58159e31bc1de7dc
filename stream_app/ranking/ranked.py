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
Source = Literal["ranked", "explore"]


User = tuple[bytes, InterestRecord | None]
"""user_id and the newest record, None where nothing is known of the user."""


class Reason(msgspec.Struct, frozen=True, gc=False):
    """A past interaction that speaks for the content; see :mod:`stream_app.ranking.explain`."""

    content_id: str
    action: str
    share: float
    """Part of the interest score that this interaction carries."""


class Parts(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The summands of a score, by what they speak of. Those of the learned ranker are logarithms of odds, and
    compare the content with an average one: what is below zero speaks against it."""

    interest: float
    """closeness to the user's interests"""
    recency: float
    popularity: float
    match: float
    """closeness to one of the user's recent contents"""
    together: float = 0.0
    """has the same readers as the user's recent contents"""
    author: float = 0.0
    """is by an author of the user's recent contents"""
    habit: float = 0.0
    """is as old as what the user is used to reading"""
    bend: float = 0.0
    """what the learned ranker's hidden layer adds, which no single feature accounts for"""
    fatigue: float = 0.0
    """at most 0: what it loses because the user was shown it before and did not engage with it"""


PARTS = Parts.__struct_fields__
"""The names of the parts, in their order."""
SCORED = PARTS[:-1]
"""Those that a ranker computes; the last one is taken off afterwards."""

BLEND, LEARNED = "blend", "learned"
"""Rankers."""


class Item(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One recommended content."""

    content_id: str
    score: float
    """Sum of the parts. The order of a slate is not that of the scores alone: diversity counts. Scores of one
    ranker cannot be compared with those of another."""
    parts: Parts
    reasons: list[Reason]
    source: Source = "ranked"
    """ranked: its score put it there; explore: it was drawn by lot, and its score is 0"""
    propensity: float | None = None
    """Of what was drawn: the probability with which it was to stand in this slate"""


@dataclass(slots=True)
class Ranked:
    """One user's ranking."""

    user_id: bytes
    record: InterestRecord | None
    """What it was ranked by"""
    kind: Kind
    items: list[Item]
    """Best first"""
    arm: str = ""
    """Of the A/B arms"""
    ranker: str = BLEND
    """What ranked it: ``blend``, or ``learned-`` and the model's version"""
