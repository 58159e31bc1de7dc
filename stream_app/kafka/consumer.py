"""What who reads partitions asks of a consumer, and tells it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from stream_app.kafka.records import KeyedRecord, Partition


class Found(Protocol):
    """The first record that is not older than the time that was asked for."""

    @property
    def offset(self) -> int:
        """Its offset."""


class Consumer(Protocol):
    """Partitions are assigned to it; aiokafka's is one. What asks the broker raises a
    KafkaError."""

    def assignment(self) -> Collection[Partition]:
        """The partitions."""

    async def beginning_offsets(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        """The first offset that there is of each."""

    async def end_offsets(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        """The offset after the last record of each that is to be read."""

    async def offsets_for_times(
        self, timestamps: Mapping[Partition, int]
    ) -> Mapping[Partition, Found | None]:
        """Where each partition's records since a time, ms, begin; None where there are none."""

    async def position(self, partition: Partition) -> int:
        """The offset that is read next."""

    def highwater(self, partition: Partition) -> int | None:
        """The end of the partition, as the last fetch showed it."""

    def seek(self, partition: Partition, offset: int) -> None:
        """Read on from ``offset``."""

    def pause(self, *partitions: Partition) -> None:
        """Fetch nothing of these."""

    def resume(self, *partitions: Partition) -> None:
        """Fetch of these again."""

    async def getmany(
        self, *partitions: Partition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[Partition, list[KeyedRecord]]:
        """What has been fetched, of these partitions or of all."""
