"""Where the decided part of a partition ends, asked of a real broker."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import LeaderNotAvailableError
from faust.types import TP

from stream_app.kafka.stable_end import stable_end
from stream_app.kafka.transactions import Transactions
from stream_app.settings import Settings


def test_it_stays_before_a_transaction_until_that_has_its_marker(
    settings: Settings, topics: list[str]
) -> None:
    tp = TP(settings.topic_name("interests"), 0)

    async def life() -> None:
        client = AIOKafkaClient(bootstrap_servers=settings.kafka.broker)
        await client.bootstrap()
        await client.set_topics([tp.topic])
        owner = Transactions(settings, f"{settings.kafka.app_id}-x", settings.group("interests"))
        await owner.fence([settings.topic_name("events-retry")])
        raw = owner._producer
        try:
            assert await stable_end(client, tp) == 0
            await raw.begin_transaction()
            sent = await raw.send_and_wait(tp.topic, b"state", b"user", tp.partition)
            assert (sent.offset, await stable_end(client, tp)) == (0, 0)
            await raw.commit_transaction()
            async with asyncio.timeout(30):
                while await stable_end(client, tp) < 2:  # noqa: ASYNC110 - the record and its marker
                    await asyncio.sleep(0.01)
            with pytest.raises(LeaderNotAvailableError):
                await stable_end(client, TP(tp.topic, 99))
        finally:
            await owner.close()
            await client.close()

    asyncio.run(life())
