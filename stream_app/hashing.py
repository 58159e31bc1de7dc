"""Stable 64-bit and 16-bit identities for ids that arrive as text.

Python's own ``hash`` differs from process to process; records outlive processes.
"""

from __future__ import annotations

import zlib

import xxhash


def key64(text: str | bytes) -> int:
    """64-bit identity (XXH3) of an id; unsigned, stable across processes and machines."""
    return xxhash.xxh3_64_intdigest(text)


def action_code(name: str) -> int:
    """16-bit code of an action's name, stable when actions are added or reordered.

    >>> action_code("like") != action_code("share")
    True
    """
    return zlib.crc32(name.encode()) & 0xFFFF


def model_code(model_id: str) -> int:
    """32-bit code of an encoder's id: vectors of two models are never compared."""
    return zlib.crc32(model_id.encode())
