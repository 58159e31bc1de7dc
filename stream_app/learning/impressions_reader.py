"""Reads ``impressions`` for whoever remembers what was shown: what is recent, and never far behind."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence

from stream_app.kafka.consumer import Consumer
from stream_app.kafka.errors import KafkaError
from stream_app.kafka.reader import TopicReader
from stream_app.kafka.records import Partition, Record
from stream_app.settings import Settings

log = logging.getLogger(__name__)

HOUR_MS = 3_600_000


class ImpressionsReader(TopicReader):
    """A :class:`TopicReader` of the partitions that it is told to follow.

    Each is read from ``impressions.reach_h`` ago on, but of no more than ``impressions.max_backlog`` records
    in all; where it falls further behind, it goes on at the end. What is missed is missed: nobody needs an
    impression.
    """

    def __init__(
        self,
        settings: Settings,
        apply: Callable[[Sequence[Record]], Awaitable[None] | None],
        partitions: Collection[int] | None = None,
    ) -> None:
        """``partitions`` to begin with; None: all."""
        super().__init__(settings, settings.topic_name("impressions"), apply, label="impressions")
        self._reach_ms = int(settings.impressions.reach_h * HOUR_MS)
        self._most = settings.impressions.max_backlog
        self._wanted = None if partitions is None else frozenset(partitions)
        self._followed: frozenset[int] = frozenset()
        self._news: dict[int, int] = {}

    def follow(self, partitions: Collection[int]) -> None:
        """Follow these from now on, and no others."""
        self._wanted = frozenset(partitions)

    def leave(self, partition: int) -> None:
        """What was read of it is forgotten: where it is still wanted, it is read anew."""
        self._followed -= {partition}

    def is_news(self, record: Record) -> bool:
        """Whether a record was not there yet when its partition was first followed."""
        return bool(record.offset >= self._news.get(record.partition, 0))

    def positions(self) -> dict[Partition, int]:
        """Where each followed partition is read on."""
        return {tp: at for tp, at in super().positions().items() if tp.partition in self._followed}

    async def _catch_up(self, consumer: Consumer, partitions: list[Partition]) -> None:
        consumer.pause(*partitions)
        if self._wanted is None:
            self._wanted = frozenset(tp.partition for tp in partitions)
        await self._turn(consumer)
        followed = [tp for tp in partitions if tp.partition in self._followed]
        while any([await consumer.position(tp) < self._news[tp.partition] for tp in followed]):
            await super()._poll(consumer)
            self.moved()

    async def _poll(self, consumer: Consumer) -> None:
        if self._wanted != self._followed:
            try:
                await self._turn(consumer)
            except KafkaError as error:
                log.warning("impressions of new partitions wait: %r", error)
        await super()._poll(consumer)
        partitions = self._partitions(self._followed)
        ends = {tp: end for tp in partitions if (end := consumer.highwater(tp)) is not None}
        behind = {tp: end - await consumer.position(tp) for tp, end in ends.items()}
        if sum(behind.values()) > self._most:
            log.warning("impressions were %d records behind and go on at the end", sum(behind.values()))
            for tp, end in ends.items():
                consumer.seek(tp, end)

    async def _turn(self, consumer: Consumer) -> None:
        """To the partitions that are wanted now."""
        wanted = self._wanted or frozenset()
        new = self._partitions(wanted - self._followed)
        if new:
            since = max(time.time_ns() // 1_000_000 - self._reach_ms, 0)
            found = await consumer.offsets_for_times(dict.fromkeys(new, since))
            ends = await consumer.end_offsets(new)
            share = self._most // max(len(wanted), 1)
            for tp in new:
                begin = ends[tp] if (first := found[tp]) is None else max(first.offset, ends[tp] - share)
                consumer.seek(tp, begin)
                self._news[tp.partition] = ends[tp]
            consumer.resume(*new)
        consumer.pause(*(tp for tp in consumer.assignment() if tp.partition not in wanted))
        self._followed = wanted

    def _partitions(self, numbers: Collection[int]) -> list[Partition]:
        return [Partition(self._topic, number) for number in sorted(numbers)]
