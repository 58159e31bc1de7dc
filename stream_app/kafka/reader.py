"""Reads one topic whole, without a consumer group: first what is there, then what comes.

For topics that every worker needs complete in memory (``content-vectors``, ``content-stats``). Records
are handed on in batches of one partition, in offset order. A range that cannot be read is passed over: who
follows a topic is better without some of it than not there at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaConnectionError, UnknownTopicOrPartitionError

from stream_app.errors import TopicMismatchError
from stream_app.kafka import diagnosis
from stream_app.kafka.connection import aiokafka_options
from stream_app.kafka.consumer import Consumer
from stream_app.kafka.disconnect import disconnect
from stream_app.kafka.positions import positions
from stream_app.kafka.records import KeyedRecord, Partition
from stream_app.kafka.unreadable import readable
from stream_app.settings import Settings

log = logging.getLogger(__name__)

BATCH_RECORDS = 4_000  # applied in one go: some 40 ms in which the event loop does nothing else
POLL_MS = 200  # a fetch that holds nothing but transaction markers is noticed after this long
PROGRESS_S = 5.0
REACH_S = 0.005  # looks for what has just been committed
GATHER_MS = 200


class TopicReader:
    """Keeps calling ``apply`` with everything that stands on a topic."""

    def __init__(
        self,
        settings: Settings,
        topic: str,
        apply: Callable[[Sequence[KeyedRecord]], Awaitable[None] | None],
        *,
        label: str,
        read_committed: bool = True,
        prompt: bool = True,
    ) -> None:
        """``topic`` is the full name on the broker; ``label`` says in the log what is being read.

        Where ``apply`` returns something to wait for, nothing more is read until it is done. Unless
        ``prompt``, what comes after the start may come ``GATHER_MS`` late, and many records at a time.
        """
        self._settings, self._kafka = settings, settings.kafka
        self._topic = topic
        self._apply = apply
        self._label = label
        self._isolation = "read_committed" if read_committed else "read_uncommitted"
        self._gather_ms = 0 if prompt else GATHER_MS
        self._consumer: AIOKafkaConsumer | None = None
        self._task: asyncio.Task[None] | None = None
        self.records = 0
        """Records applied so far."""
        self.caught_up = False
        """Whether everything that stood on the topic at the start has been applied."""
        self.moved: Callable[[], None] = lambda: None
        """Called whenever the way to the end has become shorter."""
        self.failed: asyncio.Future[None]
        """Made by ``start``; gets the exception that ended ``run``. The worker must stop on it."""

    async def start(self) -> None:
        """Return once the end of the topic, as it is now, has been reached; go on reading in a task.

        Raises BrokerUnavailableError, AccessError, TopicMismatchError when the topic is missing, and whatever
        ``apply`` raises.
        """
        self.failed = asyncio.get_running_loop().create_future()
        self._consumer = consumer = AIOKafkaConsumer(
            self._topic,
            **aiokafka_options(self._settings, f"{self._kafka.app_id}-reader"),
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            isolation_level=self._isolation,
            fetch_max_wait_ms=self._kafka.fetch_max_wait_ms,
            max_partition_fetch_bytes=self._kafka.fetch_max_bytes,
            check_crcs=self._kafka.batch_max_bytes,
        )
        try:
            try:
                await consumer.start()
            except KafkaConnectionError as error:
                raise await asyncio.to_thread(diagnosis.cause, self._settings, error) from None
            except UnknownTopicOrPartitionError:
                raise TopicMismatchError(
                    f"topic {self._topic} does not exist: create it with `stream-app topics --create`"
                ) from None
            partitions = [
                Partition(self._topic, p) for p in sorted(consumer.partitions_for_topic(self._topic))
            ]
            # A subscription follows the cluster's metadata, which may miss the topic for a moment while
            # a broker restarts, and would then read everything again; an assignment is ours alone.
            consumer.unsubscribe()
            consumer.assign(partitions)
            await self._catch_up(consumer, partitions)
        except BaseException:
            await self.stop()
            raise
        self.caught_up = True
        consumer._fetcher.gather_ms = self._gather_ms
        self._task = asyncio.create_task(self.run(), name=f"reader of {self._topic}")

    async def run(self) -> None:
        """Follow the topic for ever. What ends it other than ``stop`` is set on ``failed``."""
        consumer = self._consumer
        assert consumer is not None, "start first"  # noqa: S101  # a caller's mistake, not an input
        try:
            while True:
                await self._poll(consumer)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the worker must stop on it
            log.critical("%s: reading %s ended: %r", self._label, self._topic, error)
            self.failed.set_exception(error)
            self.failed.exception()  # it has been logged, whether or not someone awaits it

    async def stop(self) -> None:
        """Stop reading and close the connection; may be called more than once."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._consumer is not None:
            consumer, self._consumer = self._consumer, None
            await disconnect(consumer)

    def positions(self) -> dict[Partition, int]:
        """Where each partition is read on; nothing before ``start`` and after ``stop``."""
        return {} if self._consumer is None else positions(self._consumer, {self._topic})

    async def reach(self, ends: Mapping[Partition, int]) -> None:
        """Return once everything before these offsets has been applied. Raises what ended the reading."""
        while any(self.positions().get(tp, 0) < end for tp, end in ends.items()):
            if self.failed.done():
                self.failed.result()
            await asyncio.sleep(REACH_S)

    async def _poll(self, consumer: Consumer) -> None:
        for fetched in (await self._fetch(consumer)).values():
            if not (records := readable(fetched)):
                continue
            if (applying := self._apply(records)) is not None:
                await applying
            self.records += len(records)
        await asyncio.sleep(0)  # getmany does not give way while it has records: heartbeats and pages must

    async def _fetch(self, consumer: Consumer) -> dict[Partition, list[KeyedRecord]]:
        return await consumer.getmany(timeout_ms=POLL_MS, max_records=BATCH_RECORDS)

    async def _catch_up(self, consumer: Consumer, partitions: list[Partition]) -> None:
        """Read until the position has reached the end of each partition.

        Offsets alone do not tell: transaction markers and compacted records take offsets as well.
        """
        begin = await consumer.beginning_offsets(partitions)
        end = await consumer.end_offsets(partitions)
        total = sum(end[p] - begin[p] for p in partitions)
        started = reported = time.monotonic()
        before = total + 1
        while missing := sum([max(0, end[p] - await consumer.position(p)) for p in partitions]):
            if missing < before:
                before = missing
                self.moved()
            now = time.monotonic()
            if now - reported >= PROGRESS_S:
                reported = now
                share = 100 * (1 - missing / total)
                rate = self.records / (now - started)
                log.info("%s: %d records, %.0f/s, %.0f %%", self._label, self.records, rate, share)
            await self._poll(consumer)
        seconds = time.monotonic() - started
        rate = self.records / max(seconds, 1e-9)
        log.info("%s: read %d records in %.1f s, %.0f/s", self._label, self.records, seconds, rate)
