"""Which partition of a topic a key belongs to."""

from __future__ import annotations

from kafka.partitioner import murmur2


def partition_of(key: bytes, partitions: int) -> int:
    """Where the default partitioner of every Kafka client puts this key, in 0..``partitions``-1.

    >>> [partition_of(user, 4) for user in (b"ana", b"ben", b"cem")]
    [0, 1, 0]
    """
    return int((murmur2(key) & 0x7FFF_FFFF) % partitions)
