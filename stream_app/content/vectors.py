"""Records of ``content-vectors``: each content's unit vector and what ranking needs beside it.

Keys, all placed in the partition that producers give the content's id::

    content_id 00 CODE           the content under one encoder; CODE: 8 hex digits of ``model_code``
    content_id 00 CODE 00 VV     a vector that it had before, by its tag: what was added to interests with
                                 it can still be taken back
    content_id                   as earlier versions wrote: the value alone names the encoder

Encoders stand side by side: no worker of one touches what another wrote, unless the content is deleted.
A key that begins with 00 is no content's; see :mod:`stream_app.content.coverage`.

Value, little-endian, version 1::

    header   version u1, flags u1, dimensions u2, model length u2, author length u2,
             created_at i8 (ms), encoded_at i8 (ms)
    model    UTF-8 encoder id
    author   UTF-8, empty when unknown
    vector   float16 [D], L2-normalised before rounding; none (D = 0) where the text says nothing

Flag 1: ``created_at`` was given; else it is when the content was first seen.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_app.errors import RecordFormatError
from stream_app.hashing import key64, model_code

VERSION = 1
KNOWN = 1
NOTHING: NDArray[np.float16] = np.zeros(0, np.float16)
"""The vector of a content without text."""
_HEADER = struct.Struct("<BBHHHqq")
_KEY = re.compile(rb"([^\0]+)(?:\0([0-9a-f]{8})(?:\0([0-9a-f]{2}))?)?", re.DOTALL)


class VectorKey(NamedTuple):
    """What the key of a content's record says."""

    content_id: bytes
    code: int | None
    """Of the encoder; None where only the value tells"""
    former: int | None
    """Tag of the former vector that stands here; None: the content as it is"""


def vector_key(content_id: bytes, code: int, former: int | None = None) -> bytes:
    """Key of a content under the encoder with this code, or of a former vector of it."""
    key = b"%s\0%08x" % (content_id, code)
    return key if former is None else b"%s\0%02x" % (key, former)


def split_key(key: bytes) -> VectorKey | None:
    """Content, encoder and former vector's tag of a key; None where it is no content's.

    >>> split_key(b"post-1\\x00bd200ed1")
    VectorKey(content_id=b'post-1', code=3172994769, former=None)
    """
    found = _KEY.fullmatch(key)
    if found is None:
        return None
    content_id, code, former = found.groups()
    return VectorKey(
        content_id, None if code is None else int(code, 16), None if former is None else int(former, 16)
    )


def tag(vector: NDArray[np.float16]) -> int:
    """What tells a content's vectors apart, 1 to 255; 0 for none. Two have the same by chance in one of
    255 cases."""
    return key64(np.ascontiguousarray(vector, "<f2").tobytes()) % 255 + 1 if vector.size else 0


@dataclass(frozen=True)
class ContentVector:
    """One content as the index needs it."""

    model: str
    author: str
    created_at: int
    """ms"""
    encoded_at: int
    """ms, wall clock; of a former vector: when it was replaced or deleted"""
    vector: NDArray[np.float16]
    """[D], unit length within float16 rounding; [0] without text"""
    known: bool = False
    """Whether ``created_at`` was given"""

    @property
    def code(self) -> int:
        """Of the encoder."""
        return model_code(self.model)


def encode(content: ContentVector) -> bytes:
    """Bytes of one record."""
    model, author = content.model.encode(), content.author.encode()
    vector = np.ascontiguousarray(content.vector, "<f2")
    header = _HEADER.pack(
        VERSION,
        KNOWN * content.known,
        vector.size,
        len(model),
        len(author),
        content.created_at,
        content.encoded_at,
    )
    return b"".join((header, model, author, vector.tobytes()))


def decode(value: bytes) -> ContentVector:
    """Decode one record. Raises RecordFormatError."""
    if len(value) < _HEADER.size:
        raise RecordFormatError(f"content vector of {len(value)} bytes is shorter than its header")
    version, flags, d, model_bytes, author_bytes, created_at, encoded_at = _HEADER.unpack_from(value)
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
    vector = np.frombuffer(value, "<f2", count=d, offset=vector_start) if d else NOTHING
    return ContentVector(model, author, created_at, encoded_at, vector, bool(flags & KNOWN))
