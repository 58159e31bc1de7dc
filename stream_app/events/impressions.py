"""What was really shown to a user: the message, and its decoding. Optional, and never dead-lettered.

A platform may say which contents it showed, and where. Whatever does not fit is named by the same reasons
as events and skipped: a lost report of a list costs no engagement.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from stream_app.events.faults import DECODING_ERRORS, UnfitError, check_id, explain
from stream_app.events.mending import read_mended
from stream_app.events.reasons import Reason
from stream_app.events.schema import ID, Milliseconds, Moment
from stream_app.events.times import EARLIEST_MS, LATEST_MS, Clock, wall_clock
from stream_app.hashing import key64
from stream_app.settings import Impressions, Settings

LAST_POSITION = 65_535


class ShownContent(msgspec.Struct, gc=False):
    """One content of a list."""

    content_id: Annotated[str, Meta(description="What was shown.", min_length=1, extra_json_schema=ID)]
    position: Annotated[
        Annotated[int, Meta(ge=0, le=LAST_POSITION)] | None,
        Meta(description="Where: 0 is on top. Missing: its place in `items`."),
    ] = None


class Impression(msgspec.Struct, gc=False):
    """A list of contents that was really shown to one user; optional.

    The record's key is `user_id` in UTF-8. Unknown fields are ignored, and null counts as missing."""

    user_id: Annotated[
        str, Meta(description="To whom; also the record's key.", min_length=1, extra_json_schema=ID)
    ]
    items: Annotated[
        list[ShownContent | Annotated[str, Meta(extra_json_schema={"minLength": 1, **ID})]],
        Meta(
            description="The contents, each as an object with its position, or its id alone where the order "
            "is the position. At least one, at most `impressions.max_contents`; the first mention counts.",
            extra_json_schema={"minItems": 1, "maxItems": Impressions().max_contents},
        ),
    ]
    shown_at: Annotated[
        Moment | Milliseconds | None,
        Meta(
            description="When: RFC 3339 with an offset, or Unix milliseconds. Missing: the Kafka timestamp. "
            "The same content at the same time is the same showing, so a report may be sent twice."
        ),
    ] = None
    slate_id: Annotated[
        Annotated[str, Meta(extra_json_schema=ID)] | None,
        Meta(
            description="`slate_id` of the slate that was shown. Only lists that name theirs count for the "
            "A/B arms' click-through. Empty counts as missing."
        ),
    ] = None


class ShownList(NamedTuple):
    """One accepted impression of n contents."""

    user: bytes
    """UTF-8 user id"""
    time: int
    """ms, when it was shown"""
    keys: NDArray[np.uint64]
    """[n], key64 of the contents, each once"""
    positions: NDArray[np.uint16]
    """[n], 0 is on top"""
    of_slate: bool
    """Whether it names a slate"""


class ImpressionDecoder:
    """Decodes records of ``impressions``."""

    def __init__(self, settings: Settings, now_ms: Clock = wall_clock) -> None:
        self._now_ms = now_ms
        self._read = msgspec.json.Decoder(Impression).decode
        self._max_bytes = settings.events.max_bytes
        self._max_id_bytes = settings.events.max_id_bytes
        self._max_future_ms = int(settings.events.max_future_s * 1000)
        self._most = settings.impressions.max_contents

    def decode(self, key: bytes | None, value: bytes | None, arrival_ms: int) -> ShownList | Reason:
        """The impression, or why it is none; no record makes it raise. ``arrival_ms`` is the record's Kafka
        timestamp."""
        try:
            return self._decoded(key, value, arrival_ms)
        except UnfitError as fault:
            return fault.reason
        except DECODING_ERRORS as error:
            return explain(error, "shown_at", value or b"")[0]

    def _decoded(self, key: bytes | None, value: bytes | None, arrival_ms: int) -> ShownList:
        if not value:
            raise UnfitError(Reason.EMPTY, "the value is null or has no bytes")
        if len(value) > self._max_bytes:
            raise UnfitError(Reason.OVERSIZED, f"{len(value)} bytes, at most {self._max_bytes} are taken")
        try:
            impression = self._read(value)
        except DECODING_ERRORS as error:
            impression = read_mended(self._read, value, error, ("user_id", "items"))
        if not value.isascii():
            value.decode()  # msgspec skips ignored fields without looking at their encoding
        user = impression.user_id.encode()
        if user != key:
            raise UnfitError(Reason.KEY_MISMATCH, "the key is not the user_id in UTF-8")
        check_id("user_id", impression.user_id, self._max_id_bytes)
        if impression.slate_id:
            check_id("slate_id", impression.slate_id, self._max_id_bytes)
        items = impression.items
        if not items:
            raise UnfitError(Reason.MISSING_FIELD, "items is empty")
        if len(items) > self._most:
            raise UnfitError(Reason.OVERSIZED, f"{len(items)} contents, at most {self._most} are taken")
        positions: dict[int, int] = {}
        for place, item in enumerate(items):
            content_id, position = (item, None) if isinstance(item, str) else (item.content_id, item.position)
            check_id("content_id", content_id, self._max_id_bytes)
            positions.setdefault(key64(content_id), place if position is None else position)
        return ShownList(
            user,
            self._time(impression.shown_at, arrival_ms),
            np.fromiter(positions.keys(), np.uint64, len(positions)),
            np.fromiter(positions.values(), np.uint16, len(positions)),
            bool(impression.slate_id),
        )

    def _time(self, shown_at: datetime | int | None, arrival_ms: int) -> int:
        if shown_at is None:
            shown_at = arrival_ms
        time = shown_at if isinstance(shown_at, int) else round(shown_at.timestamp() * 1000)
        if time < EARLIEST_MS:
            raise UnfitError(Reason.TOO_OLD, "shown before the year 2000; numbers are Unix milliseconds")
        if time > min(min(arrival_ms, self._now_ms()) + self._max_future_ms, LATEST_MS):
            raise UnfitError(Reason.TIMESTAMP_IN_FUTURE, "shown after the Kafka timestamp, or after now")
        return time
