"""The slate: what a user is shown, as it stands on ``recommendations`` (JSON, keyed by user_id)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import msgspec
import xxhash

COLD_START_USER = b"\x00cold-start"
"""Reserved key: the slate for users whom nobody knows yet, fresh and popular. A subscriber shows it to
whoever has no slate of their own. Keys that start with a zero byte are never a user's."""

Kind = Literal["personal", "cold_start", "fallback"]

_LATEST_MS = 253_402_300_799_999  # the year 9999 ends: RFC 3339 goes no further


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


class Cause(msgspec.Struct, frozen=True):
    """The event that was applied last before this ranking."""

    topic: str
    partition: int
    offset: int
    occurred_at: str
    """RFC 3339, UTC: when the user acted"""
    received_at: str
    """RFC 3339, UTC: Kafka timestamp of the event; from here on freshness is measured"""


class Slate(msgspec.Struct, frozen=True):
    """The recommendations of one user, best first."""

    user_id: str
    generated_at: str
    """RFC 3339, UTC, wall clock"""
    model: str
    """Id of the text encoder"""
    caused_by: Cause | None
    """None for a slate that no event of the user caused"""
    kind: Kind
    """personal; cold_start: fresh and popular contents, for want of interests; fallback: likewise,
    for want of a device or of time"""
    items: list[Item]


def rfc3339(ms: int) -> str:
    """Unix milliseconds as RFC 3339 in UTC; times outside the years 1970 to 9999 are clamped.

    >>> rfc3339(1_700_000_000_123)
    '2023-11-14T22:13:20.123Z'
    """
    seconds, rest = divmod(min(max(ms, 0), _LATEST_MS), 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"


def milliseconds(text: str) -> int:
    """Unix milliseconds of an RFC 3339 time."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def fingerprint(slate: Slate) -> int:
    """64-bit identity of what a subscriber would show: the content ids in their order.

    Scores, parts and reasons are left out on purpose: recency and popularity move them at every
    instant, and a slate that shows the same contents in the same order is not news.
    """
    ids = xxhash.xxh3_64()
    for item in slate.items:
        content_id = item.content_id.encode()
        ids.update(len(content_id).to_bytes(4, "little"))
        ids.update(content_id)
    return ids.intdigest()


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Slate)


def encode(slate: Slate) -> bytes:
    """JSON of one slate."""
    return _encoder.encode(slate)


def decode(value: bytes) -> Slate:
    """Slate from its JSON. Raises msgspec.DecodeError."""
    return _decoder.decode(value)
