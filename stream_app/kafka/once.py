"""Reads partitions once: from their beginning to where they end now."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaTimeoutError

from stream_app.kafka.connection import aiokafka_options
from stream_app.kafka.disconnect import disconnect
from stream_app.kafka.records import KeyedRecord, Partition
from stream_app.kafka.unreadable import readable
from stream_app.settings import Settings

log = logging.getLogger(__name__)

BATCH_RECORDS = 2_000
POLL_MS = 100

Apply = Callable[[Sequence[KeyedRecord]], Awaitable[None]]


async def read_once(
    settings: Settings, topic: str, apply: Apply, partitions: Collection[int] | None = None
) -> int:
    """Hand every committed record to ``apply``, batches of one partition in their order; how many.

    All partitions unless some are named. The end is the *high watermark* as the first fetch shows it, not
    the last stable offset: where several producers have transactions on a partition, what one of them
    committed may stand behind what another has left open, and is waited for.

    Raises a KafkaError; KafkaTimeoutError when nothing moves for as long as a request and a transaction
    may take.
    """
    kafka = settings.kafka
    patience = kafka.request_timeout_s + kafka.transaction_timeout_s
    consumer = AIOKafkaConsumer(
        topic,
        **aiokafka_options(settings, f"{kafka.app_id}-once"),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        fetch_max_wait_ms=POLL_MS,
        max_partition_fetch_bytes=kafka.fetch_max_bytes,
        check_crcs=kafka.batch_max_bytes,
    )
    try:
        await consumer.start()
        numbers = consumer.partitions_for_topic(topic) if partitions is None else partitions
        missing = [Partition(topic, number) for number in sorted(numbers)]
        consumer.unsubscribe()
        consumer.assign(missing)
        await consumer.seek_to_beginning(*missing)
        ends: dict[Partition, int] = {}
        begun = moved = time.monotonic()
        count, before = 0, (0, 0, 0)
        while missing:
            for fetched in (await consumer.getmany(timeout_ms=POLL_MS, max_records=BATCH_RECORDS)).values():
                if records := readable(fetched):
                    await apply(records)
                    count += len(records)
            for tp in missing:
                if tp not in ends and (end := consumer.highwater(tp)) is not None:
                    ends[tp] = end
            positions = {tp: int(await consumer.position(tp)) for tp in missing}
            missing = [tp for tp in missing if tp not in ends or positions[tp] < ends[tp]]
            now, place = time.monotonic(), (len(ends), len(missing), sum(positions.values()))
            if place != before:
                before, moved = place, now
            if now - moved > patience:
                raise KafkaTimeoutError(f"{topic} gave nothing for {patience:.0f} s")
        log.debug("%s: read %d records once, in %.2f s", topic, count, time.monotonic() - begun)
        return count
    finally:
        await disconnect(consumer)
