"""A content as producers send it (``docs/schemas/content.json`` is made from this), decoded and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from stream_app.events.faults import DECODING_ERRORS, UnfitError, check_id, check_readable, explain
from stream_app.events.mending import read_mended
from stream_app.events.reasons import Reason
from stream_app.events.schema import ID
from stream_app.events.times import LATEST_MS, Clock, unit, wall_clock
from stream_app.kafka.records import Record
from stream_app.settings import Settings

# Unix seconds given for milliseconds, and zeros that stand for "unknown", end up before this
EARLIEST_MS = int(datetime(1971, 1, 1, tzinfo=UTC).timestamp() * 1000)


class Content(msgspec.Struct, gc=False):
    """One content. The record's key is `content_id` in UTF-8; a null value deletes the content.

    Unknown fields are ignored, and null counts as missing. A content without title and text (an image, a
    product) is recommended by what people do with it."""

    content_id: Annotated[
        Annotated[str, Meta(extra_json_schema={"minLength": 1, **ID})] | None,
        Meta(description="Name of the content. Missing: the record's key."),
    ] = None
    title: Annotated[str | None, Meta(description="Encoded before the text.")] = None
    text: Annotated[str | None, Meta(description="What it says, in any language the encoder knows.")] = None
    author: Annotated[
        Annotated[str, Meta(extra_json_schema=ID)] | None,
        Meta(description="Who made it: an id, for the cap on one author in a slate."),
    ] = None
    created_at: Annotated[
        Annotated[
            datetime, Meta(tz=True, extra_json_schema={"pattern": "^(19(7[2-9]|[89][0-9])|2[01][0-9]{2})-"})
        ]
        | Annotated[int, Meta(extra_json_schema={"minimum": EARLIEST_MS, "maximum": LATEST_MS})]
        | None,
        Meta(
            description="When: RFC 3339 with an offset, or Unix milliseconds. Missing: when it was first "
            "seen, by its Kafka timestamp; it then counts as new for whatever happened before."
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class Text:
    """What an accepted content comes down to."""

    text: str
    """Title and text as they are encoded; empty where they say nothing."""
    author: str
    """Empty when unknown."""
    created_at: int
    """ms"""
    known: bool = True
    """Whether ``created_at`` was given; else it is when the record came."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """One record that is no content."""

    index: int
    """Into the input records."""
    reason: Reason
    detail: str
    """One short sentence, never with user data."""


@dataclass(frozen=True, slots=True)
class DecodedContents:
    """The newest accepted version of each content of a batch, and what was rejected."""

    newest: dict[bytes, Text | None] = field(default_factory=dict)
    """content_id (UTF-8) → the content, None where it was deleted"""
    rejected: list[Rejected] = field(default_factory=list)


class Dated(Protocol):
    """What says when a content was created."""

    @property
    def created_at(self) -> int:
        """ms"""

    @property
    def known(self) -> bool:
        """Whether that was given."""


def first_known(text: Text, before: Dated | None) -> Text:
    """A content that does not say when it was created keeps the time that it had before."""
    if before is None:
        return text
    time = before.created_at if before.known else min(before.created_at, text.created_at)
    return replace(text, created_at=time, known=before.known)


class ContentDecoder:
    """Decodes records of ``content``."""

    def __init__(self, settings: Settings, now_ms: Clock = wall_clock) -> None:
        self._now_ms = now_ms
        self._read = msgspec.json.Decoder(Content).decode
        self._max_bytes = settings.content.max_bytes
        self._max_id_bytes = settings.events.max_id_bytes
        self._max_future_ms = int(settings.events.max_future_s * 1000)

    def decode(self, records: Sequence[Record]) -> DecodedContents:
        """The contents of records of one partition, in offset order; no record makes it raise."""
        decoded = DecodedContents()
        first: dict[bytes, Text] = {}  # when each was created, as far as these records tell
        for index, record in enumerate(records):
            try:
                content_id, text = self._decode(record)
            except UnfitError as fault:
                decoded.rejected.append(Rejected(index, fault.reason, fault.detail))
            except DECODING_ERRORS as error:
                decoded.rejected.append(Rejected(index, *explain(error, "created_at", record.value or b"")))
            else:
                if text is not None:
                    text = text if text.known else first_known(text, first.get(content_id))
                    first[content_id] = text
                decoded.newest[content_id] = text
        return decoded

    def _decode(self, record: Record) -> tuple[bytes, Text | None]:
        key = None if record.key is None else record.key.decode()
        if record.value is None:
            check_readable(record)
            return self._id(None, key), None
        if not record.value:
            raise UnfitError(Reason.EMPTY, "the value has no bytes; null deletes a content")
        if len(record.value) > self._max_bytes:
            raise UnfitError(
                Reason.OVERSIZED, f"{len(record.value)} bytes, at most {self._max_bytes} are taken"
            )
        try:
            content = self._read(record.value)
        except DECODING_ERRORS as error:
            content = read_mended(self._read, record.value, error, ("content_id",))
        if not record.value.isascii():
            record.value.decode()  # msgspec skips ignored fields without looking at their encoding
        content_id = self._id(content.content_id, key)
        if content.author:
            check_id("author", content.author, self._max_id_bytes)
        text = "\n".join(part for part in (content.title, content.text) if part and not part.isspace())
        created_at = self._created_at(content, record.timestamp)
        return content_id, Text(text, content.author or "", created_at, content.created_at is not None)

    def _id(self, content_id: str | None, key: str | None) -> bytes:
        if content_id is None:
            content_id = key
        elif key is not None and key != content_id:
            raise UnfitError(Reason.KEY_MISMATCH, "the key is not the content_id in UTF-8")
        if content_id is None:
            raise UnfitError(Reason.MISSING_FIELD, "there is neither a key nor a content_id")
        check_id("content_id", content_id, self._max_id_bytes)
        return content_id.encode()

    def _created_at(self, content: Content, arrival: int) -> int:
        """ms. Raises UnfitError."""
        time, arrival = content.created_at, min(arrival, self._now_ms())
        if time is None:
            time = arrival
        elif isinstance(time, datetime):
            time = round(time.timestamp() * 1000)
        if time < EARLIEST_MS:
            raise UnfitError(
                Reason.BAD_TIMESTAMP, f"created before 1971; numbers are Unix milliseconds{unit(time)}"
            )
        if time > min(arrival + self._max_future_ms, LATEST_MS):
            raise UnfitError(
                Reason.TIMESTAMP_IN_FUTURE,
                f"created more than {self._max_future_ms} ms after the Kafka timestamp, or now{unit(time)}",
            )
        return time
