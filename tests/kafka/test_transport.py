"""Record batches through a running Faust app, on real Kafka."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from faust.types import TP
from kafka import KafkaAdminClient

from stream_app.errors import StreamAppError
from stream_app.kafka import clients
from stream_app.kafka.faust.app import RoleApp, create_faust_app
from stream_app.kafka.marks import Mark
from stream_app.kafka.records import Partition, RecordBatch
from stream_app.kafka.transactions import Output, Transactions
from stream_app.settings import Settings

pytestmark = pytest.mark.usefixtures("topics")
PATIENCE_S = 30.0

Take = Callable[[RecordBatch], Awaitable[None]]


async def until(true: Callable[[], bool], what: str) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while not true():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"waited {PATIENCE_S:.0f} s for {what}")
        await asyncio.sleep(0.01)


@asynccontextmanager
async def running(app: RoleApp) -> AsyncIterator[None]:
    """The app, started and stopped as a worker does."""
    serving = asyncio.Event()
    app.serving.append(lambda yes: serving.set() if yes else serving.clear())
    start = asyncio.create_task(app.start())
    try:
        await asyncio.wait_for(serving.wait(), PATIENCE_S)
        yield
    finally:
        await asyncio.wait_for(app.stop(), PATIENCE_S)
        await asyncio.wait([start])


def batches(settings: Settings, topics: list[str], take: Take, *, transactional: bool = False) -> RoleApp:
    """An app whose one agent takes the batches of these topics."""
    names = [settings.topic_name(topic) for topic in topics]
    app = create_faust_app(settings, "test", batch_topics=names, transactional=transactional)

    @app.agent(app.batches(names), name="taker")  # type: ignore[untyped-decorator]
    async def taker(stream: Any) -> None:
        async for batch in stream:
            await take(batch)

    return app


def send(settings: Settings, topic: str, first: int, count: int, partition: int = 0, size: int = 0) -> None:
    with clients.producer(settings) as producer:
        for number in range(first, first + count):
            value = b"%d" % number + bytes(size)
            producer.send(settings.topic_name(topic), key=b"k", value=value, partition=partition)


def committed(settings: Settings, topic: str, partition: int = 0) -> int | None:
    admin: KafkaAdminClient = clients.admin_client(settings)
    try:
        group = settings.group("test")
        offsets = admin.list_group_offsets(group)[group]
    finally:
        admin.close()
    for tp, mark in offsets.items():
        if (tp.topic, tp.partition) == (settings.topic_name(topic), partition):
            return None if mark.offset < 0 else int(mark.offset)
    return None


def small(settings: Settings, **fields: Any) -> Settings:
    return msgspec.structs.replace(settings, kafka=msgspec.structs.replace(settings.kafka, **fields))


def test_batch_follows_batch_without_a_hole_across_markers_and_aborted_records(settings: Settings) -> None:
    """Markers and aborted records take offsets that no record of a batch shows."""
    settings = small(settings, batch_records=7)
    topic = settings.topic_name("likes")

    async def transactions(name: str, numbers: range, *, commit: bool) -> None:
        owner = Transactions(settings, f"{settings.kafka.app_id}-{name}", settings.group("x"))
        await owner.fence([settings.topic_name("events-retry")])
        for number in numbers:
            if commit:
                await owner.commit([Output(topic, 0, b"k", b"%d" % number)], {})
            else:
                await owner._producer.begin_transaction()
                await (await owner._producer.send(topic, b"aborted", key=b"k", partition=0))
                await owner._producer.abort_transaction()
        await owner.close()

    taken: list[RecordBatch] = []

    async def take(batch: RecordBatch) -> None:
        taken.append(batch)

    def records() -> list[bytes]:
        return [record.value for batch in taken for record in batch.records]

    async def steps() -> None:
        await transactions("a", range(10), commit=True)
        await asyncio.to_thread(send, settings, "likes", 10, 20)
        await transactions("b", range(3), commit=False)
        app = batches(settings, ["likes"], take)
        async with running(app):
            await until(lambda: len(records()) == 30, "the backlog")
            await transactions("a", range(30, 40), commit=True)
            await transactions("b", range(3), commit=False)
            await asyncio.to_thread(send, settings, "likes", 40, 1)
            await until(lambda: len(records()) == 41, "what came later")

    asyncio.run(steps())
    assert records() == [b"%d" % n for n in range(41)]
    assert all(len(batch.records) <= 7 for batch in taken)
    assert taken[0].start == 0
    for before, after in itertools.pairwise(taken):
        assert after.start == before.end
    # 41 records, 20 markers of commits, 6 aborted records with their markers
    assert taken[-1].end == 41 + 20 + 12
    assert committed(settings, "likes") == taken[-1].end


def test_faust_commits_past_acked_batches_and_never_into_one_that_is_not(settings: Settings) -> None:
    settings = small(settings, batch_records=50)
    taken: list[RecordBatch] = []
    gate = asyncio.Event

    async def first_run() -> None:
        go_on = gate()

        async def take(batch: RecordBatch) -> None:
            taken.append(batch)
            if len(taken) == 2:
                await go_on.wait()  # in hand, not acked

        app = batches(settings, ["likes"], take)
        async with running(app):
            await until(lambda: len(taken) == 2, "two batches")
            await until(lambda: committed(settings, "likes") is not None, "a commit")
            await app.consumer.commit()
            assert committed(settings, "likes") == taken[0].end == 50
            go_on.set()
            await until(lambda: sum(len(b.records) for b in taken) == 170, "the rest")
        assert committed(settings, "likes") == 170, "a clean end commits what is done"

    async def second_run() -> None:
        async def take(batch: RecordBatch) -> None:
            taken.append(batch)

        async with running(batches(settings, ["likes"], take)):
            await asyncio.to_thread(send, settings, "likes", 170, 3)
            await until(lambda: sum(len(b.records) for b in taken) == 3, "the new records")

    send(settings, "likes", 0, 170)
    asyncio.run(first_run())
    taken.clear()
    asyncio.run(second_run())
    assert [record.value for batch in taken for record in batch.records] == [b"170", b"171", b"172"]
    assert taken[0].start == 170
    assert committed(settings, "likes") == 173


def test_transactional_topics_are_read_again_from_where_their_transactions_are(settings: Settings) -> None:
    taken: list[bytes] = []

    async def take(batch: RecordBatch) -> None:
        taken.extend(record.value for record in batch.records)

    async def run(count: int) -> None:
        app = batches(settings, ["likes"], take, transactional=True)
        async with running(app):
            await until(lambda: len(taken) == count, "the records")
            await app.consumer.commit()

    send(settings, "likes", 0, 20)
    asyncio.run(run(20))
    assert committed(settings, "likes") is None, "Faust commits nothing here"
    taken.clear()
    asyncio.run(run(20))
    assert taken == [b"%d" % n for n in range(20)]


def test_reading_goes_on_at_the_first_offset_that_there_is_where_none_is_committed(
    settings: Settings,
) -> None:
    """An owner that knew no offset would take whatever comes first: also what follows a batch that Faust
    dropped."""
    likes, missing = TP(settings.topic_name("likes"), 0), TP(settings.topic_name("nowhere"), 0)

    async def take(_batch: RecordBatch) -> None:
        pass

    async def read_on(commit: int | None = None) -> list[int | None]:
        app = batches(settings, ["likes"], take, transactional=True)
        if commit is not None:
            owner = Transactions(settings, "owner", settings.group("test"))
            await owner.fence([settings.topic_name("events-retry")])
            await owner.commit([], {Partition(*likes): (commit, Mark())})
            await owner.close()
        async with running(app):
            found = await app.consumer.committed([likes, missing])
        return [found[likes].offset, found[missing].offset]

    assert asyncio.run(read_on()) == [0, None]
    send(settings, "likes", 0, 6)
    with clients.admin_client(settings) as admin:
        admin.delete_records({likes: 3})
    assert asyncio.run(read_on()) == [3, None]
    assert asyncio.run(read_on(commit=5)) == [5, None]


def test_a_slow_agent_stops_the_fetching_and_the_rest_follows(settings: Settings) -> None:
    settings = small(settings, batch_records=10, buffered_batches=2)
    taken: list[RecordBatch] = []

    async def steps() -> None:
        go_on = asyncio.Event()

        async def take(batch: RecordBatch) -> None:
            taken.append(batch)
            await go_on.wait()

        app = batches(settings, ["likes"], take)
        fetched: list[RecordBatch] = []
        async with running(app):
            consumer = app.consumer
            enter = consumer._batch_message

            async def counting(tp: Any, records: Any) -> Any:
                message = await enter(tp, records)
                fetched.append(message.value)
                return message

            consumer._batch_message = counting
            await asyncio.to_thread(send, settings, "likes", 0, 1000)
            tp = TP(settings.topic_name("likes"), 0)
            await until(lambda: tp not in consumer._get_active_partitions(), "back-pressure")
            held = len(fetched)
            assert held <= 2 + 3, "one in hand, two waiting, one or two on their way"
            for _ in range(50):  # the loop goes round; nothing more is fetched
                await asyncio.sleep(0.005)
            assert len(fetched) == held
            assert len(taken) == 1
            go_on.set()
            await until(lambda: sum(len(b.records) for b in taken) == 1000, "everything")

    asyncio.run(steps())
    for before, after in itertools.pairwise(taken):
        assert after.start == before.end


def test_other_topics_arrive_record_by_record_beside_batches(settings: Settings) -> None:
    taken: list[RecordBatch] = []
    single: list[bytes] = []

    async def steps() -> None:
        async def take(batch: RecordBatch) -> None:
            taken.append(batch)

        app = batches(settings, ["likes"], take)

        @app.agent(app.topic(settings.topic_name("comments"), value_type=bytes, value_serializer="raw"))
        async def one_by_one(stream: Any) -> None:
            async for value in stream:
                single.append(value)  # noqa: PERF401 - seen while it runs

        send(settings, "likes", 0, 100)
        send(settings, "comments", 0, 40)
        async with running(app):
            await until(lambda: len(single) == 40 and sum(len(b.records) for b in taken) == 100, "both")
            await app.consumer.commit()

    asyncio.run(steps())
    assert single == [b"%d" % n for n in range(40)]
    assert len(taken) < 100
    assert committed(settings, "comments") == 40
    assert committed(settings, "likes") == 100


def test_a_consumer_thread_that_ended_by_itself_is_stopped_without_an_error(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async def steps() -> None:
        async def take(_: RecordBatch) -> None:
            pass

        app = batches(settings, ["likes"], take)
        async with running(app):
            thread = app.consumer._thread
            thread.thread_loop.call_soon_threadsafe(
                thread._crash, StreamAppError("as a worker that crashes does")
            )
            assert await asyncio.to_thread(thread._thread.is_stopped.wait, PATIENCE_S)
            assert thread.thread_loop.is_closed()
        assert thread._stopped.is_set()

    asyncio.run(steps())
    assert "Error while stopping" not in caplog.text
