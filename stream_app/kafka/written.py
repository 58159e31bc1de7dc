"""Where a topic begins, and where it ends, transactions that are not decided yet included."""

from __future__ import annotations

from typing import NamedTuple

from aiokafka import AIOKafkaConsumer

from stream_app.kafka.connection import aiokafka_options
from stream_app.kafka.disconnect import disconnect
from stream_app.kafka.records import Partition
from stream_app.settings import Settings


class Extent(NamedTuple):
    """The offsets that a partition has."""

    begin: int
    end: int
    """All that has been sent, by whomever, stands before it."""


async def extents(settings: Settings, topic: str) -> dict[Partition, Extent]:
    """Begin and end of each partition of ``topic`` (its full name). Raises a KafkaError."""
    consumer = AIOKafkaConsumer(
        topic,
        **aiokafka_options(settings, f"{settings.kafka.app_id}-reader"),
        enable_auto_commit=False,
        isolation_level="read_uncommitted",
    )
    try:
        await consumer.start()
        partitions = [Partition(topic, p) for p in consumer.partitions_for_topic(topic)]
        begins = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        return {tp: Extent(int(begins[tp]), int(ends[tp])) for tp in partitions}
    finally:
        await disconnect(consumer)
