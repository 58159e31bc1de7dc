"""The record of one content on ``content-vectors``: its unit vector and what ranking needs beside it.

Layout, little-endian, version 1::

    header   version u1, pad u1, dimensions u2, model length u2, author length u2,
             created_at i8 (ms), encoded_at i8 (ms)
    model    UTF-8 encoder id
    author   UTF-8, empty when unknown
    vector   float16 [D], L2-normalised before rounding; a content without text has none: D = 0
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.errors import RecordFormatError

VERSION = 1
_HEADER = struct.Struct("<BxHHHqq")


@dataclass(frozen=True)
class ContentVector:
    """One content as the index needs it."""

    model: str
    author: str
    created_at: int
    """ms"""
    encoded_at: int
    """ms, wall clock"""
    vector: NDArray[np.float16]
    """[D], unit length within float16 rounding; [0] of a content without text"""


def encode(content: ContentVector) -> bytes:
    """Bytes of one record."""
    model, author = content.model.encode(), content.author.encode()
    vector = np.ascontiguousarray(content.vector, "<f2")
    header = _HEADER.pack(
        VERSION, vector.size, len(model), len(author), content.created_at, content.encoded_at
    )
    return b"".join((header, model, author, vector.tobytes()))


def decode(value: bytes) -> ContentVector:
    """Decode one record. Raises RecordFormatError."""
    if len(value) < _HEADER.size:
        raise RecordFormatError(f"content vector of {len(value)} bytes is shorter than its header")
    version, d, model_bytes, author_bytes, created_at, encoded_at = _HEADER.unpack_from(value)
    if version != VERSION:
        raise RecordFormatError(f"content vector of version {version}, expected {VERSION}")
    author_start = _HEADER.size + model_bytes
    vector_start = author_start + author_bytes
    if len(value) != vector_start + 2 * d:
        raise RecordFormatError(
            f"content vector of {len(value)} bytes, its header says {vector_start + 2 * d}"
        )
    try:
        model = value[_HEADER.size : author_start].decode()
        author = value[author_start:vector_start].decode()
    except UnicodeDecodeError as error:
        raise RecordFormatError(f"content vector whose names are not UTF-8: {error.reason}") from None
    return ContentVector(
        model, author, created_at, encoded_at, np.frombuffer(value, "<f2", offset=vector_start)
    )
