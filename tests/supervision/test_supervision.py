"""Everything in a running worker that can end or hang, ended or hung: each is noticed, by its name.

A real app in this process, against the real broker. What the worker does about it (the page, the
exit status) is in test_worker_ends.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiokafka.errors import KafkaError
from faust.tables.recovery import ServiceStopped

from stream_app.errors import StalledError, TransactionError
from stream_app.interests.app import InterestsWorker, create_app
from stream_app.kafka.changelog import ChangelogReader
from stream_app.kafka.faust.app import RoleApp
from stream_app.kafka.faust.supervision import ENDED_LOOKS, LOOK_S, supervise
from stream_app.kafka.reader import TopicReader
from stream_app.kafka.transactions import Transactions
from stream_app.observability.health import Health
from stream_app.settings import Settings
from tests.interests.closed_form import Sent
from tests.interests.workers import NOW_MS, produce, publish_contents, unit_vectors, wait_for_outcomes

D = 16
STALL_S = 4.0
NOTICED_S = 45.0  # on a machine with much else to do; alone it takes STALL_S and a few looks

Fault = Callable[[RoleApp], Awaitable[None]]

# a client whose task was cancelled from outside closes neither its loop nor its sockets
pytestmark = [
    pytest.mark.usefixtures("left_over"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def world(settings: Settings, topics: list[str]) -> Settings:
    return msgspec.structs.replace(
        settings,
        content=msgspec.structs.replace(settings.content, dimensions=D, capacity=100),
        kafka=msgspec.structs.replace(settings.kafka, session_timeout_s=6.0, request_timeout_s=6.0),
        observability=msgspec.structs.replace(settings.observability, stall_timeout_s=STALL_S),
    )


class Running:
    """An app that starts, with its health and supervision, as ``worker.py`` puts them together."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.health = Health(settings)
        self.app = create_app(settings, self.health)
        self.app.serving.append(self._note)

    def _note(self, serving: bool) -> None:
        self.health.ready = serving

    async def until_ready(self) -> None:
        async with asyncio.timeout(NOTICED_S):
            while not self.health.ready:
                assert self.health.stalled() is None
                await asyncio.sleep(0.05)

    async def cause(self) -> str:
        """What the worker would end for, once there is something."""
        async with asyncio.timeout(NOTICED_S):
            while True:
                if self.app.crashed:
                    return repr(self.app.crash_reason)
                if (cause := self.health.stalled()) is not None:
                    return cause
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    one = Running(settings)
    one.health.judge_readiness()
    tasks = [
        asyncio.create_task(one.app.start()),
        asyncio.create_task(supervise(settings, one.app, one.health)),
    ]
    try:
        yield one
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait([asyncio.gather(one.app.stop(), *tasks, return_exceptions=True)], timeout=20)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 3 * NOTICED_S))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(NOTICED_S):
        while not true():  # noqa: ASYNC110 - what is looked at sets no event
            await asyncio.sleep(0.05)


def inner(app: RoleApp) -> Any:
    """aiokafka's consumer in Faust's thread."""
    return app.consumer._thread._consumer


def cancel(app: RoleApp, task: Any) -> None:
    app.consumer.call_in_thread(task.cancel)


def cancel_named(service: Any, name: str) -> None:
    for future in list(service._futures):
        if future.__wrapped__.__name__ == name:
            future.cancel()


async def end_coordination(app: RoleApp) -> None:
    cancel(app, inner(app)._coordinator._coordination_task)


async def end_metadata(app: RoleApp) -> None:
    cancel(app, inner(app)._client._sync_task)


async def end_fetch_loop(app: RoleApp) -> None:
    cancel_named(app._fetcher, "_fetcher")


async def end_commits(app: RoleApp) -> None:
    cancel_named(app.consumer, "_commit_handler")


async def end_recovery(app: RoleApp) -> None:
    cancel_named(app.tables.recovery, "_restart_recovery")


async def end_method_queue(app: RoleApp) -> None:
    cancel_named(app.consumer._method_queue._workers[0], "_method_queue_do_work")


async def refuse_heartbeats(app: RoleApp) -> None:
    async def refused() -> bool:
        raise KafkaError("not you")

    inner(app)._coordinator._do_heartbeat = refused


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (end_coordination, "aiokafka's group coordination has ended"),
        (end_metadata, "aiokafka's update of metadata has ended"),
        (end_fetch_loop, "Faust's fetch loop has ended"),
        (end_commits, "Faust's commit handler has ended"),
        (end_recovery, "the recovery of assignments has ended"),
        (end_method_queue, "the method queue of Faust's consumer has ended"),
        (refuse_heartbeats, "not you"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_part_that_ended_is_noticed(world: Settings, fault: Fault, cause: str) -> None:
    async def life() -> None:
        async with running(world) as one:
            await one.until_ready()
            await fault(one.app)
            assert cause in await one.cause()

    run(life())


def test_a_sound_worker_is_left_alone(world: Settings) -> None:
    """Idle for longer than a stall may last, and through two rebalances."""

    async def life() -> None:
        async with running(world) as one:
            for _ in range(2):
                await one.until_ready()
                until = asyncio.get_running_loop().time() + max(STALL_S, ENDED_LOOKS * LOOK_S) + 2 * LOOK_S
                while asyncio.get_running_loop().time() < until:
                    assert one.health.stalled() is None
                    await asyncio.sleep(0.1)
                one.app.consumer.request_rejoin()

    run(life())


def test_a_partition_that_does_not_move_is_noticed(world: Settings) -> None:
    """Whatever the reason: here aiokafka was told to pause it, and nobody else knows."""

    async def life() -> None:
        async with running(world) as one:
            await one.until_ready()
            consumer = inner(one.app)
            one.app.consumer.call_in_thread(lambda: consumer.pause(*consumer.assignment()))
            await asyncio.to_thread(send_events, world)
            assert "has records to read and has not moved" in await one.cause()

    run(life())


def test_a_topic_that_is_no_longer_followed_is_noticed(world: Settings) -> None:
    async def life() -> None:
        async with running(world) as one:
            await one.until_ready()
            (reader,) = one.app.readers
            fetcher = reader._consumer._fetcher
            fetcher._fetch_task.cancel()
            await until(lambda: not fetcher._in_flight)  # or its last fetch would bring them yet
            await asyncio.to_thread(publish_contents, world, unit_vectors(3, D))
            assert "content-vectors" in await one.cause()

    run(life())


def send_events(world: Settings) -> None:
    publish_contents(world, unit_vectors(1, D))
    produce(world, [Sent(b"user-%d" % n, 0, n, NOW_MS, 1.0) for n in range(40)])


async def _hang(*_: object) -> int:
    await asyncio.Event().wait()
    return 0


def test_a_start_that_reads_nothing_is_noticed(world: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def life() -> None:
        await asyncio.to_thread(send_events, world)
        monkeypatch.setattr(TopicReader, "_poll", _hang)
        async with running(world) as one:
            assert (await one.cause()).startswith("waits for the content index for")

    run(life())


async def fill_changelog(world: Settings) -> None:
    async with running(world) as one:
        await one.until_ready()
        await asyncio.to_thread(send_events, world)
        # what is committed counts: positions move with a fetch, before any stream has its records
        await asyncio.to_thread(wait_for_outcomes, world, 40)


def elsewhere(world: Settings) -> Settings:
    """A worker without state of its own: it has everything to recover."""
    interests = msgspec.structs.replace(world.interests, data_dir=f"{world.interests.data_dir}-new")
    return msgspec.structs.replace(world, interests=interests)


def test_a_recovery_that_hangs_is_noticed(world: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def life() -> None:
        await fill_changelog(world)
        monkeypatch.setattr(ChangelogReader, "_poll", _hang)
        async with running(elsewhere(world)) as one:
            assert (await one.cause()).startswith("waits for recovery for")

    run(life())


def test_a_recovery_that_goes_on_is_left_alone_however_long_it_takes(
    world: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record at a time, so slowly that the whole takes several times what a stall may last."""
    poll = ChangelogReader._poll

    async def slowly(reader: ChangelogReader, apply: Any, mode: str) -> int:
        await asyncio.sleep(STALL_S / 4)
        return await poll(reader, apply, mode)

    async def life() -> None:
        await fill_changelog(world)
        monkeypatch.setattr("stream_app.kafka.changelog.BATCH_RECORDS", 2)
        monkeypatch.setattr(ChangelogReader, "_poll", slowly)
        begun = asyncio.get_running_loop().time()
        async with running(elsewhere(world)) as one:
            await one.until_ready()  # asserts that there is no stall
            assert asyncio.get_running_loop().time() - begun > 2 * STALL_S

    run(life())


@pytest.mark.parametrize("end", [asyncio.CancelledError, ServiceStopped])
def test_an_opening_that_is_cut_short_is_begun_again(
    world: Settings, monkeypatch: pytest.MonkeyPatch, end: type[BaseException]
) -> None:
    """What it waits for is cancelled, as calls into the consumer are by a rebalance, or takes too long, and
    mode says that the service was stopped: Faust's recovery would end, and no assignment be served any more.
    """
    begun = 0
    assign = InterestsWorker.assign

    async def cut_short(self: InterestsWorker, *args: set[int]) -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            raise end
        await assign(self, *args)

    monkeypatch.setattr(InterestsWorker, "assign", cut_short)

    async def scenario() -> None:
        async with running(world) as one:
            await one.until_ready()
            assert begun == 2

    run(scenario())


def test_background_work_that_ends_without_an_error_stops_the_worker(world: Settings) -> None:
    async def life() -> None:
        async with running(world) as one:
            await one.until_ready()
            one.app.background("a task", asyncio.sleep(0))
            await until(lambda: one.app.crashed)
            assert isinstance(one.app.crash_reason, StalledError)

    run(life())


def test_a_producer_that_ended_costs_a_new_assignment_and_nothing_else(world: Settings) -> None:
    world = msgspec.structs.replace(
        world,
        kafka=msgspec.structs.replace(world.kafka, transaction_timeout_s=2.0),
        observability=msgspec.structs.replace(world.observability, stall_timeout_s=30.0),
    )

    async def life() -> None:
        async with running(world) as one:
            await one.until_ready()
            owner: Any = one.app.owner
            owner._transactions._producer._producer._sender._sender_task.cancel()
            await asyncio.to_thread(send_events, world)
            await until(lambda: sum(p._outcomes.applied for p in owner._partitions.values()) == 40)
            assert one.health.stalled() is None

    run(life())


def test_a_batch_that_fails_again_and_again_is_noticed(
    world: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each failure loses the partition, which is opened anew and reads the batch again."""
    # opening it again and again keeps a busy machine's broker from answering at once
    patient = msgspec.structs.replace(world.observability, stall_timeout_s=3 * STALL_S)
    world = msgspec.structs.replace(world, observability=patient)

    async def refuse(*_: object) -> None:
        raise TransactionError("too large")

    async def life() -> None:
        monkeypatch.setattr(Transactions, "commit", refuse)
        async with running(world) as one:
            await one.until_ready()
            await asyncio.to_thread(send_events, world)
            assert "at the same offset" in await one.cause()

    run(life())


def test_a_reader_that_gives_nothing_gives_up(world: Settings) -> None:
    """A standby connects anew then, and a recovery begins anew."""

    async def life() -> None:
        await asyncio.to_thread(send_events, world)
        topic = world.topic_name("content-vectors")
        partition = 0 if await end_of(world, topic, 0) else 1
        quick = msgspec.structs.replace(
            world, kafka=msgspec.structs.replace(world.kafka, request_timeout_s=1.0)
        )
        for read in (ChangelogReader.read_to_end, ChangelogReader.follow):
            reader = ChangelogReader(quick, topic, partition)
            try:
                await reader.start(0)
                reader._consumer.getmany = _give_nothing
                with pytest.raises(KafkaError, match="gave nothing for"):
                    await asyncio.wait_for(read(reader, _apply_nothing), NOTICED_S)
            finally:
                await reader.stop()

    run(life())


async def _apply_nothing(*_: object) -> None:
    return


async def _give_nothing(*_: object, **__: object) -> dict[Any, Any]:
    await asyncio.sleep(0.05)
    return {}


async def end_of(world: Settings, topic: str, partition: int) -> int:
    reader = ChangelogReader(world, topic, partition)
    try:
        await reader.start(0)
        return await reader.end()
    finally:
        await reader.stop()
