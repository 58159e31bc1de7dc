"""The record of one content on ``content-stats``: decayed engagement counts of one user partition.

A ranker adds up the records of all partitions; the counts are order-free sums like the users'
vectors: ``count[a, h] = Σ 2^(-(t_ref - t)/h)`` over the events of action ``a``.

Layout, little-endian, version 1: ``version u1, actions u1, half_lives u1, pad u1, partition u4,
t_ref i8 (ms)``, then ``actions`` codes u2, ``half_lives`` hours f4, counts f4 [actions, half_lives].

Keys that begin with ``RESERVED`` are no contents. The value of ``OUTCOMES_KEY`` is that partition's exact
account of input records, and how far its inputs have been read (JSON, see :class:`Outcomes`). Every
transaction that commits an offset writes it, so it survives every crash, and is not lost with a consumer
group's offsets. Those of ``ROUTER`` say where routers read on, see :mod:`stream_app.interests.routers`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_app.errors import RecordFormatError

VERSION = 1
RESERVED = b"\x00"
"""Content ids never start with a control character."""
OUTCOMES_KEY = RESERVED + b"outcomes"
ROUTER = RESERVED + b"router" + RESERVED
NOT_ROUTED = -1
_HEADER = struct.Struct("<BBBxIq")


class Outcomes(msgspec.Struct, kw_only=True):
    """What became of every input record of one partition: each is counted in exactly one field,
    a record that waits for its content in ``retrying`` until it ends elsewhere."""

    applied: int = 0
    duplicates: int = 0
    dead_lettered: int = 0
    retrying: int = 0
    routed: int = 0
    """Handed on to their users' partitions, which account for what becomes of them."""
    positions: dict[str, tuple[int, str]] = msgspec.field(default_factory=dict)
    """Full name of an input topic → where the state reads it on, and the topic's id (empty where the
    broker has none)."""
    rebuilding: bool = False
    """A rebuild of the state was begun and is not finished: nobody may serve it."""
    settings: dict[str, str] = {}
    """What shaped the state that the partition's newest transactions wrote (:mod:`.shaping`)."""

    @property
    def accounted(self) -> int:
        """Input records accounted for, each where it ended."""
        return self.applied + self.duplicates + self.dead_lettered + self.retrying


class RouterStanding(msgspec.Struct, array_like=True, frozen=True):
    """How far a router has read a partition of an event topic, and what became of its records (JSON)."""

    offset: int = NOT_ROUTED
    """The next one; ``NOT_ROUTED`` when the table's partition of that number reads it now."""
    topic_id: str = ""
    routed: int = 0
    dead_lettered: int = 0


def router_key(topic: str, partition: int) -> bytes:
    """Key of the standing of a partition of an event topic (its full name)."""
    return b"%s%s-%d" % (ROUTER, topic.encode(), partition)


def routed_by(key: bytes) -> tuple[str, int] | None:
    """Topic and partition of the key of a router's standing; None for any other key."""
    if not key.startswith(ROUTER):
        return None
    topic, _, partition = key.removeprefix(ROUTER).decode().rpartition("-")
    return topic, int(partition)


@dataclass(frozen=True)
class Statistics:
    """Decoded statistics of one content in one partition."""

    partition: int
    t_ref: int
    """ms; the counts stand at it"""
    actions: NDArray[np.uint16]
    """[A], action codes"""
    half_lives_h: NDArray[np.float32]
    """[H], hours"""
    counts: NDArray[np.float32]
    """[A, H]"""


def prefix(
    partition: int, actions: NDArray[np.uint16], half_lives_h: NDArray[np.float32]
) -> tuple[bytes, bytes]:
    """What all records of a partition share: the bytes before ``t_ref``, and those from it to the counts."""
    start = _HEADER.pack(VERSION, len(actions), len(half_lives_h), partition, 0)[:8]
    return start, actions.astype("<u2").tobytes() + half_lives_h.astype("<f4").tobytes()


def like(start: bytes, middle: bytes, value: bytes) -> tuple[int, NDArray[np.float32]] | None:
    """``t_ref`` and counts [A * H] of a record that shares its ``prefix``; None of any other."""
    counts = len(start) + 8 + len(middle)
    if not value.startswith(start) or value[len(start) + 8 : counts] != middle:
        return None
    if len(value) != counts + 4 * start[1] * start[2]:
        return None
    t_ref = int.from_bytes(value[len(start) : len(start) + 8], "little", signed=True)
    return t_ref, np.frombuffer(value, "<f4", offset=counts)


def decode(value: bytes) -> Statistics:
    """Decode one record. Raises RecordFormatError."""
    if len(value) < _HEADER.size:
        raise RecordFormatError(f"statistics record of {len(value)} bytes is shorter than its header")
    version, a, h, partition, t_ref = _HEADER.unpack_from(value)
    if version != VERSION:
        raise RecordFormatError(f"statistics record of version {version}, expected {VERSION}")
    half_lives = _HEADER.size + 2 * a
    counts = half_lives + 4 * h
    if len(value) != counts + 4 * a * h:
        raise RecordFormatError(
            f"statistics record of {len(value)} bytes, its header says {counts + 4 * a * h}"
        )
    return Statistics(
        partition,
        t_ref,
        np.frombuffer(value, "<u2", count=a, offset=_HEADER.size),
        np.frombuffer(value, "<f4", count=h, offset=half_lives),
        np.frombuffer(value, "<f4", offset=counts).reshape(a, h),
    )
