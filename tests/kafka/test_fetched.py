"""What is taken from aiokafka says where it begins: a fetch that was dropped on its way leaves a gap."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.consumer import fetcher

from stream_app.kafka.connection import aiokafka_options
from stream_app.kafka.fetched import IDLE_WAIT_MS, FetchedRecords
from stream_app.settings import Settings

PATIENCE_S = 30.0
GATHER_MS = 1_000
SHORT_MS = 20


async def taken(consumer: AIOKafkaConsumer, tp: TopicPartition, most: int) -> FetchedRecords:
    async with asyncio.timeout(PATIENCE_S):
        while not (fetched := await consumer.getmany(tp, timeout_ms=500, max_records=most)):
            pass
    records = fetched[tp]
    assert isinstance(records, FetchedRecords)
    return records


async def transaction(producer: AIOKafkaProducer, topic: str, count: int, *, abort: bool = False) -> None:
    await producer.begin_transaction()
    for _ in range(count):
        await producer.send_and_wait(topic, b"value", partition=0)
    await (producer.abort_transaction() if abort else producer.commit_transaction())


async def reading(settings: Settings) -> None:
    tp = TopicPartition(settings.topic_name("events-retry"), 0)
    writer = AIOKafkaProducer(
        **aiokafka_options(settings, "writer"), transactional_id=f"{settings.kafka.app_id}-writer"
    )
    reader = AIOKafkaConsumer(
        **aiokafka_options(settings, "reader"),
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    async with writer, reader:
        reader.assign([tp])
        await transaction(writer, tp.topic, 5)  # offsets 0 to 4, and a marker
        await transaction(writer, tp.topic, 3, abort=True)  # 6 to 8, and a marker
        await transaction(writer, tp.topic, 2)  # 10 and 11, and a marker
        first = await taken(reader, tp, 3)
        second = await taken(reader, tp, 3)
        assert (first.start, first.end) == (0, 3)
        assert (second.start, second.end) == (3, 5)
        third = await taken(reader, tp, 9)
        assert [record.offset for record in third] == [10, 11]
        assert third.start == second.end  # markers and what was aborted are no gap

        reader.seek(tp, 0)
        again = await taken(reader, tp, 2)
        assert (again.start, again.end) == (0, 2)
        await taken(reader, tp, 2)  # dropped: nobody hears of it
        later = await taken(reader, tp, 1)
        assert later.start == 4 != again.end

        reader.seek(tp, 6)  # into what was aborted, as an offset committed behind a marker may be
        onward = await taken(reader, tp, 9)
        assert (onward.start, onward[0].offset) == (6, 10)


def test_fetched_records_say_where_they_begin(settings: Settings, topics: list[str]) -> None:
    asyncio.run(reading(settings))


async def waits_of_fetches(settings: Settings, asked: asyncio.Queue[tuple[int, int]]) -> None:
    topic = settings.topic_name("likes")
    first, second = TopicPartition(topic, 0), TopicPartition(topic, 1)
    writer = AIOKafkaProducer(**aiokafka_options(settings, "writer"))
    reader = AIOKafkaConsumer(
        **aiokafka_options(settings, "reader"),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=SHORT_MS,
    )
    async with asyncio.timeout(PATIENCE_S), writer, reader:
        reader.assign([first, second])
        assert await asked.get() == (2, IDLE_WAIT_MS)
        await writer.send_and_wait(topic, b"value", partition=0)
        while (fetch := await asked.get()) == (2, IDLE_WAIT_MS):
            pass
        assert fetch == (1, SHORT_MS)  # what came is not taken: the other partition is asked for alone
        await taken(reader, first, 2)
        while (fetch := await asked.get()) == (1, SHORT_MS):
            pass
        assert fetch == (2, IDLE_WAIT_MS)


async def fetches_that_gather(settings: Settings, asked: asyncio.Queue[tuple[int, int, int]]) -> None:
    """(partitions, longest wait ms, least bytes) of each fetch are ``asked``."""
    tp = TopicPartition(settings.topic_name("likes"), 0)
    writer = AIOKafkaProducer(**aiokafka_options(settings, "writer"))
    reader = AIOKafkaConsumer(
        **aiokafka_options(settings, "reader"), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    async with asyncio.timeout(PATIENCE_S), writer, reader:
        reader._fetcher.gather_ms = GATHER_MS
        reader.assign([tp])
        assert await asked.get() == (1, IDLE_WAIT_MS, 1)  # what comes first comes at once
        await writer.send_and_wait(tp.topic, b"first", partition=0)
        await taken(reader, tp, 9)
        while (fetch := await asked.get()) == (1, IDLE_WAIT_MS, 1):
            pass
        assert fetch[:2] == (1, GATHER_MS)
        assert fetch[2] > 100_000
        # a few records do not end it, and it brings them all
        for value in (b"second", b"third"):
            await writer.send_and_wait(tp.topic, value, partition=0)
        found = await taken(reader, tp, 9)
        assert [record.value for record in found] == [b"second", b"third"]
        while (fetch := await asked.get())[1] == GATHER_MS:
            pass
        assert fetch == (1, IDLE_WAIT_MS, 1)  # nothing has come


def test_fetches_gather_where_nobody_waits(
    settings: Settings, topics: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: asyncio.Queue[tuple[int, int, int]] = asyncio.Queue()
    request = fetcher.FetchRequest

    def noted(wait_ms: int, least: int, *args: Any, **kwargs: Any) -> Any:
        asked.put_nowait((sum(len(partitions) for _, partitions in args[2]), wait_ms, least))
        return request(wait_ms, least, *args, **kwargs)

    monkeypatch.setattr(fetcher, "FetchRequest", noted)
    asyncio.run(fetches_that_gather(settings, asked))


def test_only_fetches_that_leave_a_partition_out_are_short(
    settings: Settings, topics: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
    request = fetcher.FetchRequest

    def noted(wait_ms: int, *args: Any, **kwargs: Any) -> Any:
        asked.put_nowait((sum(len(partitions) for _, partitions in args[3]), wait_ms))
        return request(wait_ms, *args, **kwargs)

    monkeypatch.setattr(fetcher, "FetchRequest", noted)
    asyncio.run(waits_of_fetches(settings, asked))
