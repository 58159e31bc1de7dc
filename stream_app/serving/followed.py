"""All slates as they stand on ``recommendations``: each partition followed into a RocksDB of its own.

A replica reads all partitions itself, without a consumer group: each answers for every user. Values and
the position that they stand at go into one write, so that a restart goes on from there. While the broker
is away, what is known is answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec

from stream_app.errors import BrokerUnavailableError
from stream_app.interests.standby import TRUSTED_SHARE, finish
from stream_app.kafka.admin import topic_id
from stream_app.kafka.changelog import ChangelogReader
from stream_app.kafka.errors import KafkaError
from stream_app.kafka.partitions import partition_of
from stream_app.kafka.records import KeyedRecord, Partition
from stream_app.observability import metrics
from stream_app.recommendations.slate import COLD_START_USER, decode_shown
from stream_app.serving.store import SlateStore, stamped
from stream_app.settings import Settings
from stream_app.topics import HOUR_MS, declare

log = logging.getLogger(__name__)

TOPIC = "recommendations"
RETRY_S = 1.0
ROUND_S = 600.0
"""How often a replica looks whether the topic is still the same one, and notes that it stands at its end."""


class FollowedPartition:
    """One partition, in the directory that belongs to it."""

    def __init__(self, settings: Settings, partition: int, moved: Callable[[], None]) -> None:
        """Opens the database; blocking. ``moved`` is called whenever the way to the end became shorter.

        Raises StateDirectoryError.
        """
        directory = Path(settings.interests.data_dir) / f"{settings.group('serving')}-{partition}"
        self.store = SlateStore(directory, settings.interests.write_buffer_bytes)
        self.reached = asyncio.Event()
        """Set while everything that stood on the topic is known."""
        self._settings, self._partition, self._moved = settings, partition, moved
        self._topic = settings.topic_name(TOPIC)
        self._kept_ms = next(t.retention_ms for t in declare(settings) if t.name == self._topic)
        self._open = asyncio.Event()
        self._open.set()
        self._reader: ChangelogReader | None = None
        self._writing = False

    @property
    def position(self) -> tuple[Partition, int]:
        """The topic's partition, and the offset that is read next. Markers of transactions are read, but
        never written: where one ends the topic, the store stands before it."""
        tp = Partition(self._topic, self._partition)
        read = {} if self._reader is None or self._writing else self._reader.positions()
        return tp, max(self.store.position, read.get(tp, 0))

    async def get(self, user: bytes) -> bytes | None:
        """JSON of the user's slate, None when there is none. Raises StateDamagedError."""
        await self._open.wait()
        return self.store.slate(user, self._oldest())

    async def follow(self) -> None:
        """For ever. Raises StateDirectoryError when the directory cannot be read or written."""
        while True:
            reader = ChangelogReader(self._settings, self._topic, self._partition, self._moved, partial=True)
            try:
                await self._resume(reader)
                self._reader = reader
                await reader.read_to_end(self._apply)
                await finish(self.store.write, (), self.store.position)  # it is the end, however old
                self.reached.set()
                await self._clean()
                async with asyncio.timeout(ROUND_S):
                    await reader.follow(self._apply)
            except TimeoutError:
                continue
            except (KafkaError, BrokerUnavailableError) as error:
                log.warning("%s[%d] cannot be followed now: %r", self._topic, self._partition, error)
            finally:
                self._reader = None
                await reader.stop()
            await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        """Close the database; nobody follows or asks any more."""
        await asyncio.to_thread(self.store.close)

    async def _resume(self, reader: ChangelogReader) -> None:
        """Go to where the store stands; empty it first if it cannot be trusted."""
        identity = await asyncio.to_thread(topic_id, self._settings, self._topic)
        trusted_ms = int(TRUSTED_SHARE * self._settings.kafka.delete_retention_h * HOUR_MS)
        before = self.store.position
        position = await self._alone(lambda: self.store.resume(identity, _now_ms(), trusted_ms))
        if position < before:
            self.reached.clear()
        if not await reader.start(position):
            self.reached.clear()
            await self._alone(self.store.clear)

    async def _apply(self, records: Sequence[KeyedRecord], position: int) -> None:
        newest: dict[bytes, bytes | None] = {}
        for record in records:
            if not _usable(record):
                metrics.SERVING_REJECTED.inc()
                continue
            newest[record.key] = None if record.value is None else stamped(record.value, record.timestamp)
        # a reader that lags behind stands where its records were written, not where the clock is
        stood_ms = max(record.timestamp for record in records)
        self._writing = True
        try:
            await finish(self.store.write, list(newest.items()), position, stood_ms)
        finally:
            self._writing = False
        metrics.SERVING_SLATES.labels(str(self._partition)).set(self.store.held)

    async def _clean(self) -> None:
        """Rid the files of erased users' slates and of those that retention took, as often as the broker
        cleans its log."""
        if self.store.is_due(self._settings.kafka.compaction_lag_h * 3600):
            await finish(self.store.sweep, self._oldest())
            await finish(self.store.compact)
            await self._alone(self.store.reopen)
        metrics.SERVING_SLATES.labels(str(self._partition)).set(self.store.held)

    async def _alone(self, work: Callable[[], object]) -> int:
        """Do ``work``, which closes the database for a moment, while nobody reads; the position then."""
        self._open.clear()
        try:
            await finish(work)
        finally:
            self._open.set()
        return self.store.position

    def _oldest(self) -> int:
        return _now_ms() - self._kept_ms


class FollowedSlates:
    """Every user's slate."""

    def __init__(self, settings: Settings, partitions: int, moved: Callable[[], None]) -> None:
        """``partitions`` are those that ``recommendations`` has. Blocking. Raises StateDirectoryError."""
        self._partitions: list[FollowedPartition] = []
        for number in range(partitions):
            self._partitions.append(FollowedPartition(settings, number, moved))

    async def get(self, user: bytes) -> bytes | None:
        """JSON of the user's slate as it was published; None when there is none. Raises StateDamagedError."""
        return await self._partitions[partition_of(user, len(self._partitions))].get(user)

    def following(self) -> list[Coroutine[Any, Any, None]]:
        """What follows each partition, for ever."""
        return [partition.follow() for partition in self._partitions]

    async def reached(self) -> None:
        """Return once everything that stands on the topic is known."""
        for partition in self._partitions:
            await partition.reached.wait()

    @property
    def current(self) -> bool:
        """Whether all is known; not while a partition is read anew."""
        return all(partition.reached.is_set() for partition in self._partitions)

    def positions(self) -> dict[Partition, int]:
        """Where each partition is read on."""
        return dict(partition.position for partition in self._partitions)

    async def close(self) -> None:
        """Close the databases. Raises StateDirectoryError."""
        for partition in self._partitions:
            await partition.close()


def _usable(record: KeyedRecord) -> bool:
    """Whether the key can be a user's, and the value is a slate or withdraws one. Reserved keys, all but
    that of the cold-start slate, start with a zero byte, as does the store's own."""
    if not record.key or (record.key.startswith(b"\x00") and record.key != COLD_START_USER):
        return False
    try:
        return record.value is None or bool(decode_shown(record.value))
    except msgspec.DecodeError:
        return False


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
