"""Where partitions end, and which of them do not move although there is something to read."""

from __future__ import annotations

import asyncio

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaConnectionError, KafkaError

from stream_app.kafka.connection import aiokafka_options
from stream_app.kafka.disconnect import disconnect
from stream_app.kafka.records import Partition
from stream_app.settings import Settings

ASK_S = 2.0
"""How often the broker is asked."""


class Idle:
    """How long one partition has not moved although there was something to read."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._furthest = (0, 0)

    def look(self, work: bool, position: int, committed: int, end: int, seconds: float) -> None:
        """``seconds`` have passed since the last look.

        Movement is getting further than ever: a partition that is read again and again from the same
        offset, because its batch fails each time, does not move.
        """
        furthest = max(self._furthest[0], position), max(self._furthest[1], committed)
        if self._furthest[0] > end:  # the topic was made anew
            furthest = position, committed
        if not work or furthest != self._furthest:
            self.seconds = 0.0
        else:
            self.seconds += seconds
        self._furthest = furthest


class Ends:
    """Where partitions end, by a client of its own: what is suspected is not asked about itself."""

    def __init__(self, settings: Settings, *, read_committed: bool = True) -> None:
        """Without ``read_committed`` what is not decided yet counts, too."""
        self._settings = settings
        self._isolation = "read_committed" if read_committed else "read_uncommitted"
        self._timeout_s = settings.kafka.request_timeout_s
        self._consumer: AIOKafkaConsumer | None = None

    async def of(self, partitions: set[Partition]) -> dict[Partition, int]:
        """The offset after the last record of each that counts. Raises KafkaError or TimeoutError within
        ``kafka.request_timeout_s``, and connects anew the next time."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._of(partitions)
        except (KafkaError, TimeoutError):
            await self.stop()
            raise

    async def _of(self, partitions: set[Partition]) -> dict[Partition, int]:
        if self._consumer is None:
            self._consumer = AIOKafkaConsumer(
                **aiokafka_options(self._settings, f"{self._settings.kafka.app_id}-supervision"),
                isolation_level=self._isolation,
            )
            await self._consumer.start()
        elif not partitions and not await self._consumer._client.force_metadata_update():
            raise KafkaConnectionError("no broker gives metadata")
        found = await self._consumer.end_offsets(list(partitions))
        return {Partition(*tp): int(end) for tp, end in found.items()}

    async def stop(self) -> None:
        """Disconnect; may be called more than once."""
        if self._consumer is not None:
            consumer, self._consumer = self._consumer, None
            await disconnect(consumer)
