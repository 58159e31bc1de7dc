"""Reads ``interests`` for learning: from given positions on, and never far behind."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from stream_app.kafka.consumer import Consumer
from stream_app.kafka.reader import POLL_MS, TopicReader
from stream_app.kafka.records import KeyedRecord, Partition, Record
from stream_app.observability import metrics
from stream_app.settings import Settings

log = logging.getLogger(__name__)

AT_A_TIME = 100
"""Records of one partition that are learned from before it is the next one's turn."""

Positions = Mapping[int, int]
"""Partition → offset that is read next."""


class InterestsReader(TopicReader):
    """A :class:`TopicReader` that begins at ``positions`` and skips to the end when it is further behind
    than ``learning.max_backlog``: what is learned from may be a sample, what is old teaches little."""

    def __init__(
        self,
        settings: Settings,
        apply: Callable[[Sequence[Record]], Awaitable[None]],
        positions: Positions,
    ) -> None:
        """Where ``positions`` says nothing of a partition, or what the topic does not reach to, reading
        begins at the partition's end."""
        super().__init__(settings, settings.topic_name("interests"), apply, label="interests", prompt=False)
        self._begin = positions
        self._most = settings.learning.max_backlog

    async def _catch_up(self, consumer: Consumer, partitions: list[Partition]) -> None:
        first = await consumer.beginning_offsets(partitions)
        end = await consumer.end_offsets(partitions)
        for tp in partitions:
            at = self._begin.get(tp.partition, end[tp])
            if at < first[tp]:
                at = end[tp]
            consumer.seek(tp, at)
        await self._skip(consumer, {tp: end[tp] - await consumer.position(tp) for tp in partitions})

    async def _fetch(self, consumer: Consumer) -> dict[Partition, list[KeyedRecord]]:
        """A few records of each partition in turn. Left to itself the consumer hands on all that it has of
        one partition, which takes a minute to learn from: the others would seem to stand still."""
        fetched: dict[Partition, list[KeyedRecord]] = {}
        for tp in consumer.assignment():
            fetched |= await consumer.getmany(tp, timeout_ms=0, max_records=AT_A_TIME)
        return fetched or await consumer.getmany(timeout_ms=POLL_MS, max_records=AT_A_TIME)

    async def _poll(self, consumer: Consumer) -> None:
        await super()._poll(consumer)
        behind = {}
        for tp in consumer.assignment():
            if (end := consumer.highwater(tp)) is not None:
                behind[tp] = end - await consumer.position(tp)
        await self._skip(consumer, behind)

    async def _skip(self, consumer: Consumer, behind: Mapping[Partition, int]) -> None:
        if sum(behind.values()) <= self._most:
            return
        for tp, records in behind.items():
            if records > 0:
                consumer.seek(tp, await consumer.position(tp) + records)
                metrics.TRAINER_SKIPPED.inc(records)
        log.warning("learning was %d records behind and goes on at the end", sum(behind.values()))
