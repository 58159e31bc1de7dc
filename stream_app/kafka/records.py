"""What the stages are handed of what stands on Kafka: partitions, records, batches of records.

No type of a client library or of Faust: those stay within ``stream_app.kafka``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from aiokafka.structs import ConsumerRecord, TopicPartition

PRODUCERS_TIME = 0
"""``timestamp_type`` of a topic whose timestamps are the producers'."""


class Partition(TopicPartition):  # type: ignore[misc]  # untyped base
    """One partition of a topic: a tuple, equal to aiokafka's, which takes it as its own, and to Faust's."""

    __slots__ = ()

    topic: str
    """Full name."""
    partition: int
    """Number within the topic."""


class Record(Protocol):
    """A consumed record; what the client libraries hand out is one as it is."""

    @property
    def topic(self) -> str:
        """Full name."""

    @property
    def partition(self) -> int:
        """Number within the topic."""

    @property
    def offset(self) -> int:
        """Offset in its partition."""

    @property
    def timestamp(self) -> int:
        """Kafka timestamp, ms."""

    @property
    def timestamp_type(self) -> int:
        """Whose the timestamp is: 0 the producer's, 1 the broker's."""

    @property
    def key(self) -> bytes | None:
        """Raw key."""

    @property
    def value(self) -> bytes | None:
        """Raw value."""

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]:
        """Names and raw values, in order."""


class KeyedRecord(Record, Protocol):
    """A record of a compacted topic: the broker takes none without a key."""

    @property
    def key(self) -> bytes:
        """Raw key."""


def arrived(
    topic: str, partition: int, offset: int, time_ms: int, key: bytes | None, value: bytes | None
) -> Record:
    """A record as a consumer would hand it out, for what is replayed without a broker."""
    record: Record = ConsumerRecord(
        topic, partition, offset, time_ms, PRODUCERS_TIME, key, value, None, 0, 0, ()
    )
    return record


def emptied(record: Record) -> Record:
    """The record without key, value and headers: what is left is where it was."""
    empty: Record = replace(cast(Any, record), key=None, value=None, headers=())
    return empty


def headed(record: Record, headers: Sequence[tuple[str, bytes | None]]) -> Record:
    """The record with these headers."""
    if not headers:
        return record
    other: Record = replace(cast(Any, record), headers=headers)
    return other


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Consecutive records of one partition.

    Batch follows batch without a hole exactly when ``start`` equals the previous batch's ``end``.
    (Record offsets alone do not show it: transaction markers take offsets. See FetchedRecords.)
    """

    topic: str
    partition: int
    start: int
    records: list[Record]

    @property
    def end(self) -> int:
        """The position after the last record: the offset to commit."""
        return self.records[-1].offset + 1
