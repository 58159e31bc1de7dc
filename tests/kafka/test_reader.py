"""The whole-topic reader on a real broker: transactions, compaction's gaps, restarts, failures."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from stream_app.errors import BrokerUnavailableError, TopicMismatchError
from stream_app.kafka.broker import LocalBroker
from stream_app.kafka.reader import BATCH_RECORDS, TopicReader
from stream_app.settings import Settings, build, external_broker

TOPIC = "read"


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run one scenario; nothing in this file takes longer than a minute."""
    asyncio.run(asyncio.wait_for(scenario, 60))


async def create(settings: Settings, **config: str) -> str:
    name = settings.topic_name(TOPIC)
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka.broker)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 2, 1, topic_configs=config)])
    finally:
        await admin.close()
    return name


class Applied:
    """Collects what the reader hands on, and checks the order it promises."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.last: dict[int, int] = {}
        self.grown = asyncio.Event()

    def __call__(self, records: list[ConsumerRecord]) -> None:
        assert 0 < len(records) <= BATCH_RECORDS
        assert len({r.partition for r in records}) == 1
        for r in records:
            assert r.offset > self.last.get(r.partition, -1)
            self.last[r.partition] = r.offset
        self.values += [r.value for r in records]
        self.grown.set()

    async def reach(self, count: int) -> None:
        while len(self.values) < count:
            self.grown.clear()
            await self.grown.wait()


async def send(settings: Settings, topic: str, values: list[bytes], *, outcome: str = "plain") -> None:
    """Send to both partitions in turn: plainly, or in a transaction that is committed or aborted."""
    transactional = {"transactional_id": f"{settings.kafka.app_id}-{outcome}"} if outcome != "plain" else {}
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka.broker, linger_ms=5, max_batch_size=500_000, **transactional
    )
    await producer.start()
    try:
        if transactional:
            await producer.begin_transaction()
        sent = [await producer.send(topic, value, partition=i % 2) for i, value in enumerate(values)]
        await asyncio.gather(*sent)
        if outcome == "commit":
            await producer.commit_transaction()
        elif outcome == "abort":
            await producer.abort_transaction()
    finally:
        await producer.stop()


def test_reads_what_is_there_then_what_comes(settings: Settings) -> None:
    async def scenario() -> None:
        topic, applied = await create(settings), Applied()
        before = [b"%d" % i for i in range(2 * BATCH_RECORDS + 101)]
        await send(settings, topic, before)
        reader = TopicReader(settings, topic, applied, label="test")
        assert not reader.caught_up
        await reader.start()
        try:
            assert reader.caught_up
            assert sorted(applied.values) == sorted(before)
            assert reader.records == len(before)
            await send(settings, topic, [b"later"])
            await applied.reach(len(before) + 1)
            assert applied.values[-1] == b"later"
            assert not reader.failed.done()
        finally:
            await reader.stop()
            await reader.stop()

    run(scenario())


def test_an_empty_topic_is_read_at_once(settings: Settings) -> None:
    async def scenario() -> None:
        topic, applied = await create(settings), Applied()
        reader = TopicReader(settings, topic, applied, label="test")
        await reader.start()
        await reader.stop()
        assert applied.values == []

    run(scenario())


@pytest.mark.parametrize("last", ["commit", "abort"])
def test_transaction_markers_at_the_end_do_not_hold_it_up(settings: Settings, last: str) -> None:
    async def scenario() -> None:
        topic, applied = await create(settings), Applied()
        await send(settings, topic, [b"c1", b"c2"], outcome="commit")
        await send(settings, topic, [b"a1", b"a2"], outcome="abort")
        await send(settings, topic, [b"l1", b"l2"], outcome=last)
        reader = TopicReader(settings, topic, applied, label="test")
        await reader.start()
        await reader.stop()
        assert sorted(applied.values) == sorted([b"c1", b"c2"] + ([b"l1", b"l2"] if last == "commit" else []))

    run(scenario())


def test_reads_aborted_records_where_it_is_told_to(settings: Settings) -> None:
    async def scenario() -> None:
        topic, applied = await create(settings), Applied()
        await send(settings, topic, [b"a1", b"a2"], outcome="abort")
        reader = TopicReader(settings, topic, applied, label="test", read_committed=False)
        await reader.start()
        await reader.stop()
        assert sorted(applied.values) == [b"a1", b"a2"]

    run(scenario())


def test_an_exception_while_catching_up_is_raised_by_start(settings: Settings) -> None:
    def broken(records: list[ConsumerRecord]) -> None:
        raise ArithmeticError(f"{len(records)} records")

    async def scenario() -> None:
        topic = await create(settings)
        await send(settings, topic, [b"x"])
        reader = TopicReader(settings, topic, broken, label="test")
        with pytest.raises(ArithmeticError, match="1 records"):
            await reader.start()
        assert not reader.caught_up

    run(scenario())


def test_an_exception_while_following_is_told(settings: Settings) -> None:
    def broken(records: list[ConsumerRecord]) -> None:
        raise ArithmeticError(f"{len(records)} records")

    async def scenario() -> None:
        topic = await create(settings)
        reader = TopicReader(settings, topic, broken, label="test")
        await reader.start()
        try:
            await send(settings, topic, [b"x"])
            with pytest.raises(ArithmeticError, match="1 records"):
                await reader.failed
        finally:
            await reader.stop()

    run(scenario())


def test_a_missing_topic_is_named(settings: Settings) -> None:
    async def scenario() -> None:
        impatient = build({"kafka": {"broker": settings.kafka.broker, "request_timeout_s": 1}})
        reader = TopicReader(impatient, "no-such-topic", Applied(), label="test")
        with pytest.raises(TopicMismatchError, match="no-such-topic"):
            await reader.start()

    run(scenario())


def test_a_missing_broker_is_named() -> None:
    async def scenario() -> None:
        nobody = build({"kafka": {"broker": "127.0.0.1:9"}})
        with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:9"):
            await TopicReader(nobody, TOPIC, Applied(), label="test").start()

    run(scenario())


def test_it_outlives_a_broker_that_is_killed_and_started_again() -> None:
    async def scenario(local: LocalBroker) -> None:
        settings = build({"kafka": {"broker": local.address, "app_id": "restart"}})
        topic, applied = await create(settings), Applied()
        await send(settings, topic, [b"1", b"2"])
        reader = TopicReader(settings, topic, applied, label="test")
        await reader.start()
        try:
            await asyncio.to_thread(local.kill)
            await asyncio.to_thread(local.start)
            await send(settings, topic, [b"3", b"4"])
            await applied.reach(4)
            assert sorted(applied.values) == [b"1", b"2", b"3", b"4"], "each record once, in its order"
            assert not reader.failed.done()
        finally:
            await reader.stop()

    if external_broker():
        pytest.skip("kills the broker, and the one in use is not ours")
    with LocalBroker() as local:
        asyncio.run(asyncio.wait_for(scenario(local), 90))
