"""The slate: what a user is shown, as it stands on ``recommendations`` (JSON, keyed by user_id)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from stream_app.hashing import action_code, key64
from stream_app.interests.record import InterestRecord
from stream_app.ranking.ranked import BLEND, Item, Kind, Ranked
from stream_app.settings import Settings

COLD_START_USER = b"\x00cold-start"
"""Reserved key: the slate for users whom nobody knows yet, fresh and popular. A subscriber shows it to
whoever has no slate of their own. Keys that start with a zero byte are never a user's."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST_MS = 253_402_300_799_999  # the year 9999 ends: RFC 3339 goes no further


class Cause(msgspec.Struct, frozen=True, gc=False):
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
    """None where nothing is left that the user has not engaged with"""
    arm: str = ""
    """The A/B arm that the user is in"""
    ranker: str = BLEND
    """What ranked it: blend, or learned- and the model's version"""
    slate_id: str = ""
    """Names this slate; give it in impressions. Opaque: the same for the same user, time and contents"""


class SlateMaker:
    """Makes slates of what was ranked."""

    def __init__(self, settings: Settings, model: str) -> None:
        """``model`` is the text encoder's id."""
        self._model = model
        self._topics = {action_code(a.name): settings.topic_name(a.topic) for a in settings.events.actions}

    def slate(self, ranked: Ranked) -> Slate:
        """The slate of one ranking, stamped with the time of day."""
        user = ranked.user_id.decode(errors="replace")
        at = rfc3339(time.time_ns() // 1_000_000)
        return Slate(
            user,
            at,
            self._model,
            self._cause(ranked.record),
            ranked.kind,
            ranked.items,
            ranked.arm,
            ranked.ranker,
            _identity(user, at, ranked.items),
        )

    def _cause(self, record: InterestRecord | None) -> Cause | None:
        """None as well when the action has left the configuration: its topic is not known any more."""
        if record is None or (topic := self._topics.get(int(record.header["action"]))) is None:
            return None
        header = record.header
        return Cause(
            topic,
            int(header["partition"]),
            int(header["offset"]),
            rfc3339(int(header["occurred_at"])),
            rfc3339(int(header["received_at"])),
        )


def rfc3339(ms: int) -> str:
    """Unix milliseconds as RFC 3339 in UTC; times outside the years 1970 to 9999 are clamped.

    >>> rfc3339(1_700_000_000_123)
    '2023-11-14T22:13:20.123Z'
    """
    time_ = _EPOCH + timedelta(milliseconds=min(max(ms, 0), _LATEST_MS))
    return time_.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def milliseconds(text: str) -> int:
    """Unix milliseconds of an RFC 3339 time."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


class _Named(msgspec.Struct, frozen=True):
    content_id: str


class _Origin(msgspec.Struct, frozen=True):
    partition: int


class Shown(msgspec.Struct, frozen=True):
    """Of a slate as it stands on the topic: the contents, and whence its cause came."""

    items: list[_Named]
    caused_by: _Origin | None = None


def content_keys(slate: Slate | Shown) -> list[int]:
    """The 64-bit keys of a slate's contents, best first."""
    return [key64(item.content_id) for item in slate.items]


def fingerprint(items: Sequence[Item | _Named]) -> int:
    """64-bit identity of what a subscriber would show: the content ids in their order.

    Scores, parts and reasons are left out on purpose: recency and popularity move them at every
    instant, and a slate that shows the same contents in the same order is not news.
    """
    ids = [item.content_id.encode() for item in items]
    return key64(b"".join([len(content_id).to_bytes(4, "little") + content_id for content_id in ids]))


def cut(slate: Slate, most: int) -> Slate:
    """The slate as it fits into ``most`` bytes: with fewer reasons, then with fewer items, the best ones."""
    reasons = max((len(item.reasons) for item in slate.items), default=0)
    while len(encode(slate)) > most and reasons:
        reasons -= 1
        items = [msgspec.structs.replace(item, reasons=item.reasons[:reasons]) for item in slate.items]
        slate = msgspec.structs.replace(slate, items=items)
    while (size := len(encode(slate))) > most and slate.items:
        kept = min(len(slate.items) - 1, len(slate.items) * most // size)
        slate = msgspec.structs.replace(slate, items=slate.items[:kept])
    slate_id = _identity(slate.user_id, slate.generated_at, slate.items)
    return msgspec.structs.replace(slate, slate_id=slate_id)


def _identity(user_id: str, generated_at: str, items: Sequence[Item]) -> str:
    """16 hexadecimal digits."""
    named = f"{user_id}\0{generated_at}\0{fingerprint(items):016x}"
    return f"{key64(named):016x}"


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Slate)
_glance = msgspec.json.Decoder(Shown)


def encode(slate: Slate) -> bytes:
    """JSON of one slate."""
    return _encoder.encode(slate)


def decode(value: bytes) -> Slate:
    """Slate from its JSON. Raises msgspec.DecodeError."""
    return _decoder.decode(value)


def decode_shown(value: bytes) -> Shown:
    """What is shown, several times faster than the whole slate. Raises msgspec.DecodeError."""
    return _glance.decode(value)
