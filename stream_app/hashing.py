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


def action_mask(code: int) -> int:
    """What an event's key is combined with (exclusive or), by its action's code: ids are unique for each
    action, so the same id on two actions is two events.

    An event's 64-bit key is ``key64(event_id) ^ action_mask(action_code(action))``.
    """
    return key64(code.to_bytes(2, "little"))


def model_code(model_id: str) -> int:
    """32-bit code of an encoder's id: vectors of two models are never compared."""
    return zlib.crc32(model_id.encode())
