"""Which partition of a topic a key belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from kafka.partitioner import murmur2
from numpy.typing import NDArray

FEW = 32
"""Up to so many keys are faster one by one than as arrays."""

M = np.uint32(0x5BD1_E995)
SEED = 0x9747_B28C


def partition_of(key: bytes, partitions: int) -> int:
    """Where the default partitioner of Kafka's own clients puts this key, in 0..``partitions``-1.

    >>> [partition_of(user, 4) for user in (b"ana", b"ben", b"cem")]
    [0, 1, 0]
    """
    return int((murmur2(key) & 0x7FFF_FFFF) % partitions)


def partitions_of(keys: Sequence[bytes], partitions: int) -> NDArray[np.int64]:
    """[n], :func:`partition_of` each key; no key may have a null byte."""
    if partitions == 1:
        return np.zeros(len(keys), np.int64)
    if len(keys) <= FEW:
        return np.array([partition_of(key, partitions) for key in keys], np.int64)
    hashes = _murmur2(keys) & np.uint32(0x7FFF_FFFF)
    placed: NDArray[np.int64] = hashes.astype(np.int64) % partitions
    return placed


def _murmur2(keys: Sequence[bytes]) -> NDArray[np.uint32]:
    """[n], Kafka's murmur2: all first words of four bytes, then all second ones, and so on."""
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    whole = lengths // 4
    width = 4 * (int(whole.max()) + 1)
    # a fixed-width array ends each key with null bytes, which add nothing to the last, partial word
    words = np.array(keys, f"S{width}").view("<u4").reshape(len(keys), width // 4)
    hashes = np.uint32(SEED) ^ lengths.astype(np.uint32)
    order = np.argsort(-whole, kind="stable")
    longer = np.cumsum(np.bincount(whole)[::-1])[::-1]  # how many keys have at least so many words
    for at in range(int(whole.max())):
        rows = order[: longer[at + 1]]
        mixed = words[rows, at] * M
        mixed ^= mixed >> np.uint32(24)
        hashes[rows] = (hashes[rows] * M) ^ (mixed * M)
    rest = np.flatnonzero(lengths % 4)
    hashes[rest] = (hashes[rest] ^ words[rest, whole[rest]]) * M
    hashes ^= hashes >> np.uint32(13)
    hashes *= M
    hashes ^= hashes >> np.uint32(15)
    return hashes
