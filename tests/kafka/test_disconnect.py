"""A consumer that does not end is left alone after a bound."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from stream_app.kafka import disconnect
from stream_app.kafka.connection import aiokafka_options
from stream_app.settings import Settings


async def stubborn(settings: Settings) -> None:
    consumer = AIOKafkaConsumer(**aiokafka_options(settings, "stubborn"))
    await consumer.start()
    released = asyncio.Event()

    async def misses_its_cancellation() -> None:
        while not released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await released.wait()

    fetching = consumer._fetcher._fetch_task
    consumer._fetcher._fetch_task = stays = asyncio.create_task(misses_its_cancellation())
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await disconnect.disconnect(consumer)
    assert not stays.done()
    released.set()
    fetching.cancel()
    await asyncio.wait([stays, fetching])


def test_a_consumer_whose_task_does_not_end_is_left_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(disconnect, "TIMEOUT_S", 0.5)
    with caplog.at_level(logging.INFO, "stream_app"):
        asyncio.run(stubborn(settings))
    assert "left alone" in caplog.text


async def cancelled(settings: Settings) -> None:
    consumer = AIOKafkaConsumer(**aiokafka_options(settings, "cancelled"))
    await consumer.start()
    consumer.assign([partition := TopicPartition(settings.topic_name("content"), 0)])
    await consumer.seek_to_beginning(partition)
    # a fetch that waits before it tries again, as when a broker is lost: the fetcher cancels it, and waits
    consumer._fetcher._pending_tasks.add(asyncio.create_task(asyncio.sleep(3600)))
    await disconnect.disconnect(consumer)
    assert not any(known.connected() for known in consumer._client._conns.values())


@pytest.mark.usefixtures("topics")
def test_a_consumer_that_cancels_itself_does_not_cancel_who_disconnects_it(settings: Settings) -> None:
    asyncio.run(asyncio.wait_for(cancelled(settings), 30))
