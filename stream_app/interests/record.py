"""The binary record of one user: what stands on ``interests``, in RocksDB and in the slab.

Layout, little-endian, version 1 (``n`` = interactions kept, ``m`` = seen keys kept)::

    header        96 bytes    HEADER below
    vector        4 D bytes   float32: the decayed sum S at t_ref
    interactions  32 n bytes  INTERACTION below; slot i holds the newest arrival ≡ i modulo R
    seen          8 m bytes   64-bit content keys

In the slab a row has its full R interactions and M seen keys; on Kafka and on disk the unused tails
are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.errors import RecordFormatError

VERSION = 1

HEADER = np.dtype(
    [
        ("version", "<u1"),
        ("flags", "<u1"),  # KEYED_BY_ACTION
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
        ("padding", "V4"),
    ]
)
assert HEADER.itemsize == 96

INTERACTION = np.dtype(
    [
        ("content", "<u8"),  # key64(content_id)
        ("event", "<u8"),  # key64(event_id) ^ action_mask(action)
        ("time", "<i8"),  # ms, event time
        ("weight", "<f4"),
        ("action", "<u2"),
        ("state", "<u1"),
        ("padding", "V1"),
    ]
)
assert INTERACTION.itemsize == 32

APPLIED, UNDONE, AWAITING = 1, 2, 3
"""States of an interaction: in the sum; cancelled by an undo; an undo that awaits its original."""


KEYED_BY_ACTION = 1
"""Flag of a record whose events are keyed by action and id. Without it they are keyed by the id alone, as
versions before did; it is rewritten when it is loaded."""


def row_dtype(dimensions: int, recent: int, seen: int) -> np.dtype[np.void]:
    """One slab row: header, vector [D], interactions [R], seen [M]."""
    return np.dtype(
        [
            ("header", HEADER),
            ("vector", "<f4", (dimensions,)),
            ("interactions", INTERACTION, (recent,)),
            ("seen", "<u8", (seen,)),
        ]
    )


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

    @property
    def t_ref(self) -> int:
        """Newest accepted event time, ms."""
        return int(self.header["t_ref"])

    @property
    def mass(self) -> float:
        """Decayed mass at ``t_ref``."""
        return float(self.header["mass"])


def decode(value: bytes | memoryview) -> InterestRecord:
    """Decode one record. Raises RecordFormatError."""
    if len(value) < HEADER.itemsize:
        raise RecordFormatError(f"interest record of {len(value)} bytes is shorter than its header")
    header = np.frombuffer(value, HEADER, count=1)[0]
    if header["version"] != VERSION:
        raise RecordFormatError(f"interest record of version {header['version']}, expected {VERSION}")
    d, n, m = int(header["dimensions"]), int(header["interactions"]), int(header["seen_stored"])
    if n != min(header["total"], header["recent"]) or not header["recent"]:
        # the ring's slots are found by these
        raise RecordFormatError(
            f"interest record of {n} interactions, of {header['total']} ever and {header['recent']} at most"
        )
    ring = HEADER.itemsize + 4 * d
    tail = ring + INTERACTION.itemsize * n
    if len(value) != tail + 8 * m:
        raise RecordFormatError(f"interest record of {len(value)} bytes, its header says {tail + 8 * m}")
    return InterestRecord(
        header,
        np.frombuffer(value, "<f4", count=d, offset=HEADER.itemsize),
        np.frombuffer(value, INTERACTION, count=n, offset=ring),
        np.frombuffer(value, "<u8", count=m, offset=tail),
    )


def by_arrival(record: InterestRecord) -> NDArray[np.void]:
    """A record's interactions, oldest arrival first."""
    n, total, recent = len(record.interactions), int(record.header["total"]), int(record.header["recent"])
    if total <= n or n < recent:
        return record.interactions
    return np.roll(record.interactions, -(total % recent))
