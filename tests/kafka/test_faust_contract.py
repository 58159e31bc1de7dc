"""What is relied on inside Faust, mode and aiokafka. A failure here names what a new version changed.

``stream_app/kafka/`` overrides methods and reads attributes that these libraries do not document.
Each is pinned once: by signature, by its presence on a real object, or by behaviour without a broker.
Behaviour with a broker is in ``test_transport.py``, ``test_transactions.py`` and ``tests/interests``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from typing import Any

import aiokafka
import faust
import pytest
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import Assignment, TopicPartitionState
from aiokafka.producer import sender
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import OffsetAndMetadata, RecordMetadata, TopicPartition
from faust.serializers.schemas import Schema
from faust.tables.manager import TableManager
from faust.tables.recovery import RebalanceAgain, Recovery, ServiceStopped
from faust.transport.consumer import Consumer, ThreadDelegateConsumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode import Service

from stream_app.kafka import patches
from stream_app.kafka.faust.app import RoleApp, create_faust_app
from stream_app.kafka.faust.recovery import PartitionRecovery, PartitionTables
from stream_app.kafka.faust.transport import BatchConsumer, BatchTransport
from stream_app.kafka.fetched import FetchedRecords
from stream_app.kafka.records import RecordBatch
from stream_app.settings import build


def names(function: Callable[..., Any]) -> list[str]:
    """Parameter names, without self."""
    return [name for name in inspect.signature(function).parameters if name != "self"]


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Faust and aiokafka bind their objects to the running loop."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def make_app() -> RoleApp:
    """A role's app that never starts."""
    settings = build({"kafka": {"broker": "127.0.0.1:9"}})
    app = create_faust_app(settings, "contract", batch_topics=["batched", "own"])
    app.transactional_topics = frozenset({"own"})
    return app


def make_consumer(app: RoleApp | None = None) -> BatchConsumer:
    made: BatchConsumer = (app or make_app()).consumer
    assert type(made) is BatchConsumer, "App.transport's Consumer class makes App.consumer"
    made._thread.thread_loop.close()  # made for its thread, which never starts
    return made


def test_versions_are_those_that_were_read() -> None:
    assert version("faust-streaming").startswith("0.15.")
    assert version("aiokafka").startswith("0.14.")


# -- methods that are overridden: same name, same parameters, still called by the base

OVERRIDDEN = [
    (BatchConsumer, driver.Consumer, "getmany", ["timeout"]),
    (BatchConsumer, driver.Consumer, "_wait_next_records", ["timeout"]),
    (BatchConsumer, driver.Consumer, "perform_seek", []),
    (BatchConsumer, driver.Consumer, "on_partitions_revoked", ["revoked"]),
    (BatchConsumer, driver.Consumer, "_commit_offsets", ["offsets", "start_new_transaction"]),
    (BatchConsumer, driver.Consumer, "_new_consumer_thread", []),
    (BatchConsumer, driver.Consumer, "verify_event_path", ["now", "tp"]),
    (RoleApp, faust.App, "_on_partitions_revoked", ["revoked"]),
    (RoleApp, faust.App, "_create_directories", []),
    (RoleApp, faust.App, "on_rebalance_end", []),
    (RoleApp, faust.App, "on_start", []),
    (RoleApp, faust.App, "on_stop", []),
    (PartitionRecovery, Recovery, "_restart_recovery", None),
    (PartitionRecovery, Recovery, "_slurp_changelogs", None),
    (PartitionRecovery, Recovery, "_is_changelog_tp", ["tp"]),
    (PartitionRecovery, Recovery, "flush_buffers", []),
]


@pytest.mark.parametrize(("ours", "base", "method", "parameters"), OVERRIDDEN, ids=lambda v: str(v)[:60])
def test_overridden_methods_have_the_same_parameters(
    ours: type, base: type, method: str, parameters: list[str] | None
) -> None:
    assert method in vars(ours), f"{ours.__name__}.{method} is no longer overridden: update this list"
    assert hasattr(base, method), f"{base.__name__}.{method} is gone: ours is never called"
    if parameters is not None:
        assert names(getattr(base, method)) == parameters
        assert names(getattr(ours, method)) == parameters
        kinds = [inspect.iscoroutinefunction(getattr(c, method)) for c in (ours, base)]
        assert kinds[0] == kinds[1] or method == "getmany"


def test_what_overrides_call_has_the_expected_parameters() -> None:
    assert names(Consumer._add_gap) == ["tp", "offset_from", "offset_to"]
    assert names(Consumer._to_message) == ["tp", "record"]
    assert names(Consumer.highwater) == ["tp"]
    assert names(Recovery._wait) == ["coro", "timeout"]
    assert names(Recovery._resume_streams) == ["generation_id"]
    assert names(driver.AIOKafkaConsumerThread._create_worker_consumer) == ["transport"]
    assert names(ThreadDelegateConsumer._new_consumer_thread) == []
    assert inspect.isasyncgenfunction(Consumer.getmany)
    assert inspect.isasyncgenfunction(BatchConsumer.getmany)
    for method in ("loads_key", "loads_value"):
        assert names(getattr(Schema, method)) == ["app", "message", "loads", "serializer"]
    for error in (RebalanceAgain, ServiceStopped):
        assert issubclass(error, Exception)


def test_recovery_tasks_replace_fausts_by_name() -> None:
    """mode starts each @Service.task of a class once, found by attribute name."""
    for name in ("_restart_recovery", "_slurp_changelogs"):
        assert isinstance(vars(Recovery)[name], type(Service.task(lambda self: None)))
        assert isinstance(vars(PartitionRecovery)[name], type(vars(Recovery)[name]))
    tasks = PartitionRecovery._tasks[PartitionRecovery._get_class_id()]
    assert {"_restart_recovery", "_slurp_changelogs"} <= set(tasks)


@in_loop
async def test_recovery_has_what_the_replacement_uses() -> None:
    app = make_app()
    tables = app.tables
    assert type(tables) is PartitionTables, "the setting TableManager makes App.tables"
    recovery = tables.recovery
    assert type(recovery) is PartitionRecovery
    assert tables.recovery is recovery
    assert tables._recovery is recovery, "TableManager stops what stands in _recovery"
    assert "_recovery" in inspect.getsource(TableManager.on_stop)
    assert recovery._generation_id == 0
    assert recovery.active_tps == recovery.standby_tps == set()
    assert not recovery.signal_recovery_start.is_set()
    assert recovery.app is app
    assert isinstance(tables.changelog_topics, set)


# -- the consumer's books


@in_loop
async def test_the_consumer_has_the_books_that_batches_are_entered_in() -> None:
    consumer = make_consumer()
    tp = TP("batched", 0)
    assert consumer._read_offset[tp] is None
    assert consumer._committed_offset[tp] is None
    assert consumer._buffered_partitions == set()
    assert consumer.scheduler is not None
    assert consumer.flow_active in (True, False)
    assert consumer.app.consumer_generation_id == 0
    assert consumer.app.client_only is False
    assert callable(consumer._get_active_partitions)
    assert isinstance(consumer._next_start, dict)


def record(offset: int) -> Any:
    return aiokafka.ConsumerRecord("batched", 0, offset, 1_700_000_000_000, 0, b"k", b"v", None, 1, 1, ())


async def delivered(consumer: BatchConsumer, offsets: list[int]) -> Any:
    """One fetched batch, entered in the books as Faust's drain loop does it."""
    tp = TP("batched", 0)
    start = consumer._next_start.get(tp, offsets[0])  # nothing is missing in between
    message = await consumer._batch_message(tp, FetchedRecords(start, map(record, offsets)))
    read = consumer._read_offset[tp]
    assert read is None or message.offset >= read, "else Faust drops the message"
    assert read is None or message.offset - read <= 1, "else Faust adds a gap of its own, which ends too late"
    consumer._read_offset[tp] = message.offset
    return message


def acked(consumer: BatchConsumer, message: Any) -> int | None:
    tp = message.tp
    consumer._acked[tp].append(message.offset)
    offset: int | None = consumer._new_offset(tp)
    return offset


@pytest.mark.parametrize("first", [0, 1, 7])
@in_loop
async def test_fausts_gap_logic_commits_exactly_past_an_acked_batch(
    monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    consumer = make_consumer()
    monkeypatch.setattr(consumer, "highwater", lambda tp: 100)

    tp = TP("batched", 0)
    if first:
        consumer._read_offset[tp] = consumer._committed_offset[tp] = first
        consumer._next_start[tp] = first
    one = await delivered(consumer, [first, first + 1, first + 2])
    assert isinstance(one.value, RecordBatch)
    assert (one.value.start, one.value.end, one.offset) == (first, first + 3, first + 2)
    assert consumer._new_offset(tp) is None, "nothing is acked yet"
    two = await delivered(consumer, [first + 5])  # markers or compacted records between
    assert (two.value.start, two.value.end) == (first + 3, first + 6)
    three = await delivered(consumer, [first + 6, first + 9])
    assert three.value.start == two.value.end
    assert acked(consumer, one) == first + 3, "and not into the batches after it"
    consumer._committed_offset[tp] = first + 3
    consumer._acked[tp].append(two.offset)
    assert acked(consumer, three) == first + 10


@in_loop
async def test_a_single_record_at_the_start_of_a_topic_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = make_consumer()
    monkeypatch.setattr(consumer, "highwater", lambda tp: 1)

    assert acked(consumer, await delivered(consumer, [0])) == 1


@in_loop
async def test_transactional_topics_are_never_committed_by_faust(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every commit of Faust's passes through _commit_offsets."""
    consumer = make_consumer()
    committed: list[dict[TP, int]] = []

    async def base(self: Any, offsets: dict[TP, int], start_new_transaction: bool = True) -> bool:
        committed.append(offsets)
        return True

    monkeypatch.setattr(driver.Consumer, "_commit_offsets", base)

    own, other = TP("own", 1), TP("batched", 0)
    assert await consumer._commit_offsets({own: 5})
    assert committed == []
    assert consumer._committed_offset[own] == 5
    assert await consumer._commit_offsets({own: 6, other: 3})
    assert committed == [{other: 3}]

    assert "_commit_offsets" in inspect.getsource(Consumer._commit_tps)
    callers = [
        name
        for name, f in vars(Consumer).items()
        if inspect.isfunction(f) and "self._commit(" in inspect.getsource(f)
    ]
    assert callers == ["_commit_offsets"]


@in_loop
async def test_fausts_watch_of_commits_does_not_see_transactions(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its errors come from here; without a started thread to ask, Faust's own would raise."""
    consumer = make_consumer()
    monkeypatch.setattr(consumer, "assignment", lambda: {TP("own", 0)})
    await consumer.verify_all_partitions_active()
    assert not caplog.records


def test_the_app_waits_for_its_streams_before_partitions_are_given_up() -> None:
    assert "_consumer_wait_empty" in inspect.getsource(faust.App._on_partitions_revoked)
    assert "_consumer_wait_empty" in inspect.getsource(faust.App._stop_consumer)
    assert "stream_wait_empty" in inspect.getsource(faust.App._consumer_wait_empty)


@in_loop
async def test_a_crash_can_be_awaited_and_has_a_reason() -> None:
    app = make_app()
    assert app.crash_reason is None

    waiting = asyncio.ensure_future(app._crashed.wait())
    app._crash(ValueError("why"))
    await asyncio.wait_for(waiting, 5)

    assert isinstance(app.crash_reason, ValueError)


@in_loop
async def test_the_app_takes_our_transport_and_settings() -> None:
    app = make_app()
    assert type(app.transport) is BatchTransport
    assert type(app.producer_transport) is driver.Transport
    assert app.conf.stream_wait_empty is True
    assert app.conf.consumer_auto_offset_reset == "earliest"
    assert app.conf.broker_max_poll_records == build({}).kafka.batch_records
    assert app.rebalancing is False
    assert hasattr(app.tables, "actives_ready")


# -- the consumer thread and aiokafka's consumer


@in_loop
async def test_the_worker_consumer_takes_the_two_settings_that_faust_does_not_offer() -> None:
    app = make_app()
    consumer = make_consumer(app)
    made = consumer._thread._create_worker_consumer(app.transport)
    assert made._isolation_level == "read_committed"
    assert made._fetch_max_wait_ms == app.fetch_max_wait_ms
    await made.stop()

    source = inspect.getsource(aiokafka.AIOKafkaConsumer.start)
    assert "fetch_max_wait_ms=self._fetch_max_wait_ms" in source, "it must be read when started"
    assert "isolation_level=self._isolation_level" in source


@in_loop
async def test_what_is_read_off_aiokafkas_consumer() -> None:
    assert names(GroupCoordinator.request_rejoin) == []
    assert names(aiokafka.AIOKafkaConsumer.committed) == ["partition"]
    assert "self._client = " in inspect.getsource(aiokafka.AIOKafkaConsumer.__init__)
    assert "fetch_committed_offsets" in inspect.getsource(aiokafka.AIOKafkaConsumer.committed), "uncached"
    assert "self._coordinator" in inspect.getsource(aiokafka.AIOKafkaConsumer.start)
    assert "self._fetcher" in inspect.getsource(aiokafka.AIOKafkaConsumer.start)
    assert "self._subscriptions" in inspect.getsource(Fetcher.__init__)
    assignment = Assignment([TopicPartition("t", 0)])
    state = assignment.state_value(TopicPartition("t", 0))
    assert isinstance(state, TopicPartitionState)
    assert state.highwater is None
    assert state.has_valid_position is False
    assert assignment.state_value(TopicPartition("t", 1)) is None
    for method in ("_ensure_consumer", "call_thread"):
        assert callable(getattr(driver.AIOKafkaConsumerThread, method))
    assert hasattr(driver.AIOKafkaConsumerThread, "thread_loop") or "thread_loop" in inspect.getsource(
        driver.AIOKafkaConsumerThread.__mro__[2]
    )


# -- aiokafka's producer


def test_the_wait_between_transactions_is_read_as_a_global() -> None:
    patches.apply()
    assert sender.BACKOFF_OVERRIDE == patches.BACKOFF_S == 0.0005
    readers = [
        f
        for c in vars(sender).values()
        if inspect.isclass(c)
        for f in vars(c).values()
        if inspect.isfunction(f)
    ]
    assert any("BACKOFF_OVERRIDE" in f.__code__.co_names for f in readers)


def test_record_batches_are_built_and_sent_as_expected() -> None:
    producer = aiokafka.AIOKafkaProducer
    assert names(producer.create_batch) == []
    assert names(producer.send_batch) == ["batch", "topic", "partition"]
    assert names(producer.send_offsets_to_transaction) == ["offsets", "group_id"]
    for method in ("begin_transaction", "commit_transaction", "start", "stop"):
        assert names(getattr(producer, method)) == []
    assert names(BatchBuilder.append) == ["timestamp", "key", "value", "headers"]
    assert "self._sender = " in inspect.getsource(producer.__init__)
    assert callable(sender.Sender.close)
    assert OffsetAndMetadata(5, "").offset == 5
    assert {"topic", "partition", "offset"} <= set(RecordMetadata._fields)
    builder = BatchBuilder(100, 0, is_transactional=1)
    assert builder.append(timestamp=None, key=b"k", value=bytes(1000)) is not None, "the first always fits"
    assert builder.append(timestamp=None, key=b"k", value=b"v") is None
    assert builder.record_count() == 1
