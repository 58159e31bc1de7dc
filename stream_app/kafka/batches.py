"""The record batches of one fetch, one after the other, for both client libraries.

Their own code ends a fetch, and with it the partition's reading, at the first batch that it cannot read;
and it unpacks whatever it is told to. Here a batch that cannot be read costs nothing but itself, and none
unpacks to more than its bound.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from stream_app.kafka.codecs import OversizedBatchError, unpack
from stream_app.kafka.unreadable import Damage, cause_of

MAX_BYTES = 64 << 20
"""``kafka.batch_max_bytes`` of a client that is not told."""

TAKE_BYTES = 16 << 20
"""Enough unpacked for one take: what comes in the same fetch is left packed until the next one."""

LARGE_BYTES = 4 << 20
"""In smaller batches there is no room for what would have to be looked for."""

MAX_HEADERS = 100_000
"""Of one record in a large batch, and of the records of one take but for the last."""

V2 = 2
CODEC = 0x07
ATTRIBUTES_AT, RECORDS_AT = 21, 61
_FRAME = struct.Struct(">qi")  # base offset, bytes that follow
_MAGIC_AT = 16
_SHORTEST = 14
_HEADER = struct.Struct(">qiibIhiqqqhii")


class Header(NamedTuple):
    """What a batch of version 2 says of itself."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    first_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    records: int


class BrokenFrameError(Exception):
    """It cannot even be told where a batch ends."""


class UnknownVersionError(Exception):
    """A batch has a version (magic) that Kafka does not know."""


class ChecksumError(Exception):
    """A batch is not what its checksum says."""


class Batches:
    """Iterates over the batches of ``fetched``; ``batch`` makes what the library expects of each."""

    most: int = MAX_BYTES
    """Bytes that a batch may unpack to."""

    def __init__(self, fetched: bytes | memoryview | None) -> None:
        self._fetched = memoryview(fetched or b"")
        self._start = self._next = 0
        self._unpacked = 0

    def size_in_bytes(self) -> int:
        """Of everything that was fetched."""
        return len(self._fetched)

    def has_next(self) -> bool:
        """Whether another batch is to be read in this take. The first one always is, or the fetch would
        be repeated for ever."""
        return self._unpacked < TAKE_BYTES and self._more()

    def renew(self) -> bool:
        """Begin another take; whether there is anything for it."""
        self._unpacked = 0
        return self._more()

    def next_batch(self) -> Any:
        """The next batch, None after the last. Raises BrokenFrameError, UnknownVersionError,
        ChecksumError, and whatever the library raises."""
        if not self._more():
            return None
        self._start, end = self._next, self._end()
        if end is None:
            self._next = len(self._fetched)
            raise BrokenFrameError("its length is impossible")
        self._next = end
        magic = self._fetched[self._start + _MAGIC_AT]
        if magic > V2:
            raise UnknownVersionError(f"version {magic}")
        if magic == V2 and end - self._start < RECORDS_AT:
            raise BrokenFrameError("it is shorter than its header")
        batch = self.batch(self.current, magic)
        if not batch.validate_crc():
            raise ChecksumError("its checksum does not fit")
        return batch

    def batch(self, raw: memoryview, magic: int) -> Any:
        """The library's batch of these bytes."""
        raise NotImplementedError

    def unpacked(self, codec: int, payload: memoryview) -> list[bytes]:
        """A payload's pieces. Raises what :func:`codecs.unpack` raises."""
        pieces = unpack(codec, payload, self.most)
        self._unpacked += sum(map(len, pieces))
        return pieces

    @property
    def current(self) -> memoryview:
        """Bytes of the batch that was begun last."""
        return self._fetched[self._start : self._next]

    def back(self) -> None:
        """Read the same batch once more."""
        self._next = self._start

    def damage(self, error: Exception, position: int, highwater: int | None) -> Damage | None:
        """What is left unread of the batch that raised ``error``; None where nothing is.

        ``position`` is the first offset that was not read. Where the batch is not to be believed, what
        follows it and the end of the partition bound the range.
        """
        reason, detail = cause_of(error)
        raw = self.current
        if isinstance(error, BrokenFrameError):
            return Damage(position, position, 1, 0, reason, detail)
        if len(raw) < RECORDS_AT or raw[_MAGIC_AT] < V2:  # its one offset is its last record's
            last, sound, header = int.from_bytes(raw[:8], "big", signed=True), False, None
        else:
            header = Header._make(_HEADER.unpack_from(raw))
            last = header.base_offset + header.last_offset_delta
            sound = not isinstance(error, ChecksumError | UnknownVersionError)
        if not sound:
            limits = [last]
            if self._next + _FRAME.size <= len(self._fetched):
                limits.append(_FRAME.unpack_from(self._fetched, self._next)[0] - 1)
            if highwater is not None and highwater >= 0:
                limits.append(highwater - 1)
            last = max(position, min(limits))
        if last < position:
            return None
        if header is None or not sound:
            return Damage(position, last, last - position + 1, 0, reason, detail)
        first = max(position, header.base_offset)
        count = min(max(header.records, 1), last - first + 1)
        return Damage(first, last, count, max(header.max_timestamp, 0), reason, detail)

    def _more(self) -> bool:
        return self._end() is not None or (self._next == 0 and len(self._fetched) > 0)

    def _end(self) -> int | None:
        """Where the next batch ends; None where it is cut off, as the last one of a fetch may be."""
        if self._next + _FRAME.size > len(self._fetched):
            return None
        length: int = _FRAME.unpack_from(self._fetched, self._next)[1]
        end = self._next + _FRAME.size + length
        return end if length >= _SHORTEST and end <= len(self._fetched) else None


def plain(raw: memoryview, batches: Batches) -> bytes:
    """A compressed batch of version 2 as it would be without compression, but for its checksum."""
    head = bytearray(raw[:RECORDS_AT])
    (attributes,) = struct.unpack_from(">h", head, ATTRIBUTES_AT)
    struct.pack_into(">h", head, ATTRIBUTES_AT, attributes & ~CODEC)
    return b"".join((head, *batches.unpacked(attributes & CODEC, raw[RECORDS_AT:])))


def check_headers(plain: bytes | bytearray | memoryview, begin: int) -> int:
    """Where the record after the one at ``begin`` is, of an uncompressed batch of version 2.

    Raises OversizedBatchError if the one at ``begin`` has too many headers: an empty one takes 2 bytes in a
    batch, and 64 in memory.
    """
    try:
        length, at = _varint(plain, begin)
        end = at + length
        at += 1  # attributes
        for _ in range(2):  # time and offset
            _, at = _varint(plain, at)
        for _ in range(2):  # key and value
            size, at = _varint(plain, at)
            at += max(size, 0)
        count, _ = _varint(plain, at)
    except IndexError:
        return begin  # it is damaged: whoever reads it will say so
    if count > MAX_HEADERS:
        raise OversizedBatchError(f"a record has {count} headers, at most {MAX_HEADERS} are read")
    return end


def _varint(data: bytes | bytearray | memoryview, at: int) -> tuple[int, int]:
    """A zigzag number, and where the next byte is. Raises IndexError at the end of the data."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at
        shift += 7


def codec_of(raw: memoryview) -> int:
    """How a batch is compressed; 0: it is not."""
    return raw[ATTRIBUTES_AT + 1 if raw[_MAGIC_AT] == V2 else _MAGIC_AT + 1] & CODEC
