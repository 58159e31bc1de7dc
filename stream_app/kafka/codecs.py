"""What a compressed record batch unpacks to, bounded: gzip, snappy, lz4 and zstd.

A half megabyte on the wire can stand for a gigabyte. So each codec is unpacked piece by piece, and no
further than the bound. What ends too early is handed on as far as it goes: the batch's own count of
records tells that some are missing.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import cramjam
import lz4.frame
import zstandard

PIECE = 1 << 20
GZIP_WINDOW = 31  # zlib's largest window, in gzip's framing
XERIAL = b"\x82SNAPPY\x00"
XERIAL_HEADER = 16  # marker, version and compatible version, which nobody reads alike


class OversizedBatchError(Exception):
    """A batch unpacks to more than ``kafka.batch_max_bytes``."""


class UnknownCodecError(Exception):
    """A batch is compressed in a way that Kafka does not know."""


def unpack(codec: int, payload: memoryview, most: int) -> list[bytes]:
    """The pieces of what ``payload`` unpacks to, at most ``most`` bytes. ``codec`` is Kafka's number.

    Raises OversizedBatchError as soon as it is more, UnknownCodecError, and of a damaged payload whatever
    its library raises.
    """
    if codec not in _CODECS:
        raise UnknownCodecError(f"codec {codec}")
    pieces, size = [], 0
    for piece in _CODECS[codec](payload, most):
        size += len(piece)
        if size > most:
            raise OversizedBatchError(f"it unpacks to more than {most} bytes")
        pieces.append(piece)
    return pieces


def _gzip(payload: memoryview, _most: int) -> Iterator[bytes]:
    rest: bytes | memoryview = payload
    while rest:
        member = zlib.decompressobj(GZIP_WINDOW)
        while not member.eof and (piece := member.decompress(rest, PIECE)):
            yield piece
            rest = member.unconsumed_tail
        rest = member.unused_data


def _snappy(payload: memoryview, most: int) -> Iterator[bytes]:
    if payload[: len(XERIAL)] != XERIAL:
        yield _snappy_block(payload, most)
        return
    at = XERIAL_HEADER
    while at < len(payload):
        end = at + 4 + int.from_bytes(payload[at : at + 4], "big")
        if end > len(payload):
            raise ValueError("a snappy block is longer than its batch")
        block = _snappy_block(payload[at + 4 : end], most)
        most -= len(block)
        yield block
        at = end


def _snappy_block(block: memoryview, most: int) -> bytes:
    size = cramjam.snappy.decompress_raw_len(block)
    if size > most:
        raise OversizedBatchError(f"it unpacks to {size} bytes, more than the {most} left")
    return bytes(cramjam.snappy.decompress_raw(block))


def _lz4(payload: memoryview, _most: int) -> Iterator[bytes]:
    rest: bytes | memoryview | None = payload
    while rest:
        frame = lz4.frame.LZ4FrameDecompressor()
        given: bytes | memoryview = rest
        while not frame.eof:
            piece = frame.decompress(given, PIECE)
            given = b""
            if piece:
                yield piece
            elif frame.needs_input:
                break
        rest = frame.unused_data


def _zstd(payload: memoryview, _most: int) -> Iterator[bytes]:
    with zstandard.ZstdDecompressor().stream_reader(payload, read_across_frames=True) as stream:
        while piece := stream.read(PIECE):
            yield piece


_CODECS: dict[int, Callable[[memoryview, int], Iterator[bytes]]] = {1: _gzip, 2: _snappy, 3: _lz4, 4: _zstd}
