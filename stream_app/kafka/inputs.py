"""Which topics stand at the names of inputs, and what there is in them, asked by a client of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from aiokafka import AIOKafkaConsumer

from stream_app.kafka.connection import aiokafka_options
from stream_app.kafka.disconnect import disconnect
from stream_app.kafka.records import Partition
from stream_app.kafka.topic_ids import Bounds, topic_ids
from stream_app.settings import Settings


async def inputs(settings: Settings, tps: Collection[Partition]) -> dict[Partition, tuple[str, Bounds]]:
    """Id of the topic and bounds of each partition that exists. Raises a KafkaError."""
    consumer = AIOKafkaConsumer(
        **aiokafka_options(settings, f"{settings.kafka.app_id}-inputs"), isolation_level="read_committed"
    )
    try:
        await consumer.start()
        await consumer._client.set_topics({tp.topic for tp in tps})
        ids = await topic_ids(consumer._client, tps)
        there = [
            tp
            for tp in tps
            if ids[tp] is not None and tp.partition in (consumer.partitions_for_topic(tp.topic) or ())
        ]
        firsts, ends = await asyncio.gather(consumer.beginning_offsets(there), consumer.end_offsets(there))
        return {tp: (ids[tp] or "", Bounds(int(firsts[tp]), int(ends[tp]))) for tp in there}
    finally:
        await disconnect(consumer)
