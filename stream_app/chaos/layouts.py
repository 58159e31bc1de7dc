"""The oracle's own reading of every format on the topics, written from the documented layouts alone.

It shares no code with the product's decoders on purpose: what both read alike is what the
documentation says, and not a mistake that they have in common.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import xxhash
from kafka.partitioner import murmur2
from numpy.typing import NDArray

from stream_app.settings import Settings

APPLIED, UNDONE, AWAITING = 1, 2, 3
"""States of an interaction in a user's record."""

OUTCOMES_KEY = b"\x00outcomes"
ROUTER = b"\x00router\x00"
"""Before the topic, a hyphen and the partition in the key of a router's standing."""
COUNTS = ("applied", "duplicates", "dead_lettered", "retrying")
"""The fields of a partition's account under OUTCOMES_KEY that say where inputs ended."""
ROUTED = "routed"
"""Its field for inputs that were handed on to their users' partitions, and ended there."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
YEAR_2000_MS, YEAR_2200_MS = 946_684_800_000, 7_258_118_400_000
STATE = 3
"""The bits of an interaction's state that are no marks."""
MORE = 8
"""A flag: more comes after the contents seen."""
DEEP = 200
"""Nesting beyond this may be refused as too deep: how deep a decoder reads is its own affair."""

_USER = struct.Struct("<BBHHHIIqqqqdqqqIH2xIf")
_EXTRA = struct.Struct("<IIIHH")
_ENTRY = struct.Struct("<QQqfHBx")
_ENTRY_TYPE = np.dtype(
    {
        "names": ["event", "state"],
        "formats": ["<u8", "u1"],
        "offsets": [8, 30],
        "itemsize": _ENTRY.size,
    }
)
_CONTENT = struct.Struct("<BxHHHqq")
_STATISTICS = struct.Struct("<BBBxIq")


def hash64(text: str | bytes) -> int:
    """XXH3, 64 bits: how records name contents and events."""
    return xxhash.xxh3_64_intdigest(text)


def event_hash(text: str, action: str) -> int:
    """The id's hash, combined by exclusive or with the hash of the action's code (two bytes, the lower one
    first); 0 marks an empty place in a record, so 1 stands for it."""
    return hash64(text) ^ hash64(code16(action).to_bytes(2, "little")) or 1


def code16(action: str) -> int:
    """CRC-32, the lower 16 bits: how records name actions."""
    return crc32(action.encode()) & 0xFFFF


# -- headers of copies

Headers = tuple[tuple[str, bytes], ...]


class Origin(NamedTuple):
    """Where an input first arrived. The time tells lives of a topic apart."""

    topic: str
    partition: int
    offset: int
    timestamp: int


def header(headers: Headers, name: str) -> str:
    """One of the product's headers, or an empty text."""
    return next((value.decode() for key, value in headers if key == f"stream-app-{name}"), "")


def origin(headers: Headers) -> Origin | None:
    """The origin that a dead letter or a retry names; None when it names none."""
    topic = header(headers, "topic")
    numbers = [header(headers, name) for name in ("partition", "offset", "timestamp")]
    if not topic or not all(number.isdecimal() for number in numbers):
        return None
    return Origin(topic, *map(int, numbers))


# -- binary records


class Entry(NamedTuple):
    """One interaction of a user's record."""

    content: int
    event: int
    time: int
    weight: float
    action: int
    state: int


class User(NamedTuple):
    """One user's record."""

    action: int
    model: int
    """Code of the encoder whose vectors were summed."""
    partition: int
    offset: int
    t_ref: int
    mass: float
    live: int
    total: int
    recent: int
    seen_limit: int
    vector: NDArray[np.float64]
    entries: list[Entry]
    seen: set[int]


def user_record(value: bytes) -> User:
    """A record of ``interests``. Raises ValueError when its bytes do not add up."""
    fields = _USER.unpack_from(value)
    (
        _,
        _,
        action,
        dimensions,
        recent,
        model,
        partition,
        offset,
        _,
        _,
        t_ref,
        mass,
        live,
        total,
        _,
        seen_limit,
    ) = fields[:16]
    stored, seen_stored, _ = fields[16:]
    ring = _USER.size + 4 * dimensions
    tail = ring + _ENTRY.size * stored
    end = tail + 8 * seen_stored
    if fields[1] & MORE and len(value) >= end + _EXTRA.size:
        kept_total, long_limit, long_total, kept_limit, undone = _EXTRA.unpack_from(value, end)
        kept = min(kept_total, kept_limit)
        end += _EXTRA.size + _ENTRY.size * kept + 8 * undone + 4 * min(long_total, long_limit)
    if fields[0] != 2 or len(value) != end:
        raise ValueError(f"a user's record of {len(value)} bytes does not fit its header")
    return User(
        *(action, model, partition, offset, t_ref, mass, live, total, recent, seen_limit),
        np.array(struct.unpack_from(f"<{dimensions}f", value, _USER.size)),
        [Entry(*entry)._replace(state=entry[5] & STATE) for entry in _ENTRY.iter_unpack(value[ring:tail])],
        set(struct.unpack_from(f"<{seen_stored}Q", value, tail)),
    )


def last_applied(value: bytes) -> tuple[int, int, int]:
    """Action code, partition and offset of the event that a user's record says was applied last."""
    fields = _USER.unpack_from(value)
    return fields[2], fields[6], fields[7]


def ring(value: bytes) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Event hashes [n] and states [n] of a user's record, in the order of its slots."""
    fields = _USER.unpack_from(value)
    entries = np.frombuffer(value, _ENTRY_TYPE, count=fields[16], offset=_USER.size + 4 * fields[3])
    return entries["event"], entries["state"] & np.uint8(STATE)


def content_vector(value: bytes) -> tuple[int, NDArray[np.float64]]:
    """The encoder's code and the vector [D] of a record of ``content-vectors``; [0] of a content without
    text."""
    _, dimensions, model, author, _, _ = _CONTENT.unpack_from(value)
    name = value[_CONTENT.size : _CONTENT.size + model]
    vector = np.array(struct.unpack_from(f"<{dimensions}e", value, _CONTENT.size + model + author))
    return crc32(name), vector


class Counted(NamedTuple):
    """One content's counts in one partition."""

    t_ref: int
    actions: Sequence[int]
    half_lives_h: Sequence[float]
    counts: NDArray[np.float64]
    """[actions, half-lives]"""


def statistics_record(value: bytes) -> Counted:
    """A record of ``content-stats`` (but the account)."""
    _, actions, lives, _, t_ref = _STATISTICS.unpack_from(value)
    at = _STATISTICS.size
    codes = struct.unpack_from(f"<{actions}H", value, at)
    hours = struct.unpack_from(f"<{lives}f", value, at + 2 * actions)
    counts = struct.unpack_from(f"<{actions * lives}f", value, at + 2 * actions + 4 * lives)
    return Counted(t_ref, codes, hours, np.array(counts).reshape(actions, lives))


# -- events


class Event(NamedTuple):
    """One event as its producer meant it."""

    user: bytes
    content: str
    name: str | None
    """The producer's event id."""
    time: int
    undo: bool


class EventReader:
    """Tells acceptable events from others, and which reasons a dead letter may then give."""

    def __init__(self, settings: Settings) -> None:
        self._max_bytes = settings.events.max_bytes
        self._max_id = settings.events.max_id_bytes
        self._future_ms = int(1000 * settings.events.max_future_s)

    def read(self, value: bytes | None, arrived_ms: int) -> Event | frozenset[str]:
        """The event, or every reason for which it may be refused: a record may have several faults."""
        if not value:
            return frozenset({"empty"})
        if len(value) > self._max_bytes:
            return frozenset({"oversized"})
        faults: set[str] = set()
        try:
            text = value.decode()
        except UnicodeDecodeError:
            faults.add("invalid_utf8")
            text = value.decode(errors="replace")
        text = text.removeprefix("\ufeff")
        if max(text.count("["), text.count("{")) > DEEP:
            faults.add("too_deep")
        try:
            tree = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            long_number = "int string conversion" in str(error)
            return frozenset(
                {*faults, "malformed_json"} | ({"bad_timestamp", "bad_type"} if long_number else set())
            )
        if not isinstance(tree, dict):
            return frozenset({*faults, "bad_type"})
        event = self._event(tree, arrived_ms, faults)
        return frozenset(faults) if faults or event is None else event

    def _event(self, tree: dict[str, Any], arrived_ms: int, faults: set[str]) -> Event | None:
        for field in ("user_id", "content_id"):
            if tree.get(field) is None:
                faults.add("missing_field" if field not in tree else "bad_type")
        for field, kind in (
            ("user_id", str),
            ("content_id", str),
            ("event_id", str),
            ("text", str),
            ("undo", bool),
        ):
            if tree.get(field) is not None and not isinstance(tree[field], kind):
                faults.add("bad_type")
        ids = [tree.get("user_id"), tree.get("content_id"), tree.get("event_id") or None]
        if any(isinstance(text, str) and not self._is_id(text) for text in ids):
            faults.add("invalid_id")
        user, content, name = ids
        time = self._time(tree.get("occurred_at"), arrived_ms, faults)
        if faults or time is None:
            return None
        return Event(str(user).encode(), str(content), name, time, tree.get("undo") is True)

    def _is_id(self, text: str) -> bool:
        size = len(text.encode(errors="replace"))
        return 0 < size <= self._max_id and all(unicodedata.category(c) not in ("Cc", "Cs") for c in text)

    def _time(self, stated: Any, arrived_ms: int, faults: set[str]) -> int | None:
        time: int | None = None
        if stated is None:
            time = arrived_ms
        elif isinstance(stated, float) and stated.is_integer():
            time = int(stated)
        elif isinstance(stated, bool) or not isinstance(stated, int | str):
            faults.add("bad_type")
        elif isinstance(stated, int):
            time = stated
        else:
            time = _moment(stated)
        if time is None:
            faults.add("bad_timestamp")
            return None
        if not -(2**63) <= time < 2**63:
            faults.update(("bad_timestamp", "bad_type"))
        elif time > min(arrived_ms + self._future_ms, YEAR_2200_MS):
            faults.add("timestamp_in_future")
        elif time < YEAR_2000_MS:
            faults.update(("too_old", "bad_timestamp") if stated is None else ("too_old",))
        return time


def user_of(key: bytes | None, value: bytes | None) -> bytes | None:
    """Whom a record names that is no event: the value's ``user_id``, else the key."""
    with contextlib.suppress(ValueError, RecursionError):
        tree = json.loads(value or b"")
        if isinstance(tree, dict) and isinstance(user := tree.get("user_id"), str):
            return user.encode(errors="surrogatepass")
    return key


def home_of(user: bytes, partitions: int) -> int:
    """The partition that a user lives in."""
    return int((murmur2(user) & 0x7FFF_FFFF) % partitions)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _moment(text: str) -> int | None:
    """Milliseconds of an RFC 3339 time; None when it is none."""
    try:
        moment = datetime.fromisoformat(text.replace(":60", ":59", 1) if ":60" in text[16:19] else text)
    except ValueError:
        return None
    if ":60" in text[16:19]:  # a leap second counts as the second after it
        moment = moment.replace(microsecond=0) + timedelta(seconds=1)
    if moment.tzinfo is None or "T" not in text.upper().replace(" ", "T"):
        return None
    return math.floor((moment - EPOCH) / timedelta(milliseconds=1) + 0.5)
