"""Reading impressions: the partitions that are wanted, what is recent of them, and never far behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord
from faust.types import TP
from msgspec.structs import replace

from stream_app.kafka import reader as reading
from stream_app.learning.impressions_reader import ImpressionsReader
from stream_app.settings import Settings

pytestmark = pytest.mark.usefixtures("topics")


async def until(reached: Callable[[], bool]) -> None:
    for _ in range(600):
        if reached():
            return
        await asyncio.sleep(0.05)
    raise TimeoutError


async def send(settings: Settings, partition: int, *values: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=settings.kafka.broker) as producer:
        for value in values:
            topic = settings.topic_name("impressions")
            await producer.send_and_wait(topic, value, key=b"u", partition=partition)


def test_partitions_come_and_go_and_what_was_forgotten_is_read_again(settings: Settings) -> None:
    async def scenario() -> None:
        read: list[ConsumerRecord] = []
        await send(settings, 0, b"a")
        await send(settings, 1, b"b")
        reader = ImpressionsReader(settings, read.extend, partitions=())
        await reader.start()
        try:
            assert (read, reader.positions()) == ([], {})
            reader.follow({1})
            await until(lambda: len(read) == 1)
            await send(settings, 0, b"c")
            await send(settings, 1, b"d")
            await until(lambda: len(read) == 2)
            assert [record.value for record in read] == [b"b", b"d"]
            assert [reader.is_news(record) for record in read] == [False, True]
            # supervision must not wait for the others
            assert reader.positions() == {TP(settings.topic_name("impressions"), 1): 2}
            reader.follow({0, 1})
            await until(lambda: len(read) == 4)
            reader.leave(1)
            await until(lambda: len(read) == 6)
            assert [record.value for record in read[2:]] == [b"a", b"c", b"b", b"d"]
            reader.follow({1})
            await until(lambda: len(reader.positions()) == 1)
            await send(settings, 0, b"e")
            await send(settings, 1, b"f")
            await until(lambda: len(read) == 7)
            assert read[-1].value == b"f"
        finally:
            await reader.stop()

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize(("most", "hours", "found"), [(4, 24.0, [b"3", b"4", b"5", b"6"]), (100, 1e-6, [])])
def test_only_what_is_recent_and_not_too_much_is_read(
    settings: Settings, most: int, hours: float, found: list[bytes]
) -> None:
    impressions = replace(settings.impressions, max_backlog=most, reach_h=hours)
    bounded = replace(settings, impressions=impressions)

    async def scenario() -> None:
        read: list[ConsumerRecord] = []
        await send(bounded, 0, *(str(number).encode() for number in range(7)))
        written = time.time()
        await until(lambda: time.time() > written + 0.1)
        reader = ImpressionsReader(bounded, read.extend, partitions={0})
        await reader.start()
        await reader.stop()
        assert [record.value for record in read] == found

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_who_falls_behind_goes_on_at_the_end(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BATCH_RECORDS", 2)  # at a time
    bounded = replace(settings, impressions=replace(settings.impressions, max_backlog=5))

    async def scenario() -> None:
        read: list[bytes] = []
        free = asyncio.Event()

        async def apply(records: list[ConsumerRecord]) -> None:
            read.extend(record.value for record in records)
            await free.wait()

        reader = ImpressionsReader(bounded, apply)
        await reader.start()
        try:
            await send(bounded, 0, b"first")
            await until(lambda: bool(read))
            await send(bounded, 1, *(b"%d" % number for number in range(40)))
            await send(bounded, 0, *(b"%d" % number for number in range(40)))
            free.set()
            await until(lambda: sum(reader.positions().values()) >= 81)
            await send(bounded, 0, b"last")
            await until(lambda: read[-1] == b"last")
            assert len(read) < 20
        finally:
            await reader.stop()

    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert "records behind and go on at the end" in caplog.text
