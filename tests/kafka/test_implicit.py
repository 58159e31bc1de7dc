"""Transactions that are not announced, on real Kafka: what is sent, what comes late, who is refused, and what
gets lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from itertools import groupby
from typing import Any

import msgspec
import pytest
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.errors import InvalidProducerEpoch
from aiokafka.producer.transaction_manager import PidAndEpoch
from aiokafka.protocol.transaction import InitProducerIdRequest

from stream_app.errors import FencedError, TransactionError
from stream_app.kafka import clients, transactions
from stream_app.kafka.admin import create_topics
from stream_app.kafka.broker import LocalBroker
from stream_app.kafka.coordination import Coordination, Last
from stream_app.kafka.features import TRANSACTION_VERSION
from stream_app.kafka.marks import Mark
from stream_app.kafka.records import Partition
from stream_app.kafka.transactions import Output, Transactions
from stream_app.settings import Settings

RECORDS, FEATURES, ANNOUNCED, GROUP_ANNOUNCED, END, OFFSETS = 0, 18, 24, 25, 26, 28
"""Requests, by Kafka's numbers"""
UNANNOUNCED = [RECORDS, OFFSETS, END]
WITH_ANNOUNCEMENT = [ANNOUNCED, RECORDS, GROUP_ANNOUNCED, OFFSETS, END]
LEAST_TIMEOUT_S = 3.0
LAST_EPOCH = 32_766
"""Of a producer id."""


class Producer:
    """One that sees what it sends, and may be disturbed at it."""

    def __init__(self, settings: Settings, writes: tuple[str, ...] = ("interests",)) -> None:
        self.settings = settings
        self.id = f"{settings.kafka.app_id}-p0"
        self.writes = [settings.topic_name(topic) for topic in writes]
        self.transactions = self.another()
        self.client = self.transactions._producer.client
        self.sent: list[Any] = []
        self._send = self.client.send
        self._disturbed: dict[int, Callable[[Awaitable[Any]], Awaitable[Any]]] = {}
        self.client.send = self._sent

    def another(self) -> Transactions:
        """Another one of the same id."""
        return Transactions(self.settings, self.id, self.settings.group("interests"))

    async def commit(self, value: bytes, offset: int, *topics: str) -> None:
        """The value to each topic, and an offset on ``likes``, in one transaction."""
        outputs = [Output(self.settings.topic_name(t), 0, b"k", value) for t in topics or ("interests",)]
        source = Partition(self.settings.topic_name("likes"), 0)
        await self.transactions.commit(outputs, {source: (offset, Mark())})

    def disturb(self, api: int, how: Callable[[Awaitable[Any]], Awaitable[Any]]) -> None:
        """Do this with the next request of this kind, in its place."""
        self._disturbed[api] = how

    def before(self, api: int, what: Callable[[], Awaitable[None]]) -> None:
        async def how(request: Awaitable[Any]) -> Any:
            await what()
            return await request

        self.disturb(api, how)

    def lose_the_answer(self, api: int, group: ConnectionGroup) -> None:
        """The request reaches the broker, and the connection is lost."""

        async def how(request: Awaitable[Any]) -> Any:
            sending = asyncio.ensure_future(request)
            await asyncio.sleep(0)  # it is written at once
            self.disconnect(group)
            return await sending

        self.disturb(api, how)

    def disconnect(self, group: ConnectionGroup) -> None:
        for (_, one), connection in list(self.client._conns.items()):
            if one is group:
                connection.close()

    async def fenced_out(self) -> None:
        await self.another().fence_out(self.writes)

    def apis(self) -> list[int]:
        """Of the transactions so far, which are forgotten; once what was sent again, because the transaction
        before was still on its way."""
        steps = {RECORDS, ANNOUNCED, GROUP_ANNOUNCED, END, OFFSETS}
        found, self.sent[:] = [r.API_KEY for r in self.sent if r.API_KEY in steps], []
        return [api for api, _ in groupby(found)]

    def on_broker(self, topic: str = "interests") -> list[bytes]:
        return [r.value for r in clients.read_topic(self.settings, self.settings.topic_name(topic))]

    def offset(self) -> int | None:
        group = self.settings.group("interests")
        with closing(clients.admin_client(self.settings)) as admin:
            found = admin.list_group_offsets(group)[group]
        return next((mark.offset for mark in found.values() if mark.offset >= 0), None)

    async def _sent(self, node: Any, request: Any, **how: Any) -> Any:
        self.sent.append(request)
        if (disturbed := self._disturbed.pop(request.API_KEY, None)) is not None:
            return await disturbed(self._send(node, request, **how))
        return await self._send(node, request, **how)


@asynccontextmanager
async def begun(settings: Settings, *writes: str) -> AsyncIterator[Producer]:
    """A producer that has committed ``one``."""
    producer = Producer(settings, writes or ("interests",))
    async with asyncio.timeout(60):
        await producer.transactions.begin(producer.writes)
        try:
            await producer.commit(b"one", 1)
            yield producer
        finally:
            await producer.transactions.close()


@pytest.mark.usefixtures("topics")
def test_nothing_is_announced_and_each_transaction_has_its_epoch(settings: Settings) -> None:
    async def steps() -> None:
        async with begun(settings, "interests", "events-dlq") as producer:
            state = producer.transactions._producer._txn_manager
            assert producer.apis() == UNANNOUNCED
            assert state.producer_epoch == 1
            await producer.commit(b"two", 2, "interests", "events-dlq")
            assert producer.apis() == UNANNOUNCED, "partitions of one broker go out together"
            await producer.commit(b"three", 3)
            assert state.producer_epoch == 3
            assert producer.on_broker() == [b"one", b"two", b"three"]
            assert producer.on_broker("events-dlq") == [b"two"]
            assert producer.offset() == 3

    asyncio.run(steps())


@pytest.mark.usefixtures("topics")
def test_what_is_aborted_leaves_nothing_and_has_its_epoch_too(settings: Settings) -> None:
    async def steps() -> None:
        async with begun(settings) as producer:
            raw = producer.transactions._producer
            raw.commit_transaction, commit = raw.abort_transaction, raw.commit_transaction
            await producer.commit(b"never", 2)
            assert raw._txn_manager.producer_epoch == 2
            raw.commit_transaction = commit
            assert (producer.on_broker(), producer.offset()) == ([b"one"], 1)
            await producer.commit(b"two", 3)
            assert (producer.on_broker(), producer.offset()) == ([b"one", b"two"], 3)

    asyncio.run(steps())


@pytest.mark.usefixtures("topics")
def test_a_record_that_comes_after_the_end_of_its_transaction_is_refused(settings: Settings) -> None:
    async def steps() -> None:
        async with begun(settings) as producer:
            late = next(request for request in producer.sent if request.API_KEY == RECORDS)
            node = producer.client.cluster.leader_for_partition(Partition(producer.writes[0], 0))
            codes: list[int] = []

            async def arrives() -> None:
                # complete: before that the same record is known for one that has been written
                await producer.transactions._coordination.last()
                answer = await producer._send(node, late)
                codes.append(answer.topics[0][1][0][1])

            producer.before(RECORDS, arrives)  # it is the first of the next transaction, in time
            await producer.commit(b"two", 2)
            producer.before(END, arrives)
            await producer.commit(b"three", 3)
            assert codes == [InvalidProducerEpoch.errno] * 2
            assert producer.on_broker() == [b"one", b"two", b"three"]

    asyncio.run(steps())


@pytest.mark.usefixtures("topics")
@pytest.mark.parametrize("step", UNANNOUNCED)
def test_whoever_is_fenced_out_is_refused_at_every_step(settings: Settings, step: int) -> None:
    async def steps() -> None:
        async with begun(settings) as producer:
            producer.before(step, producer.fenced_out)
            with pytest.raises(FencedError):
                await producer.commit(b"never", 2)
            assert (producer.on_broker(), producer.offset()) == ([b"one"], 1)

    asyncio.run(steps())


@pytest.mark.usefixtures("topics")
def test_whoever_ends_a_transaction_while_being_fenced_out_is_fenced_out(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its epoch is then the one after the epoch that was looked at, as if it had been fenced already."""
    monkeypatch.setattr(transactions, "TOGETHER_S", 1.0)  # on a slow machine it would look again

    async def steps() -> None:
        async with begun(settings) as producer:
            another = producer.another()
            made, looked = another._made, asyncio.Event()

            def looking(timeout_ms: int | None = None) -> tuple[Any, Coordination]:
                raw, coordination = made(timeout_ms)
                look = coordination.last

                async def and_meanwhile() -> Last:
                    last = await look()
                    if not looked.is_set():
                        looked.set()
                        await producer.commit(b"two", 2)
                        await producer.transactions._coordination.last()  # which waits until it is complete
                    return last

                coordination.last = and_meanwhile  # type: ignore[method-assign]
                return raw, coordination

            another._made = looking  # type: ignore[method-assign]
            await another.fence_out(producer.writes)
            with pytest.raises(FencedError):
                await producer.commit(b"never", 3)
            assert (producer.on_broker(), producer.offset()) == ([b"one", b"two"], 2)

    asyncio.run(steps())


@pytest.mark.usefixtures("topics")
@pytest.mark.parametrize("step", [OFFSETS, END])
def test_a_coordinator_lost_before_a_step_fails_the_transaction(settings: Settings, step: int) -> None:
    async def steps() -> None:
        async with begun(settings) as producer:

            async def lost() -> None:
                producer.disconnect(ConnectionGroup.COORDINATION)

            producer.before(step, lost)
            with pytest.raises(TransactionError, match="a coordinator was lost in a transaction"):
                await producer.commit(b"never", 2)
            with pytest.raises(TransactionError):
                await producer.commit(b"nor this", 3)
            await producer.fenced_out()
            assert (producer.on_broker(), producer.offset()) == ([b"one"], 1)

    asyncio.run(steps())


@pytest.mark.usefixtures("topics")
@pytest.mark.parametrize("step", [OFFSETS, END])
def test_a_lost_answer_fails_the_transaction_whose_fate_is_one(settings: Settings, step: int) -> None:
    async def steps() -> None:
        async with begun(settings) as producer:
            producer.lose_the_answer(step, ConnectionGroup.COORDINATION)
            with pytest.raises(TransactionError, match="a coordinator was lost in a transaction"):
                await producer.commit(b"two", 2)
            with pytest.raises(TransactionError):
                await producer.commit(b"never", 3)
            await producer.fenced_out()
            fate = producer.on_broker(), producer.offset()
            assert fate in ([([b"one"], 1)] if step == OFFSETS else [([b"one"], 1), ([b"one", b"two"], 2)])

    asyncio.run(steps())


@pytest.mark.usefixtures("topics")
def test_records_whose_answer_is_lost_are_sent_again_and_taken_once(settings: Settings) -> None:
    async def steps() -> None:
        async with begun(settings) as producer:
            producer.lose_the_answer(RECORDS, ConnectionGroup.DEFAULT)
            await producer.commit(b"two", 2)
            assert sum(request.API_KEY == RECORDS for request in producer.sent) >= 3
            await producer.commit(b"three", 3)
            assert (producer.on_broker(), producer.offset()) == ([b"one", b"two", b"three"], 3)

    asyncio.run(steps())


@pytest.mark.usefixtures("topics")
def test_a_topic_that_is_deleted_meanwhile_takes_the_whole_transaction_with_it(settings: Settings) -> None:
    kafka = msgspec.structs.replace(settings.kafka, transaction_timeout_s=LEAST_TIMEOUT_S)
    hasty = msgspec.structs.replace(settings, kafka=kafka)

    async def steps() -> None:
        async with begun(hasty, "interests", "events-dlq") as producer:
            with closing(clients.admin_client(settings)) as admin:
                admin.delete_topics([settings.topic_name("events-dlq")])
            with pytest.raises(TransactionError):
                await producer.commit(b"never", 2, "interests", "events-dlq")
            producer.writes.pop()
            await producer.fenced_out()
            assert (producer.on_broker(), producer.offset()) == ([b"one"], 1)

    asyncio.run(steps())


@pytest.mark.long
@pytest.mark.usefixtures("topics")
@pytest.mark.parametrize("epochs_left", [0, 1, 2])
def test_a_producer_whose_epochs_are_used_up_goes_on(settings: Settings, epochs_left: int) -> None:
    """And is fenced out as ever."""

    async def steps() -> None:
        producer = Producer(settings)
        raw = producer.another()._producer
        await raw.start()
        node = await raw._sender._find_coordinator(CoordinationType.TRANSACTION, producer.id)
        used_up = LAST_EPOCH - epochs_left - 1  # to begin takes one more
        while raw._txn_manager.producer_epoch < used_up:
            many = min(200, used_up - raw._txn_manager.producer_epoch)
            request = InitProducerIdRequest(producer.id, 30_000)
            asked = [raw.client.send(node, request, group=ConnectionGroup.COORDINATION) for _ in range(many)]
            answers = await asyncio.gather(*asked)
            raw._txn_manager._pid_and_epoch = PidAndEpoch(
                answers[0].producer_id, max(a.producer_epoch for a in answers)
            )
        await raw.stop()
        await producer.transactions.begin(producer.writes)
        state = producer.transactions._producer._txn_manager
        first = state.producer_id
        assert state.producer_epoch == LAST_EPOCH - epochs_left
        sent = [b"%d" % n for n in range(epochs_left + 3)]
        for n, value in enumerate(sent):
            await producer.commit(value, n + 1)
        assert state.producer_id != first
        assert state.producer_epoch == 2
        assert (producer.on_broker(), producer.offset()) == (sent, len(sent))
        await producer.fenced_out()
        with pytest.raises(FencedError):
            await producer.commit(b"never", 99)
        assert (producer.on_broker(), producer.offset()) == (sent, len(sent))
        await producer.transactions.close()

    asyncio.run(steps())


@pytest.fixture(scope="module")
def changing() -> Iterator[str]:
    """A broker of which an operator takes features back."""
    with LocalBroker() as broker:
        yield broker.address


def on_broker(settings: Settings, address: str) -> Settings:
    found = msgspec.structs.replace(settings, kafka=msgspec.structs.replace(settings.kafka, broker=address))
    create_topics(found)
    return found


def finalise(settings: Settings, level: int) -> None:
    with closing(clients.admin_client(settings)) as admin:
        least, most = admin.describe_features()[TRANSACTION_VERSION]["supported"]
        assert (least, most) == (0, 2)
        how = "UPGRADE" if level == most else "SAFE_DOWNGRADE"
        assert admin.update_features({TRANSACTION_VERSION: (how, level)}) == {TRANSACTION_VERSION: "OK"}


def test_a_feature_that_is_taken_back_is_missed_with_the_next_connection(
    settings: Settings, changing: str
) -> None:
    """Until then the brokers take what they took."""
    local = on_broker(settings, changing)

    async def steps() -> None:
        async with begun(local) as producer:
            assert producer.apis() == UNANNOUNCED
            finalise(local, 1)
            try:
                await producer.commit(b"two", 2)
                assert producer.apis() == UNANNOUNCED
                producer.disconnect(ConnectionGroup.COORDINATION)
                await producer.commit(b"three", 3)
                await producer.commit(b"four", 4)
                assert producer.apis()[-len(WITH_ANNOUNCEMENT) :] == WITH_ANNOUNCEMENT
            finally:
                finalise(local, 2)
            producer.disconnect(ConnectionGroup.COORDINATION)
            await producer.commit(b"five", 5)
            await producer.commit(b"six", 6)
            assert producer.apis()[-2 * len(UNANNOUNCED) :] == UNANNOUNCED * 2
            assert producer.on_broker() == [b"one", b"two", b"three", b"four", b"five", b"six"]
            assert producer.offset() == 6

    asyncio.run(steps())


@pytest.mark.usefixtures("topics")
def test_whoever_cannot_ask_for_the_feature_fails_and_asks_again(settings: Settings) -> None:
    async def steps() -> None:
        async with begun(settings) as producer:
            producer.disconnect(ConnectionGroup.COORDINATION)
            producer.lose_the_answer(FEATURES, ConnectionGroup.COORDINATION)
            with pytest.raises(TransactionError):
                await producer.commit(b"never", 2)
            await producer.commit(b"two", 2)
            assert producer.apis()[-len(UNANNOUNCED) :] == UNANNOUNCED
            assert (producer.on_broker(), producer.offset()) == ([b"one", b"two"], 2)

    asyncio.run(steps())


@pytest.mark.parametrize("level", [1, 0])
def test_without_the_feature_transactions_are_announced(
    settings: Settings, changing: str, level: int
) -> None:
    local = on_broker(settings, changing)

    async def steps() -> None:
        async with begun(local) as producer:
            await producer.commit(b"two", 2)
            assert producer.apis() == WITH_ANNOUNCEMENT * 2
            await producer.fenced_out()
            with pytest.raises(FencedError):
                await producer.commit(b"never", 3)
            assert (producer.on_broker(), producer.offset()) == ([b"one", b"two"], 2)

    finalise(local, level)
    try:
        asyncio.run(steps())
    finally:
        finalise(local, 2)
