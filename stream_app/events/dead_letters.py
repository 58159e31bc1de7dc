"""What is written to ``events-dlq``, to the retry topics and to ``events-routed``: the original record,
and headers of ours.

Our headers are UTF-8 text. Their names start with ``stream-app-``, which is reserved: a producer's own
headers of such names are not kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from stream_app.events.reasons import Reason
from stream_app.kafka.records import Record
from stream_app.kafka.unreadable import UnreadableRange
from stream_app.topics import is_copy_topic

PREFIX = "stream-app-"
HEADERS = {
    "topic": "Topic where the record first arrived.",
    "partition": "Its partition there.",
    "offset": "Its offset there.",
    "last-offset": "Only of a range that could not be read: its last offset; `offset` is its first.",
    "records": "Likewise: how many records the letter stands for, as far as their batch says.",
    "timestamp": "Its Kafka timestamp there, ms.",
    "attempts": "Tries because its content was unknown: 0 for none.",
    "not-before": "Retries only: not to be tried before this time, ms, by the clock of the worker that wrote "
    "it. What counts is the broker's time of arrival and the try's delay; on `events-retry` itself, this.",
    "reason": "Dead letters only: a code of docs/REASONS.md.",
    "detail": "Dead letters only: one short sentence, without user data.",
    "time": "When this copy was written, ms.",
    "truncated": "Only if the record did not fit: what was cut of `key`, `headers`, `value`.",
    "value-bytes": "Only if the record did not fit: length of the original value.",
    "redrives": "Only after a `dlq redrive`: how often the record was given a second chance.",
    "history": "Only after a `dlq redrive`: earlier dead letters, `reason@ms,…`, the newest 16.",
    "redriven": "Only on the mark that a redrive leaves on `events-dlq`: the letter's topic, partition, "
    "offset, timestamp and redrives, with slashes between them.",
}
"""Names without the prefix, and what they mean."""
MAX_RECORD_BYTES = 1_000_000
"""Key, headers and value of a copy together: what any broker takes with its default
``message.max.bytes`` (1,048,588), with room for framing."""
MAX_DETAIL = 200
MAX_HISTORY = 16
_EPISODE = re.compile(r"[a-z0-9_]{1,40}@[0-9]{1,19}")

Headers = list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record first arrived, and how often it has been tried."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    """ms, Kafka timestamp of the first arrival"""
    attempt: int
    """Retries so far; 0 for a first-hand record."""
    not_before_ms: int
    """ms, wall clock: the next try is not due before; 0 for a first-hand record."""
    redrives: int = 0
    """Second chances so far."""
    history: tuple[str, ...] = ()
    """``reason@ms`` of the dead letters that it was given a second chance after; the oldest first."""


def origin_of(record: Record, topic: str, partition: int) -> Origin:
    """Origin of a record read from ``topic``: its headers' if that is a topic of copies, else its own place.

    Of the headers of first-hand records only the count of second chances is believed, which a redriven
    content has: whoever forges it forfeits his own record's. A copy whose headers are not ours has its own
    place as origin; the decoder rejects it as ``bad_origin``.
    """
    if is_copy_topic(topic) and (written := origin_in(record)) is not None:
        return written
    if isinstance(record, UnreadableRange):
        return Origin(topic, partition, record.damage.first, record.timestamp, 0, 0)
    return Origin(topic, partition, record.offset, record.timestamp, 0, 0, *_chances(our_headers(record)))


def origin_in(record: Record) -> Origin | None:
    """Origin as our headers of a retry or a dead letter have it; None if they are not ours."""
    found = our_headers(record)
    try:
        return Origin(
            found["topic"].decode(),
            _number(found, "partition"),
            _number(found, "offset"),
            _number(found, "timestamp"),
            _number(found, "attempts"),
            _number(found, "not-before") if "not-before" in found else 0,
            *_chances(found),
        )
    except (KeyError, ValueError):
        return None


def our_headers(record: Record) -> dict[str, bytes]:
    """Our headers of a copy, by their names without the prefix."""
    return {
        name.removeprefix(PREFIX): value
        for name, value in record.headers
        if name.startswith(PREFIX) and value is not None
    }


def written_ms(copy: Record) -> int:
    """When a copy was first written, ms. Its Kafka timestamp is a later one if an erasure made the
    letters of others move."""
    try:
        return _number(our_headers(copy), "time")
    except (KeyError, ValueError):
        return copy.timestamp


def records_in(record: Record) -> int:
    """How many records one stands for: a range that could not be read stands for its own."""
    return record.damage.records if isinstance(record, UnreadableRange) else 1


def dead_letter(
    record: Record,
    origin: Origin,
    reason: Reason,
    detail: str,
    now_ms: int,
    max_bytes: int = MAX_RECORD_BYTES,
) -> tuple[bytes | None, bytes | None, Headers]:
    """Key, value and headers of a dead letter. The original bytes are kept whenever they fit into
    ``max_bytes``; else headers, value and key are cut, in this order of preference, and
    a header says so."""
    ours = _origin_headers(origin, origin.attempt, now_ms)
    ours += [
        (f"{PREFIX}reason", reason.value.encode()),
        (f"{PREFIX}detail", detail[:MAX_DETAIL].encode(errors="replace")),
    ]
    if isinstance(record, UnreadableRange):
        ours += [
            (f"{PREFIX}last-offset", str(record.damage.last).encode()),
            (f"{PREFIX}records", str(record.damage.records).encode()),
        ]
    theirs = _their_headers(record)
    key, value = record.key, record.value
    if _size(key) + _size(value) + _headers_size(theirs) + _headers_size(ours) <= max_bytes:
        return key, value, [*theirs, *ours]
    cut = []
    room = max_bytes - _headers_size(ours) - 128  # for the two headers below
    if key is not None and len(key) > room:
        key = key[:room]
        cut.append("key")
    room -= _size(key)
    if _headers_size(theirs) > room:
        theirs = []
        cut.append("headers")
    room -= _headers_size(theirs)
    if value is not None and len(value) > room:
        value = value[:room]
        cut.append("value")
    ours += [
        (f"{PREFIX}truncated", ",".join(cut).encode()),
        (f"{PREFIX}value-bytes", str(_size(record.value)).encode()),
    ]
    return key, value, [*theirs, *ours]


def retry(
    record: Record, origin: Origin, not_before_ms: int, now_ms: int, max_bytes: int = MAX_RECORD_BYTES
) -> tuple[bytes | None, bytes | None, Headers]:
    """Key, value and headers of the next try."""
    return _again(record, origin, origin.attempt + 1, not_before_ms, now_ms, max_bytes)


def routed(
    record: Record, origin: Origin, user: bytes, now_ms: int
) -> tuple[bytes | None, bytes | None, Headers]:
    """Key, value and headers of a record on its way to its user's partition: the key is the user, whatever
    it was, and the tries that it has had count."""
    _, value, headers = _again(record, origin, origin.attempt, 0, now_ms)
    return user, value, headers


def redriven(
    letter: Record, origin: Origin, reason: str, now_ms: int
) -> tuple[bytes | None, bytes | None, Headers]:
    """Key, value and headers of a dead letter's second chance: due at once, and with all its tries.

    It keeps its first arrival, so that an event without an id gets the same one, and what is
    produced twice is recognised. ``reason`` is the letter's.
    """
    history = (*origin.history, f"{reason}@{written_ms(letter)}")[-MAX_HISTORY:]
    return _again(letter, replace(origin, redrives=origin.redrives + 1, history=history), 0, 0, now_ms)


def _again(
    record: Record,
    origin: Origin,
    attempts: int,
    not_before_ms: int,
    now_ms: int,
    max_bytes: int = MAX_RECORD_BYTES,
) -> tuple[bytes | None, bytes | None, Headers]:
    """A copy to be tried. The producer's own headers are left out if it would not fit with them."""
    ours = [
        *_origin_headers(origin, attempts, now_ms),
        (f"{PREFIX}not-before", str(not_before_ms).encode()),
    ]
    theirs = _their_headers(record)
    size = _size(record.key) + _size(record.value) + _headers_size(theirs) + _headers_size(ours)
    return record.key, record.value, ours if size > max_bytes else [*theirs, *ours]


def _origin_headers(origin: Origin, attempts: int, now_ms: int) -> Headers:
    headers = [
        (f"{PREFIX}topic", origin.topic.encode()),
        (f"{PREFIX}partition", str(origin.partition).encode()),
        (f"{PREFIX}offset", str(origin.offset).encode()),
        (f"{PREFIX}timestamp", str(origin.timestamp).encode()),
        (f"{PREFIX}attempts", str(attempts).encode()),
        (f"{PREFIX}time", str(now_ms).encode()),
    ]
    if origin.redrives:
        headers += [
            (f"{PREFIX}redrives", str(origin.redrives).encode()),
            (f"{PREFIX}history", ",".join(origin.history).encode()),
        ]
    return headers


def _chances(found: dict[str, bytes]) -> tuple[int, tuple[str, ...]]:
    """Second chances and their history; broken ones count as none."""
    try:
        redrives = _number(found, "redrives")
        entries = found.get("history", b"")[: 64 * MAX_HISTORY].decode().split(",")
    except (KeyError, ValueError):
        return 0, ()
    return redrives, tuple(e for e in entries if _EPISODE.fullmatch(e))[-MAX_HISTORY:]


def _their_headers(record: Record) -> Headers:
    return [(name, value or b"") for name, value in record.headers if not name.startswith(PREFIX)]


def _number(headers: dict[str, bytes], name: str) -> int:
    """A non-negative 63-bit integer. Raises KeyError, ValueError."""
    text = headers[name]
    if len(text) > 19 or not text.isdigit():
        raise ValueError(name)
    number = int(text)
    if number >= 1 << 63:
        raise ValueError(name)
    return number


def _size(part: bytes | None) -> int:
    return 0 if part is None else len(part)


def _headers_size(headers: Headers) -> int:
    """Bytes of names and values, and at most 10 of lengths each."""
    return sum(len(name.encode()) + len(value) + 10 for name, value in headers)
