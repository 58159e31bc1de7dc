"""Reading a partition to its end while others have transactions on it, on a real Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord

from stream_app.kafka.changelog import ChangelogReader
from stream_app.kafka.connection import aiokafka_options
from stream_app.settings import Settings


async def producing(settings: Settings, name: str) -> AIOKafkaProducer:
    options = aiokafka_options(settings, name)
    producer = AIOKafkaProducer(**options, transactional_id=f"{settings.kafka.app_id}-{name}")
    await producer.start()
    return producer


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.usefixtures("topics")
def test_what_was_committed_behind_an_open_transaction_is_not_missed(
    settings: Settings, commits: bool
) -> None:
    topic, found = settings.topic_name("content-stats"), list[bytes]()

    async def take(records: Sequence[ConsumerRecord], _position: int) -> None:
        found.extend(record.value for record in records)

    async def play() -> None:
        slow, quick = await producing(settings, "slow"), await producing(settings, "quick")
        reader = ChangelogReader(settings, topic, 0)
        try:
            await slow.begin_transaction()
            await slow.send_and_wait(topic, b"open", b"1", partition=0)
            async with quick.transaction():
                await quick.send_and_wait(topic, b"committed", b"2", partition=0)
            await reader.start(0)
            reading = asyncio.create_task(reader.read_to_end(take))
            await asyncio.wait([reading], timeout=1.0)
            assert not reading.done(), "the end is not decided yet"
            await (slow.commit_transaction() if commits else slow.abort_transaction())
            async with asyncio.timeout(30):
                await reading
        finally:
            await reader.stop()
            await slow.stop()
            await quick.stop()

    asyncio.run(play())
    assert found == ([b"open"] if commits else []) + [b"committed"]
