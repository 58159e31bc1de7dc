"""A producer's transactions on real Kafka: all or nothing, one owner, batches of any size."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import ConnectionGroup
from aiokafka.errors import KafkaConnectionError, ProducerFenced
from aiokafka.structs import RecordMetadata
from kafka import KafkaAdminClient
from kafka.admin._transactions import AbortTransactionSpec
from kafka.errors import InvalidProducerEpochError

from stream_app.errors import FencedError, TransactionError
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.kafka.broker import LocalBroker
from stream_app.kafka.coordination import Coordination, Last
from stream_app.kafka.marks import Mark
from stream_app.kafka.records import Partition
from stream_app.kafka.transactions import Output, Transactions
from stream_app.settings import Settings
from tests.kafka.layers import announce

pytestmark = pytest.mark.usefixtures("topics", "way")


def producer(settings: Settings, name: str = "p0") -> Transactions:
    return Transactions(settings, f"{settings.kafka.app_id}-{name}", settings.group("interests"))


def output(settings: Settings, value: bytes, topic: str = "interests", partition: int = 0) -> Output:
    return Output(settings.topic_name(topic), partition, b"key", value, (("header", b"h"),))


def mark(settings: Settings, offset: int) -> dict[Partition, tuple[int, Mark]]:
    return {Partition(settings.topic_name("likes"), 0): (offset, Mark())}


def committed(settings: Settings) -> int | None:
    """The group's offset as the broker has it once no transaction is open."""
    admin: KafkaAdminClient = clients.admin_client(settings)
    try:
        group = settings.group("interests")
        offsets = admin.list_group_offsets(group)[group]
    finally:
        admin.close()
    return next((m.offset for tp, m in offsets.items() if tp.topic == settings.topic_name("likes")), None)


def values(settings: Settings, topic: str = "interests", **options: str) -> list[bytes]:
    return [record.value for record in clients.read_topic(settings, settings.topic_name(topic), **options)]


def run(steps: object) -> None:
    asyncio.run(asyncio.wait_for(steps, 60))  # type: ignore[arg-type]


async def fence(settings: Settings, owner: Transactions) -> None:
    """Another topic than the records', so that these keep the offsets that one counts on one's fingers."""
    await owner.fence([settings.topic_name("events-retry")])


async def begun(
    owner: Transactions, outputs: Iterable[Output], offsets: dict[Partition, tuple[int, Mark]]
) -> None:
    """Everything of a transaction but its end, as at a crash just before the commit."""
    real = owner._producer.commit_transaction
    reached = asyncio.Event()

    async def never() -> None:
        reached.set()
        await asyncio.Event().wait()

    owner._producer.commit_transaction = never
    task = asyncio.create_task(owner.commit(outputs, offsets))
    await reached.wait()
    task.cancel()
    await asyncio.wait([task])
    owner._producer.commit_transaction = real


def test_outputs_and_offset_become_visible_together(settings: Settings) -> None:
    async def steps() -> None:
        owner = producer(settings)
        await fence(settings, owner)
        both = [output(settings, b"state"), output(settings, b"letter", "events-dlq", 1)]
        await begun(owner, both, mark(settings, 7))
        assert values(settings, isolation_level="read_uncommitted") == [b"state"], "it is on the broker"
        assert values(settings, "events-dlq", isolation_level="read_uncommitted") == [b"letter"]
        await owner._producer.commit_transaction()
        assert values(settings) == [b"state"]
        assert values(settings, "events-dlq") == [b"letter"]
        assert committed(settings) == 7
        ends = await owner.commit([output(settings, b"next")], mark(settings, 9))
        # a transaction's marker takes an offset: state 0, marker 1, next 2
        assert ends == {TopicPartition(settings.topic_name("interests"), 0): 3}
        assert committed(settings) == 9
        assert await owner.commit([], mark(settings, 10)) == {}
        assert committed(settings) == 10
        assert await owner.commit([output(settings, b"tombstones need no offset")], {})
        assert committed(settings) == 10
        await owner.close()

    run(steps())


def test_a_successor_fences_and_what_was_open_never_happened(settings: Settings) -> None:
    async def steps() -> None:
        old, new = producer(settings), producer(settings)
        await fence(settings, old)
        await old.commit([output(settings, b"one")], mark(settings, 1))
        await begun(old, [output(settings, b"never")], mark(settings, 2))
        await fence(settings, new)  # aborts what the old one left open
        assert values(settings) == [b"one"]
        assert committed(settings) == 1
        await new.commit([output(settings, b"two")], mark(settings, 2))
        with pytest.raises(ProducerFenced):
            await old._producer.commit_transaction()
        assert values(settings) == [b"one", b"two"]
        assert committed(settings) == 2
        await old.close()
        await new.close()

    run(steps())


def test_a_fenced_producer_says_so_at_its_next_transaction(settings: Settings) -> None:
    async def steps() -> None:
        old, new, other = producer(settings), producer(settings), producer(settings, "p1")
        await fence(settings, old)
        await fence(settings, other)
        await fence(settings, new)
        with pytest.raises(FencedError, match="another worker owns"):
            await old.commit([output(settings, b"zombie")], mark(settings, 5))
        assert values(settings) == []
        assert committed(settings) is None
        await other.commit([output(settings, b"other id")], {})  # ids do not disturb each other
        await asyncio.gather(old.close(), new.close(), other.close())

    run(steps())


def test_a_fence_that_shows_between_two_steps_is_a_fence(settings: Settings) -> None:
    """The broker has refused the records before their offset is sent: aiokafka then says of the offset
    only that there is no transaction."""

    async def steps() -> None:
        old, new = producer(settings), producer(settings)
        await fence(settings, old)
        await fence(settings, new)
        send = old._send

        async def refused(outputs: Iterable[Output]) -> list[tuple[int, asyncio.Future[RecordMetadata]]]:
            futures = await send(outputs)
            await asyncio.wait([future for _, future in futures])
            return futures

        old._send = refused  # type: ignore[method-assign]  # the records' fate is known before the next step
        with pytest.raises(FencedError, match="another worker owns"):
            await old.commit([output(settings, b"zombie")], mark(settings, 5))
        assert values(settings) == []
        await asyncio.gather(old.close(), new.close())

    run(steps())


def test_several_megabytes_are_split_over_batches_in_order(settings: Settings) -> None:
    async def steps() -> None:
        owner = producer(settings)
        await fence(settings, owner)
        values_sent = [b"%03d" % n + os.urandom(50_000) for n in range(90)]
        outputs = [output(settings, value, partition=n % 2) for n, value in enumerate(values_sent)]
        ends = await owner.commit(outputs, mark(settings, 1))
        topic = settings.topic_name("interests")
        assert ends == {TopicPartition(topic, 0): 45, TopicPartition(topic, 1): 45}
        await owner.commit([output(settings, b"after")], mark(settings, 2))
        for partition in (0, 1):
            found = [r for r in clients.read_topic(settings, topic) if r.partition == partition]
            assert [r.value for r in found[:45]] == values_sent[partition::2]
            assert [r.offset for r in found[:45]] == list(range(45))
            assert found[0].headers == [("header", b"h")]
        await owner.close()

    run(steps())


def test_a_record_that_no_broker_takes_fails_the_whole_transaction(settings: Settings) -> None:
    async def steps() -> None:
        owner, successor = producer(settings), producer(settings)
        await fence(settings, owner)
        with pytest.raises(TransactionError):
            await owner.commit(
                [output(settings, b"small"), output(settings, bytes(3_000_000))], mark(settings, 1)
            )
        await owner.close()
        await fence(settings, successor)
        assert values(settings) == []
        assert committed(settings) is None
        await successor.close()

    run(steps())


def test_no_broker_is_an_error_in_bounded_time_that_leaves_nothing_running(settings: Settings) -> None:
    away = msgspec.structs.replace(
        settings,
        kafka=msgspec.structs.replace(settings.kafka, broker="127.0.0.1:9", transaction_timeout_s=1.0),
    )

    async def steps() -> None:
        owner = producer(away)
        with pytest.raises(TransactionError, match=KafkaConnectionError.__name__):
            await fence(away, owner)
        left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert left == []

    asyncio.run(steps())  # wait_for would be a task of its own


async def leave(*_: object, **__: object) -> None:
    """Settle nothing."""


async def hanging(settings: Settings, *, remains: bool) -> list[bytes | None]:
    """What a reader sees after a former owner's record, unknown to the coordinator, and a commit of the
    next one."""
    tp = TopicPartition(settings.topic_name("events-retry"), 0)
    former, heir = producer(settings), producer(settings)
    former._settle_remains = leave  # type: ignore[method-assign]
    await former.fence([tp])
    raw = former._producer
    await raw.begin_transaction()
    raw._txn_manager._txn_partitions.add(tp)  # so that the coordinator is not told
    await raw.send_and_wait(tp.topic, b"hangs", partition=tp.partition)
    if not remains:
        heir._settle_remains = leave  # type: ignore[method-assign]
    await heir.fence([tp])
    await heir.commit([Output(tp.topic, tp.partition, b"user", b"new")], {})
    await heir.close()
    await former.close()
    return [record.value for record in clients.read_topic(settings, tp.topic)]


@pytest.fixture(scope="module")
def careless() -> Iterator[str]:
    """A broker that takes records of transactions its coordinator knows nothing of. They get no marker, as
    records of a transaction that was being completed when another broker ended do when that starts again."""
    with LocalBroker(properties={"transaction.partition.verification.enable": "false"}) as broker:
        yield broker.address


def on_broker(settings: Settings, address: str, name: str) -> Settings:
    prefix = settings.kafka.app_id + name
    kafka = msgspec.structs.replace(settings.kafka, broker=address, topic_prefix=prefix, app_id=prefix)
    found = msgspec.structs.replace(settings, kafka=kafka)
    create_topics(found)
    return found


def test_what_a_former_owner_left_hanging_is_not_committed_with_what_comes_next(
    settings: Settings, careless: str
) -> None:
    local = on_broker(settings, careless, "a")
    assert asyncio.run(hanging(local, remains=False)) == [b"hangs", b"new"], "the danger is real"
    assert asyncio.run(hanging(on_broker(settings, careless, "b"), remains=True)) == [b"new"]


def without_marker(owner: Transactions, tp: TopicPartition) -> None:
    """From now on the coordinator is not told of the partition, which so gets no marker."""
    owner._coordination.unannounced = False
    state = owner._producer._txn_manager
    add = state.maybe_add_partition_to_txn

    def tell_of_others(other: TopicPartition) -> None:
        if other == tp:
            state._txn_partitions.add(tp)
        else:
            add(other)

    state.maybe_add_partition_to_txn = tell_of_others


async def torn(settings: Settings, *, commit: bool, remains: bool = True) -> tuple[list[bytes], int | None]:
    """What a reader sees of a complete transaction without a marker on one of its two partitions, and the
    group's offset, after the next owner's first transaction."""
    former, heir = producer(settings), producer(settings)
    tp = TopicPartition(settings.topic_name("interests"), 0)
    writes = [settings.topic_name("interests"), settings.topic_name("events-retry")]
    await former.fence(writes)
    without_marker(former, tp)
    raw = former._producer
    if not commit:
        raw.commit_transaction = raw.abort_transaction
    await former.commit(
        [output(settings, b"torn"), output(settings, b"r", "events-retry")], mark(settings, 7)
    )
    if not remains:
        heir._settle_remains = leave  # type: ignore[method-assign]
    await heir.fence(writes)
    await begun(heir, [output(settings, b"never")], {})
    await heir._producer.abort_transaction()
    await heir.commit([output(settings, b"next", partition=1)], {})
    await asyncio.gather(former.close(), heir.close())
    return values(settings), committed(settings)


def test_a_former_transaction_without_its_markers_ends_as_its_coordinator_decided(
    settings: Settings, careless: str
) -> None:
    def ends(name: str, **how: bool) -> tuple[list[bytes], int | None]:
        found, offset = asyncio.run(torn(on_broker(settings, careless, name), **how))
        return sorted(found), offset

    assert ends("c", commit=True, remains=False) == ([b"next"], 7), "the danger is real: half of it is gone"
    assert ends("d", commit=True) == ([b"next", b"torn"], 7)
    assert ends("e", commit=False) == ([b"next"], None)


async def fenced_out_by_two(settings: Settings) -> list[bytes]:
    """What a reader sees of a committed transaction without a marker on one of its partitions, once two have
    fenced its owner out: the second begins when the first has not ended what it found."""
    former, first, second = producer(settings), producer(settings), producer(settings)
    writes = [settings.topic_name("interests"), settings.topic_name("events-retry")]
    await former.begin(writes)
    without_marker(former, TopicPartition(writes[0], 0))
    await former.commit([output(settings, b"torn"), output(settings, b"r", "events-retry")], {})
    begun, go_on = asyncio.Event(), asyncio.Event()
    settle = first._settle

    async def slowly(raw: AIOKafkaProducer, *what: Any, commit: bool) -> None:
        end = raw.commit_transaction

        async def late() -> None:
            begun.set()
            await go_on.wait()
            await end()

        raw.commit_transaction = late
        await settle(raw, *what, commit=commit)

    first._settle = slowly  # type: ignore[assignment]
    one = asyncio.create_task(first.fence_out(writes))
    await begun.wait()
    other = asyncio.create_task(second.fence_out(writes))
    await asyncio.wait([other], timeout=0.5)  # time to do harm; without harm it waits
    go_on.set()
    await asyncio.gather(one, other)
    with pytest.raises(FencedError):
        await former.commit([output(settings, b"zombie", partition=1)], {})
    await former.close()
    return values(settings)


def test_two_that_fence_one_out_at_the_same_time_end_as_its_coordinator_decided(
    settings: Settings, careless: str
) -> None:
    local = on_broker(settings, careless, "h")
    assert asyncio.run(asyncio.wait_for(fenced_out_by_two(local), 60)) == [b"torn"]


@pytest.mark.parametrize("looks_again", [True, False])
def test_who_has_looked_too_long_ago_aborts_nothing_of_who_was_faster(
    settings: Settings, careless: str, looks_again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have seen the decision before either is the owner."""

    async def both(settings: Settings) -> list[bytes]:
        former, first, second = producer(settings), producer(settings), producer(settings)
        writes = [settings.topic_name("interests"), settings.topic_name("events-retry")]
        await former.begin(writes)
        without_marker(former, TopicPartition(writes[0], 0))
        await former.commit([output(settings, b"torn"), output(settings, b"r", "events-retry")], {})
        looked, open_, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        settle, made = first._settle, second._made

        async def slowly(raw: AIOKafkaProducer, *what: Any, commit: bool) -> None:
            end = raw.commit_transaction

            async def late() -> None:
                while raw._txn_manager.partitions_to_add():  # noqa: ASYNC110 - aiokafka has no event for it
                    await asyncio.sleep(0.01)
                open_.set()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), 1)
                await end()

            raw.commit_transaction = late
            await settle(raw, *what, commit=commit)

        def late_owner(timeout_ms: int | None = None) -> tuple[AIOKafkaProducer, Coordination]:
            raw, coordination = made(timeout_ms)
            look = coordination.last

            async def then_sleep() -> Last:
                last = await look()
                if not looked.is_set():
                    looked.set()
                    await open_.wait()
                return last

            coordination.last = then_sleep  # type: ignore[method-assign]
            return raw, coordination

        first._settle = slowly  # type: ignore[assignment]
        second._made = late_owner  # type: ignore[method-assign]
        other = asyncio.create_task(second.fence_out(writes))
        await looked.wait()
        await asyncio.gather(first.fence_out(writes), other, return_exceptions=True)
        ended.set()
        await former.close()
        return values(settings)

    if not looks_again:
        monkeypatch.setattr(Transactions, "_taken_over", taken_over_at_once)
    found = asyncio.run(asyncio.wait_for(both(on_broker(settings, careless, f"z{looks_again}")), 60))
    assert found == ([b"torn"] if looks_again else []), "without it the danger is real"


async def taken_over_at_once(_self: Transactions, coordination: Coordination, timeout_ms: int) -> Last | None:
    """As if no time had passed."""
    last = await coordination.last()
    while not await coordination.take_over(timeout_ms):
        pass
    return last


def test_any_number_may_fence_one_out_at_once(settings: Settings, careless: str) -> None:
    async def all_of_them(settings: Settings) -> list[bytes]:
        former = producer(settings)
        writes = [settings.topic_name("interests"), settings.topic_name("events-retry")]
        await former.begin(writes)
        without_marker(former, TopicPartition(writes[0], 0))
        await former.commit([output(settings, b"torn"), output(settings, b"r", "events-retry")], {})
        await asyncio.gather(*(producer(settings).fence_out(writes) for _ in range(6)))
        with pytest.raises(FencedError):
            await former.commit([output(settings, b"zombie", partition=1)], {})
        await former.close()
        return values(settings)

    local = on_broker(settings, careless, "many")
    assert asyncio.run(asyncio.wait_for(all_of_them(local), 60)) == [b"torn"]


async def disconnected(owner: Transactions) -> None:
    """Its connection to the coordinators is gone."""
    client = owner._producer.client
    for (_, group), connection in list(client._conns.items()):
        if group is ConnectionGroup.COORDINATION:
            connection.close()


async def reconnected(settings: Settings, *, settles: bool) -> list[bytes]:
    """What a reader sees after a transaction without a marker, a lost connection, and a transaction that
    fails on the new one."""
    owner, heir = producer(settings), producer(settings)
    writes = [settings.topic_name("interests")]
    await owner.fence(writes)
    state = owner._producer._txn_manager
    honest = state.maybe_add_partition_to_txn
    without_marker(owner, TopicPartition(writes[0], 0))
    outputs = [output(settings, b"torn"), output(settings, b"whole", partition=1)]
    await owner.commit(outputs, mark(settings, 7))
    state.maybe_add_partition_to_txn = honest
    await disconnected(owner)
    if not settles:
        announce()  # whoever has an epoch of its own would not be taken for the one that is torn
        owner._settle = leave  # type: ignore[method-assign]
    with pytest.raises(TransactionError):
        await owner.commit([output(settings, b"small"), output(settings, bytes(3_000_000))], {})
    await owner.close()
    await heir.fence(writes)
    await heir.close()
    return sorted(values(settings))


def test_no_transaction_begins_on_a_new_connection_before_the_last_one_has_its_markers(
    settings: Settings, careless: str
) -> None:
    unsettled = asyncio.run(reconnected(on_broker(settings, careless, "f"), settles=False))
    assert unsettled == [b"whole"], "the danger is real"
    settled = asyncio.run(reconnected(on_broker(settings, careless, "g"), settles=True))
    assert settled == [b"torn", b"whole"]


def test_within_a_transaction_nothing_is_sent_over_a_new_connection(settings: Settings) -> None:
    async def steps() -> None:
        owner, heir = producer(settings), producer(settings)
        await fence(settings, owner)
        send = owner._producer.send_offsets_to_transaction

        async def cut(*args: object) -> None:
            await send(*args)
            await disconnected(owner)

        owner._producer.send_offsets_to_transaction = cut
        with pytest.raises(TransactionError, match="a coordinator was lost in a transaction"):
            await owner.commit([output(settings, b"never")], mark(settings, 5))
        with pytest.raises(TransactionError):
            await owner.commit([output(settings, b"nor this")], mark(settings, 6))
        await owner.close()
        await fence(settings, heir)
        await heir.commit([output(settings, b"new")], {})
        assert values(settings) == [b"new"]
        assert committed(settings) is None
        await heir.close()

    run(steps())


def test_an_idle_owner_whose_connection_was_closed_goes_on(settings: Settings) -> None:
    async def steps() -> None:
        owner = producer(settings)
        await fence(settings, owner)
        await owner.commit([output(settings, b"one")], mark(settings, 1))
        await disconnected(owner)
        await owner.commit([output(settings, b"two")], mark(settings, 2))
        assert values(settings) == [b"one", b"two"]
        assert committed(settings) == 2
        await owner.close()

    run(steps())


async def marked_late(settings: Settings, *, epochs_ago: int) -> list[bytes]:
    """What a reader sees of a transaction during which a marker arrives that aborts one of so many epochs
    ago, as brokers send it once more when its answer is late."""
    owner = producer(settings)
    await fence(settings, owner)
    raw, tp = owner._producer, TopicPartition(settings.topic_name("interests"), 0)
    await raw.begin_transaction()
    await raw.send_and_wait(tp.topic, b"state", b"user", tp.partition)
    state = raw._txn_manager
    marker = AbortTransactionSpec(tp, state.producer_id, state.producer_epoch - epochs_ago)

    def arrive() -> None:
        with clients.admin_client(settings) as admin, contextlib.suppress(InvalidProducerEpochError):
            admin.abort_transaction(marker)

    await asyncio.to_thread(arrive)
    await raw.commit_transaction()
    await owner.close()
    return values(settings)


def test_a_late_marker_of_the_abort_that_fencing_does_harms_nothing(settings: Settings) -> None:
    assert asyncio.run(marked_late(settings, epochs_ago=1)) == [b"state"]


def test_a_late_marker_of_the_same_epoch_would_tear_a_transaction(settings: Settings) -> None:
    """Why fencing raises the epoch after its abort."""
    assert asyncio.run(marked_late(settings, epochs_ago=0)) == []
