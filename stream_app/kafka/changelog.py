"""Reads one partition of a compacted topic in record batches: recovery to its end, standbys for ever."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from stream_app.kafka.connection import aiokafka_options
from stream_app.observability import metrics
from stream_app.settings import Settings

log = logging.getLogger(__name__)

BATCH_RECORDS = 4_000
POLL_MS = 100
PROGRESS_S = 5.0

Apply = Callable[[Sequence[ConsumerRecord], int], Awaitable[None]]
"""Takes records and the position after them."""


class ChangelogReader:
    """Reads committed records of one partition from a position on."""

    def __init__(self, settings: Settings, topic: str, partition: int) -> None:
        self._kafka = settings.kafka
        self._tp = TopicPartition(topic, partition)
        self._consumer = AIOKafkaConsumer(
            **aiokafka_options(settings, f"{settings.kafka.app_id}-changelog"),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=POLL_MS,
            max_partition_fetch_bytes=settings.kafka.fetch_max_bytes,
        )

    async def start(self, position: int) -> bool:
        """Connect and go to ``position``. Returns False, having gone to the beginning instead, when
        the topic no longer reaches that far (it was deleted and made again)."""
        await self._consumer.start()
        self._consumer.assign([self._tp])
        beginning = (await self._consumer.beginning_offsets([self._tp]))[self._tp]
        end = await self.end()
        known = beginning <= position <= end
        self._consumer.seek(self._tp, position if known else beginning)
        return known or position == 0

    async def stop(self) -> None:
        """Disconnect."""
        await self._consumer.stop()

    async def end(self) -> int:
        """The offset that the next record will get."""
        return int((await self._consumer.end_offsets([self._tp]))[self._tp])

    async def position(self) -> int:
        """The offset that is read next. Transaction markers take offsets, so only this, and never a
        record's offset, tells whether the end has been reached."""
        return int(await self._consumer.position(self._tp))

    async def read_to_end(self, apply: Apply) -> int:
        """Apply everything up to the end as it is now; returns the position reached."""
        begun = reported = time.monotonic()
        end, count = await self.end(), 0
        while (position := await self.position()) < end:
            count += await self._poll(apply, "recovery")
            now = time.monotonic()
            if now - reported >= PROGRESS_S:
                reported = now
                log.info(
                    "%s: recovered %d records, %.0f/s, offset %d of %d",
                    *(self._label, count, count / (now - begun), position, end),
                )
        seconds = time.monotonic() - begun
        log.info(
            "%s: recovered %d records in %.2f s, %.0f/s",
            *(self._label, count, seconds, count / max(seconds, 1e-9)),
        )
        return position

    async def follow(self, apply: Apply) -> None:
        """Apply what comes, until cancelled."""
        while True:
            await self._poll(apply, "standby")

    async def _poll(self, apply: Apply, mode: str) -> int:
        fetched = await self._consumer.getmany(self._tp, timeout_ms=POLL_MS, max_records=BATCH_RECORDS)
        records = fetched.get(self._tp, ())
        if records:
            await apply(records, await self.position())
            metrics.RECOVERY_RECORDS.labels(mode).inc(len(records))
        await asyncio.sleep(0)  # getmany does not give way while it has records
        return len(records)

    @property
    def _label(self) -> str:
        return f"{self._tp.topic}[{self._tp.partition}]"
