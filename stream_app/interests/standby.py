"""Following the changelog into a store: where to begin, how records are applied, and warm copies."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from stream_app.errors import BrokerUnavailableError, StateDirectoryError
from stream_app.interests.store import PartitionStore
from stream_app.kafka.admin import topic_id
from stream_app.kafka.changelog import Apply, ChangelogReader
from stream_app.kafka.errors import KafkaError
from stream_app.kafka.records import Partition, Record
from stream_app.settings import Settings
from stream_app.topics import HOUR_MS

log = logging.getLogger(__name__)

FOLLOW_RETRY_S = 1.0

FOLLOW_S = 3600.0
"""A standby looks so often whether it stands at the changelog's end, and notes it."""

TRUSTED_SHARE = 0.75
"""Of the time that the broker keeps tombstones: the rest is for clocks that differ, and to read them."""

T = TypeVar("T")
Broken = Callable[[BaseException], None]


def store_directory(settings: Settings, partition: int) -> Path:
    """Where a partition's RocksDB lives."""
    return Path(settings.interests.data_dir) / f"{settings.group('interests')}-{partition}"


async def finish(work: Callable[..., T], *arguments: object) -> T:
    """``work`` in a thread, to its end even if nobody waits any more: whoever has the store next must
    not meet a write of before."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


async def opened(settings: Settings, partition: int) -> PartitionStore:
    """A partition's store, opened in a thread. Who is cancelled meanwhile leaves none open.

    Raises StateDirectoryError.
    """
    directory, buffer_bytes = store_directory(settings, partition), settings.interests.write_buffer_bytes
    opening = asyncio.ensure_future(asyncio.to_thread(PartitionStore, directory, buffer_bytes))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        await asyncio.wait([opening])
        if opening.exception() is None:
            await finish(opening.result().close)
        raise


async def resume(store: PartitionStore, settings: Settings) -> int:
    """Where to read the changelog on from; the store is empty if it cannot be trusted.

    Raises BrokerUnavailableError, StateDirectoryError.
    """
    changelog = await asyncio.to_thread(topic_id, settings, settings.topic_name("interests"))
    trusted_ms = int(TRUSTED_SHARE * settings.kafka.delete_retention_h * HOUR_MS)
    return await finish(store.resume, changelog, time.time_ns() // 1_000_000, trusted_ms)


def store_records(store: PartitionStore) -> Apply:
    """Applies changelog records to a store: recovery and standbys."""

    async def apply(records: Sequence[Record], position: int) -> None:
        newest = {record.key: record.value for record in records}
        # a reader that lags behind stands where its records were written, not where the clock is, and
        # never later, whatever the clock said that they were written by
        stood_ms = min(max(record.timestamp for record in records), time.time_ns() // 1_000_000)
        await finish(store.write, list(newest.items()), position, stood_ms)

    return apply


class StandbyPartition:
    """A warm copy of somebody else's partition: the store follows the changelog."""

    def __init__(self, settings: Settings, partition: int, on_broken: Broken) -> None:
        """``on_broken`` stops the worker: the directory cannot be written."""
        self.store = PartitionStore(
            store_directory(settings, partition), settings.interests.write_buffer_bytes
        )
        self._settings, self._partition, self._on_broken = settings, partition, on_broken
        self._task = asyncio.create_task(self._follow(), name=f"standby {partition}")

    async def _follow(self) -> None:
        while True:
            reader = ChangelogReader(self._settings, self._settings.topic_name("interests"), self._partition)
            try:
                position = await resume(self.store, self._settings)
                if not await reader.start(position):
                    await finish(self.store.clear)
                elif position >= await reader.end():  # nothing was missed, however long nothing came
                    await finish(self.store.write, (), position)
                lag_s = self._settings.kafka.compaction_lag_h * 3600
                # a purge goes on where this standby is given up: whoever has the store next need not wait
                await asyncio.to_thread(self.store.purge_after, lag_s)
                async with asyncio.timeout(FOLLOW_S):
                    await reader.follow(store_records(self.store))
            except TimeoutError:
                continue
            except (KafkaError, BrokerUnavailableError) as error:
                log.warning("standby %d cannot follow now: %r", self._partition, error)
            except StateDirectoryError as error:
                log.critical("standby %d: %s", self._partition, error)
                self._on_broken(error)
                return
            finally:
                await reader.stop()
            await asyncio.sleep(FOLLOW_RETRY_S)

    @property
    def position(self) -> tuple[Partition, int]:
        """The changelog's partition, and the offset that is read next."""
        return Partition(self._settings.topic_name("interests"), self._partition), self.store.position

    async def release(self) -> PartitionStore:
        """Stop following and hand the store over; where nobody is left to take it, it is closed."""
        self._task.cancel()
        try:
            await asyncio.wait([self._task])
        except asyncio.CancelledError:
            await asyncio.wait([self._task])
            await finish(self.store.close)
            raise
        return self.store

    async def close(self) -> None:
        """Stop following and close the store."""
        store = await self.release()
        await finish(store.close)
