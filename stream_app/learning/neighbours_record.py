"""The record of one content on ``co-engagement``: its neighbours, by key, and what is counted with each.

Layout, little-endian, version 2: ``version u1, pad u1, neighbours k u2, users f4, strong_users f4,
pad 4``, then the neighbours' content keys u8 [k] and their counts f4 [4, k], the axis ``CHANNELS`` of
:mod:`stream_app.learning.coengagement`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.errors import RecordFormatError
from stream_app.learning.coengagement import CHANNELS

VERSION = 2
MOST_NEIGHBOURS = 0xFFFF
_HEADER = struct.Struct("<BxHff4x")


@dataclass(frozen=True)
class Neighbours:
    """What one content is engaged with together with."""

    users: float
    """who engaged with the content"""
    strong_users: float
    """those who did so strongly"""
    keys: NDArray[np.uint64]
    """[k], key64 of each neighbour, each once"""
    counts: NDArray[np.float32]
    """[4, k], ≥ 0"""


def record_bytes(count: int) -> int:
    """Of a record with so many neighbours."""
    return _HEADER.size + count * (8 + 4 * len(CHANNELS))


def encode(neighbours: Neighbours) -> bytes:
    """The record; at most MOST_NEIGHBOURS neighbours."""
    header = _HEADER.pack(VERSION, len(neighbours.keys), neighbours.users, neighbours.strong_users)
    keys = neighbours.keys.astype("<u8", copy=False).tobytes()
    return b"".join((header, keys, neighbours.counts.astype("<f4", copy=False).tobytes()))


def decode(value: bytes) -> Neighbours:
    """Decode one record. Raises RecordFormatError."""
    if len(value) < _HEADER.size:
        raise RecordFormatError(f"neighbours record of {len(value)} bytes is shorter than its header")
    version, k, users, strong_users = _HEADER.unpack_from(value)
    if version != VERSION:
        raise RecordFormatError(f"neighbours record of version {version}, expected {VERSION}")
    counts_at = _HEADER.size + 8 * k
    if len(value) != (size := counts_at + 4 * len(CHANNELS) * k):
        raise RecordFormatError(f"neighbours record of {len(value)} bytes, its header says {size}")
    keys = np.frombuffer(value, "<u8", count=k, offset=_HEADER.size)
    counts = np.frombuffer(value, "<f4", count=len(CHANNELS) * k, offset=counts_at)
    numbers = np.append(counts, np.array([users, strong_users], np.float32))
    if not (np.isfinite(numbers).all() and (numbers >= 0).all()):
        raise RecordFormatError("neighbours record with a count that is negative or no number")
    if len(np.unique(keys)) < k:
        raise RecordFormatError("neighbours record that names a content twice")
    return Neighbours(users, strong_users, keys, counts.reshape(len(CHANNELS), k))
