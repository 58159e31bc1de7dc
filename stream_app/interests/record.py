"""The binary record of one user: what stands on ``interests``, in RocksDB and in the slab.

Layout, little-endian, version 2 (``n`` = interactions kept, ``m`` = seen keys kept)::

    header        96 bytes    HEADER below
    vector        4 D bytes   float32: the decayed sum S at t_ref
    interactions  32 n bytes  INTERACTION below; slot i holds the newest arrival ≡ i modulo R
    seen          8 m bytes   64-bit content keys

and, with flag MORE, what few users have a use for::

    extra         16 bytes    EXTRA below
    kept          32 k bytes  INTERACTION: strong ones that left the ring, where light actions fill it
    undone_at     8 (n+k)     ms, newest undo of each of these; only where one was undone
    long          4 l bytes   fingerprints of contents that left ``seen``, see :mod:`.seen`

In the slab a row has its full R interactions and M seen keys; on Kafka and on disk the unused tails
are left out. Version 1 knew neither flags nor marks; :func:`current` is the only place that knows it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stream_app.errors import RecordFormatError

VERSION = 2

_T = TypeVar("_T", bound=np.generic)

HEADER = np.dtype(
    [
        ("version", "<u1"),
        ("flags", "<u1"),  # UNDONE_TIMES, LOST, MORE, KEYED_BY_ACTION
        ("action", "<u2"),  # code of the action applied last
        ("dimensions", "<u2"),
        ("recent", "<u2"),  # R of the writer: slots wrap at R
        ("model", "<u4"),  # code of the encoder whose vectors were summed
        ("partition", "<u4"),  # of the event applied last
        ("offset", "<i8"),  # of the event applied last, in its action's topic
        ("occurred_at", "<i8"),  # ms, event time of the event applied last
        ("received_at", "<i8"),  # ms, Kafka timestamp of the event applied last
        ("t_ref", "<i8"),  # ms, newest accepted event time; S and mass stand at it
        ("mass", "<f8"),  # Σ |w| 2^(-(t_ref - t)/h)
        ("live", "<i8"),  # contributions in the sum: applied less undone
        ("total", "<i8"),  # interactions ever recorded; the next slot is total mod R
        ("seen_total", "<i8"),  # seen keys ever recorded; the next slot is seen_total mod M
        ("seen", "<u4"),  # M of the writer
        ("interactions", "<u2"),  # n stored here
        ("reserved", "V2"),
        ("seen_stored", "<u4"),  # m stored here
        ("half_life_h", "<f4"),  # hours, that S and mass were summed under; 0: not said (version 1)
    ]
)
assert HEADER.itemsize == 96

EXTRA = np.dtype(
    [
        ("kept_total", "<u4"),  # interactions ever kept; the next place is kept_total mod K
        ("long", "<u4"),  # L of the writer
        ("long_total", "<u4"),  # fingerprints ever recorded; the next place is long_total mod L
        ("kept", "<u2"),  # K of the writer; 0 where no action is light
        ("undone", "<u2"),  # n + k where one was undone, else 0
    ]
)
assert EXTRA.itemsize == 16

KEYED_BY_ACTION, UNDONE_TIMES, LOST, MORE = 1, 2, 4, 8
"""Flags: events are named by action and id (without it by the id alone, as versions before did); the record
has ``undone_at``; interactions left it before any were kept; it has ``extra``."""

INTERACTION = np.dtype(
    [
        ("content", "<u8"),  # key64(content_id)
        ("event", "<u8"),  # key64(event_id) ^ action_mask(action)
        ("time", "<i8"),  # ms, event time; of an undo in wait, its own
        ("weight", "<f4"),
        ("action", "<u2"),
        ("state", "<u1"),  # APPLIED, UNDONE or AWAITING, with the marks below
        ("version", "<u1"),  # which vector of the content was summed; 0: the one it has now
    ]
)
assert INTERACTION.itemsize == 32

APPLIED, UNDONE, AWAITING = 1, 2, 3
"""States of an interaction: in the sum; cancelled by an undo; an undo that awaits its original."""

STATE, AGAIN, BARE, COUNTED, FIRST = 3, 4, 8, 16, 32
"""``state & STATE`` is the state. AGAIN: its id was sent with several times, ``time`` is the newest. BARE:
its content had no vector. COUNTED: this act stands for its user in the content's statistics; once undone: the
one that did, and none has taken its place. FIRST: its user had not had the content before."""


def row_dtype(dimensions: int, recent: int, seen: int, kept: int = 0) -> np.dtype[np.void]:
    """One slab row: header, vector [D], interactions [R + K], seen [M]."""
    return np.dtype(
        [
            ("header", HEADER),
            ("vector", "<f4", (dimensions,)),
            ("interactions", INTERACTION, (recent + kept,)),
            ("seen", "<u8", (seen,)),
        ]
    )


def most_bytes(dimensions: int, recent: int, seen: int, kept: int, long: int) -> int:
    """Size of the largest record, with all that few of them have."""
    row = row_dtype(dimensions, recent, seen, kept).itemsize + EXTRA.itemsize
    return row + 8 * (recent + kept) + 4 * long


@dataclass(frozen=True)
class InterestRecord:
    """One user's record, decoded. Arrays are read-only views of the bytes."""

    header: np.void
    vector: NDArray[np.float32]
    """[D], the decayed sum S at ``t_ref``."""
    interactions: NDArray[np.void]
    """[n], INTERACTION, in slot order."""
    seen: NDArray[np.uint64]
    """[m], content keys."""
    extra: np.void = field(default_factory=lambda: np.zeros(1, EXTRA)[0])
    kept: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, INTERACTION))
    """[k], INTERACTION, in the order of their places."""
    undone_at: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """[n + k] or [0], ms."""
    long: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    """[l], fingerprints."""

    @property
    def t_ref(self) -> int:
        """Newest accepted event time, ms."""
        return int(self.header["t_ref"])

    @property
    def mass(self) -> float:
        """Decayed mass at ``t_ref``."""
        return float(self.header["mass"])


def states(interactions: NDArray[np.void]) -> NDArray[np.uint8]:
    """The interactions' states without their marks."""
    found: NDArray[np.uint8] = interactions["state"] & np.uint8(STATE)
    return found


def current(value: bytes | memoryview) -> bytes | memoryview:
    """A record of any version as one of VERSION. Raises RecordFormatError.

    Until version 1 every act counted in the statistics, and none had a mark of it.
    """
    if not len(value) or value[0] == VERSION:
        return value
    if value[0] != 1:
        raise RecordFormatError(f"interest record of version {value[0]}, expected {VERSION}")
    if len(value) < HEADER.itemsize:
        raise RecordFormatError(f"interest record of {len(value)} bytes is shorter than its header")
    raised = bytearray(value)
    header = np.frombuffer(raised, HEADER, count=1)[0]
    header["version"], header["flags"], header["half_life_h"] = VERSION, 0, 0
    at, n = HEADER.itemsize + 4 * int(header["dimensions"]), int(header["interactions"])
    if len(raised) >= at + INTERACTION.itemsize * n:
        ring = np.frombuffer(raised, INTERACTION, count=n, offset=at)
        ring["state"][ring["state"] == APPLIED] |= COUNTED
        ring["version"] = 0
    return bytes(raised)


def decode(value: bytes | memoryview) -> InterestRecord:
    """Decode one record. Raises RecordFormatError."""
    value = current(value)
    if len(value) < HEADER.itemsize:
        raise RecordFormatError(f"interest record of {len(value)} bytes is shorter than its header")
    header = np.frombuffer(value, HEADER, count=1)[0]
    d, n, m = int(header["dimensions"]), int(header["interactions"]), int(header["seen_stored"])
    if n != min(header["total"], header["recent"]) or not header["recent"]:
        # the ring's slots are found by these
        raise RecordFormatError(
            f"interest record of {n} interactions, of {header['total']} ever and {header['recent']} at most"
        )
    ring = HEADER.itemsize + 4 * d
    seen = ring + INTERACTION.itemsize * n
    end = seen + 8 * m
    more = _More(value[end:]) if header["flags"] & MORE and len(value) > end else None
    if len(value) != end + (0 if more is None else more.size):
        raise RecordFormatError(f"interest record of {len(value)} bytes, its header says {end}")
    return InterestRecord(
        header,
        np.frombuffer(value, "<f4", count=d, offset=HEADER.itemsize),
        np.frombuffer(value, INTERACTION, count=n, offset=ring),
        np.frombuffer(value, "<u8", count=m, offset=seen),
        *(_NO_MORE if more is None else more.parts()),
    )


class _More:
    """What comes after the seen keys."""

    def __init__(self, tail: bytes | memoryview) -> None:
        if len(tail) < EXTRA.itemsize:
            raise RecordFormatError(
                f"interest record that ends within its extra part, {len(tail)} bytes long"
            )
        self._tail, self._extra = tail, np.frombuffer(tail, EXTRA, count=1)[0]
        self._kept = min(int(self._extra["kept_total"]), int(self._extra["kept"]))
        self._undone = int(self._extra["undone"])
        self._undone_at = EXTRA.itemsize + INTERACTION.itemsize * self._kept
        self._long_at = self._undone_at + 8 * self._undone
        self.size = self._long_at + 4 * min(int(self._extra["long_total"]), int(self._extra["long"]))

    def parts(self) -> tuple[np.void, NDArray[np.void], NDArray[np.int64], NDArray[np.uint32]]:
        """extra, kept, undone_at, long."""
        return (
            self._extra,
            np.frombuffer(self._tail, INTERACTION, count=self._kept, offset=EXTRA.itemsize),
            np.frombuffer(self._tail, "<i8", count=self._undone, offset=self._undone_at),
            np.frombuffer(self._tail, "<u4", offset=self._long_at),
        )


_NO_MORE = (
    np.frombuffer(bytes(EXTRA.itemsize), EXTRA)[0],
    np.zeros(0, INTERACTION),
    np.zeros(0, np.int64),
    np.zeros(0, np.uint32),
)
"""What a record has in place of these parts without them; nobody may write it."""


def turned(slots: NDArray[_T], total: int, size: int) -> NDArray[_T]:
    """Places that were filled in turn, ``total`` times, ``size`` of them at most: oldest first."""
    n = len(slots)
    if total <= n or n < size:
        return slots
    first = total % size
    return slots[np.arange(first, first + n) % n]


def joined(several: Iterable[NDArray[np.void]]) -> NDArray[np.void]:
    """Interactions of several records one after the other, read-only. np.concatenate compares all the fields
    of every array first."""
    return np.frombuffer(b"".join([one.tobytes() for one in several]), INTERACTION)


def by_arrival(record: InterestRecord) -> NDArray[np.void]:
    """A record's interactions, oldest arrival first."""
    return turned(record.interactions, int(record.header["total"]), int(record.header["recent"]))


def seen_by_arrival(record: InterestRecord) -> NDArray[np.uint64]:
    """A record's seen keys, oldest first."""
    return turned(record.seen, int(record.header["seen_total"]), int(record.header["seen"]))
