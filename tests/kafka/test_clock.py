"""The brokers' time, and a machine's clock that is off: retries go by the one, and the other is said."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition
from faust.types import TP

from stream_app.events.dead_letters import Origin, retry
from stream_app.interests.app import InterestsWorker
from stream_app.kafka import clock, transactions
from stream_app.kafka.admin import create_topics
from stream_app.kafka.clock import APPENDED, WINDOW_S, BrokerClock
from stream_app.kafka.faust import transport
from stream_app.kafka.fetched import FetchedRecords
from stream_app.kafka.transactions import Output, Transactions
from stream_app.observability import metrics
from stream_app.settings import Settings

BROKER_MS = 1_750_000_000_000
CREATED = 0
DELAYS_MS = [1_000, 2_000, 4_000, 8_000, 15_000, 30_000, 60_000]


class Times:
    """A broker's clock, and a machine's beside it that is ``ahead_s``."""

    def __init__(self, ahead_s: float) -> None:
        self.passed, self.ahead_s = 0.0, ahead_s
        self.clock = BrokerClock(lambda: self.broker_ms / 1000 + self.ahead_s, lambda: 77.0 + self.passed)

    @property
    def broker_ms(self) -> int:
        return BROKER_MS + int(self.passed * 1000)


@pytest.mark.parametrize("ahead_s", [-7200.0, -120.0, 0.0, 120.0, 86_400.0])
def test_the_brokers_time_is_known_from_what_it_appends(ahead_s: float) -> None:
    times = Times(ahead_s)
    for _ in range(1000):
        times.clock.seen(times.broker_ms, APPENDED)
        times.passed += 1.0
        assert times.clock.now_ms() == times.broker_ms
    times.clock.seen(times.broker_ms - 3_600_000, APPENDED)  # a backlog tells nothing new
    times.clock.seen(times.broker_ms + 10**12, CREATED)  # and a producer's clock nothing at all
    assert times.clock.now_ms() == times.broker_ms


def test_a_brokers_clock_that_is_set_back_is_followed_in_time() -> None:
    times = Times(0.0)
    times.clock.seen(times.broker_ms + 3_600_000, APPENDED)  # it was an hour ahead until now
    for _ in range(3):
        times.passed += WINDOW_S + 1
        times.clock.seen(times.broker_ms, APPENDED)
    assert times.clock.now_ms() == times.broker_ms


@pytest.mark.parametrize(("ahead_s", "said"), [(0.0, 0.0), (119.0, 119.0), (-119.0, -119.0)])
def test_a_clock_that_is_off_is_said_once_and_measured(
    ahead_s: float, said: float, caplog: pytest.LogCaptureFixture
) -> None:
    times = Times(ahead_s)
    with caplog.at_level(logging.WARNING, clock.__name__):
        for _ in range(3):
            sent = times.clock.sending()
            times.passed += 0.25
            times.clock.acknowledged(sent, times.broker_ms - 125, APPENDED)
    assert metrics.CLOCK_OFFSET._value.get() == pytest.approx(said, abs=0.2)
    assert len(caplog.records) == bool(said)
    assert all("this machine's clock is" in record.message for record in caplog.records)


class Partition:
    """Retry topics of one partition, as the transport holds them back, in virtual time."""

    def __init__(self, times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transport, "CLOCK", times.clock)
        self.times, self.topics, self.read = times, {}, {}  # type: ignore[var-annotated]
        worker: Any = SimpleNamespace(_delays_ms=DELAYS_MS)
        names = ["events-retry", *(f"events-retry-{n + 1}" for n in range(len(DELAYS_MS)))]
        due = lambda record, now_ms: InterestsWorker.due_ms(worker, record, now_ms)  # noqa: E731
        self.paused: set[TP] = set()
        self.consumer: Any = SimpleNamespace(
            _held={},
            app=SimpleNamespace(delays=dict.fromkeys(names, due)),
            on_buffer_full=self.paused.add,
            on_buffer_drop=self.paused.discard,
        )

    def put(self, attempt: int, name: str, timestamp: int | None = None) -> None:
        """Wait for try ``attempt``, from 1."""
        topic = f"events-retry-{attempt}"
        log = self.topics.setdefault(topic, [])
        appended = self.times.broker_ms if timestamp is None else timestamp
        origin = Origin("likes", 0, 1, BROKER_MS, attempt - 1, 0)
        source: Any = SimpleNamespace(key=name.encode(), value=b"{}", headers=())
        key, value, headers = retry(source, origin, self.times.broker_ms + 10**9, self.times.broker_ms)
        fields = {"topic": topic, "partition": 0, "offset": len(log), "timestamp_type": APPENDED}
        log.append(SimpleNamespace(key=key, value=value, headers=headers, timestamp=appended, **fields))

    def due(self) -> list[tuple[str, int]]:
        """Names and tries of what is handed on now."""
        fetched = {}
        for topic, log in self.topics.items():
            tp, at = TP(topic, 0), self.read.get(topic, 0)
            if tp not in self.paused and at < len(log):
                fetched[tp] = FetchedRecords(at, log[at:])
                self.times.clock.seen(log[-1].timestamp, APPENDED)
                self.read[topic] = len(log)
        found = transport.BatchConsumer._due(self.consumer, fetched)
        return [
            (r.key.decode(), int(dict(r.headers)["stream-app-attempts"])) for rs in found.values() for r in rs
        ]


@pytest.mark.parametrize("ahead_s", [-120.0, 0.0, 120.0])
@pytest.mark.parametrize("hopeless_a_second", [0.05, 1.0, 20.0])
def test_every_try_is_due_in_time_whatever_waits_before_it(
    ahead_s: float, hopeless_a_second: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = Times(ahead_s)
    partition = Partition(times, monkeypatch)
    put: dict[str, float] = {}
    late: list[float] = []
    begun = 0
    for step in range(4_000):  # 200 s
        while begun < hopeless_a_second * times.passed + 1:
            partition.put(1, f"e{begun}")
            put[f"e{begun}"] = times.passed
            begun += 1
        for name, attempt in partition.due():
            delay = DELAYS_MS[attempt - 1] / 1000
            late.append((times.passed - put[name]) / delay)
            if attempt < len(DELAYS_MS):
                partition.put(attempt + 1, name)
                put[name] = times.passed
        times.passed = (step + 1) * 0.05
    assert len(late) > 20
    assert min(late) >= 1 - 1e-9, "a try was burned"
    assert max(late) <= 1.2


def test_a_retry_that_is_stamped_in_the_future_waits_no_longer_than_its_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = Times(0.0)
    times.clock.seen(times.broker_ms, APPENDED)
    partition = Partition(times, monkeypatch)
    monkeypatch.setattr(times.clock, "seen", lambda *_: None)
    partition.put(1, "odd", timestamp=7_000_000_000_000)
    assert partition.due() == []
    times.passed = 1.0
    assert partition.due() == [("odd", 1)]


def test_where_a_retry_topic_has_the_workers_times_a_try_waits_from_when_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = Times(0.0)
    partition = Partition(times, monkeypatch)
    partition.put(1, "behind", timestamp=BROKER_MS - 3_600_000)
    partition.topics["events-retry-1"][0].timestamp_type = CREATED
    monkeypatch.setattr(times.clock, "seen", lambda *_: None)
    assert partition.due() == []
    times.passed = 1.0
    assert partition.due() == [("behind", 1)]


def test_a_worker_learns_the_brokers_time_from_the_answers_to_its_transactions(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = msgspec.structs.replace(settings, kafka=msgspec.structs.replace(settings.kafka, partitions=1))
    create_topics(settings)
    wrong = BrokerClock(wall=lambda: clock.time.time() + 3_000.0)
    monkeypatch.setattr(transactions, "CLOCK", wrong)
    topic = settings.topic_name("content-stats")

    async def commit() -> None:
        owner = Transactions(settings, "clock", settings.group("clock"))
        await owner.fence([TopicPartition(topic, 0)])
        await owner.commit([Output(topic, 0, b"\x00k", b"{}")], {})
        await owner.close()

    with caplog.at_level(logging.WARNING, clock.__name__):
        asyncio.run(commit())
    assert metrics.CLOCK_OFFSET._value.get() == pytest.approx(3_000, abs=30)
    assert abs(wrong.now_ms() / 1000 - clock.time.time()) < 30
    assert "ahead of the broker's" in caplog.text
