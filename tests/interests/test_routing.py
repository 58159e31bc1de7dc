"""Any partitioner, any number of partitions, no key: each user's state is in one place, exactly once."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import msgspec
import pytest
from confluent_kafka import Producer
from kafka.admin import NewPartitions

from stream_app.hashing import key64
from stream_app.kafka import clients
from stream_app.kafka.admin import admin_client, create_topics
from stream_app.kafka.partitions import partition_of
from stream_app.replay.accounting import read_outcomes
from stream_app.settings import Settings
from stream_app.topics import declare
from tests.erasure.erasing import receipts
from tests.interests.closed_form import Sent
from tests.interests.workers import (
    TOPIC_OF_WEIGHT,
    Worker,
    history,
    publish_contents,
    unit_vectors,
    wait_for_outcomes,
    wait_until,
    workers,
    worst_error,
)

CONTENTS, D = 20, 16
VECTORS = unit_vectors(CONTENTS, D)


@pytest.fixture
def world(settings: Settings) -> Settings:
    """Four partitions; the event topics are made by the tests."""
    return msgspec.structs.replace(
        settings,
        kafka=msgspec.structs.replace(settings.kafka, partitions=4),
        content=msgspec.structs.replace(settings.content, dimensions=D, capacity=100),
        interests=msgspec.structs.replace(settings.interests, recent=1024, seen=1024, sweep_interval_s=1.0),
    )


def make_topics(settings: Settings, partitions: int | None = None) -> None:
    """All topics; those of events with so many partitions."""
    if partitions is not None:
        with contextlib.closing(admin_client(settings)) as admin:
            wanted = {"num_partitions": partitions, "replication_factor": 1}
            names = [settings.topic_name(topic) for topic in TOPIC_OF_WEIGHT.values()]
            admin.create_topics(dict.fromkeys(names, wanted), wait_for_metadata=True)
    create_topics(settings)
    publish_contents(settings, VECTORS)


def grow(settings: Settings, topic: str, partitions: int) -> None:
    with contextlib.closing(admin_client(settings)) as admin:
        admin.create_partitions({settings.topic_name(topic): NewPartitions(partitions)})


@contextlib.contextmanager
def librdkafka(settings: Settings) -> Iterator[Producer]:
    """A producer with its defaults: keys are placed by CRC-32."""
    producer = Producer({"bootstrap.servers": settings.kafka.broker})
    yield producer
    assert producer.flush(30) == 0


def value_of(event: Sent, *, named: bool = True) -> bytes:
    """As a producer would write it; not ``named``: without an event id."""
    value = {
        "event_id": f"e{event.event}",
        "user_id": event.user.decode(),
        "content_id": f"c{event.content}",
        "occurred_at": event.time,
        **({"undo": True} if event.undo else {}),
    }
    if not named:
        del value["event_id"]
    return json.dumps(value).encode()


def produce_crc(settings: Settings, sent: list[Sent], *, key: bool = True, named: bool = True) -> None:
    with librdkafka(settings) as producer:
        for event in sent:
            topic = settings.topic_name(TOPIC_OF_WEIGHT[event.weight])
            producer.produce(topic, value_of(event, named=named), event.user if key else None)
            producer.poll(0)


def places(settings: Settings) -> dict[bytes, set[int]]:
    """Where each user has a record."""
    newest = {}
    for record in clients.read_topic(settings, settings.topic_name("interests")):
        newest[record.key, record.partition] = record.value
    found: dict[bytes, set[int]] = {}
    for (user, partition), value in newest.items():
        if value is not None:
            found.setdefault(user, set()).add(partition)
    return found


def check_places(settings: Settings) -> None:
    for user, found in places(settings).items():
        assert found == {partition_of(user, settings.kafka.partitions)}


@pytest.mark.parametrize(("partitions", "key"), [(4, True), (4, False), (3, True), (7, True), (1, False)])
def test_every_user_is_in_one_place_and_right(
    world: Settings, tmp_path: Path, partitions: int, key: bool
) -> None:
    """Undos and repeats come by another partitioner than their originals."""
    make_topics(world, partitions)
    sent = history(600, 60, CONTENTS)
    assert any(crc32(e.user) % 4 != partition_of(e.user, 4) for e in sent)
    first = [event for at, event in enumerate(sent) if at % 2 == 0]
    second = [event for at, event in enumerate(sent) if at % 2]
    with workers(world, tmp_path, "a") as (worker,):
        produce_crc(world, first, key=key)
        with clients.producer(world) as producer:
            for event in second:
                topic = world.topic_name(TOPIC_OF_WEIGHT[event.weight])
                producer.send(topic, key=event.user, value=value_of(event))
        outcomes = wait_for_outcomes(world, len(sent), worker.log)
        assert worker.stop() == 0
    assert outcomes.accounted == len(sent)
    assert outcomes.dead_lettered == 0
    assert outcomes.routed > 0
    assert worst_error(world, sent, VECTORS) < 1e-5
    check_places(world)


def test_a_topic_that_grows_under_a_running_worker_loses_and_doubles_nothing(
    world: Settings, tmp_path: Path
) -> None:
    """With traffic before, during and after, of events without ids, by two kinds of partitioners."""
    make_topics(world)
    sent = history(900, 60, CONTENTS, seed=4)
    sent = [event for event in sent if not event.undo]
    sent = list({(e.user, e.event): e for e in sent}.values())  # without ids there are no repeats
    with workers(world, tmp_path, "a", "b") as (first, second):
        for worker in (first, second):
            worker.wait_for("serving")
        for turn in range(3):
            produce_crc(world, sent[turn * 100 : turn * 100 + 100], named=False)
        wait_for_outcomes(world, 200, first.log)
        grow(world, "likes", 8)
        produce_crc(world, sent[300:400], named=False)
        wait_until(
            lambda: any("is routed" in w.log.read_text() for w in (first, second)), "routers", first.log
        )
        produce_crc(world, sent[400:700], named=False)
        grow(world, "comments", 5)
        produce_crc(world, sent[700:], named=False)
        outcomes = wait_for_outcomes(world, len(sent), first.log)
        assert (first.stop(), second.stop()) == (0, 0)
    assert outcomes.applied == len(sent)
    assert outcomes.duplicates == 0
    assert worst_error(world, sent, VECTORS) < 1e-5
    check_places(world)


@pytest.mark.parametrize("partitions", [None, 7])
def test_workers_that_are_killed_while_they_route_lose_and_double_nothing(
    world: Settings, tmp_path: Path, partitions: int | None
) -> None:
    """kill -9, again and again, with events without ids: nothing would recognise them the second time."""
    make_topics(world, partitions)
    world = msgspec.structs.replace(
        world, kafka=msgspec.structs.replace(world.kafka, batch_records=40, session_timeout_s=6.0)
    )
    sent = [event for event in history(3000, 60, CONTENTS, seed=5) if not event.undo]
    sent = list({(e.user, e.event): e for e in sent}.values())
    with workers(world, tmp_path, "a", "b") as (first, second):
        first.wait_for("serving")
        second.wait_for("serving")
        for part in range(4):
            quarter = len(sent) // 4
            produce_crc(world, sent[part * quarter : (part + 1) * quarter if part < 3 else None], named=False)
            victim = (first, second)[part % 2]
            wait_for_outcomes_of_any(world, part * quarter + 100, victim)
            victim.kill()
            victim.start()
        outcomes = wait_for_outcomes(world, len(sent), first.log)
        first.signal(signal.SIGTERM)
        second.signal(signal.SIGTERM)
        assert (first.end(), second.end()) == (0, 0)
    assert outcomes.applied == len(sent)
    assert outcomes.duplicates == 0
    assert worst_error(world, sent, VECTORS) < 1e-5
    check_places(world)


def wait_for_outcomes_of_any(settings: Settings, count: int, worker: Worker) -> None:
    wait_until(lambda: read_outcomes(settings).accounted >= count, f"{count} accounted", worker.log)


def test_an_erasure_leaves_nothing_wherever_events_and_request_were_sent(
    world: Settings, tmp_path: Path
) -> None:
    """Events by librdkafka, by key and without; requests likewise; one event waits, one is malformed."""
    world = msgspec.structs.replace(
        world, events=msgspec.structs.replace(world.events, retry_delays_s=(0.5, 1.0))
    )
    make_topics(world)
    victims = [f"victim-{n}" for n in range(12)]
    count = 0
    with workers(world, tmp_path, "a") as (worker,):
        with librdkafka(world) as producer:
            for user in (*victims, "stays"):
                for content in ("c1", "c2", "unknown"):
                    value = json.dumps({"user_id": user, "content_id": content}).encode()
                    producer.produce(world.topic_name("likes"), value, user.encode())
                producer.produce(world.topic_name("shares"), b'{"user_id": "%s"}' % user.encode())
                count += 4
        outcomes = wait_for_outcomes(world, count, worker.log)
        assert (outcomes.applied, outcomes.dead_lettered) == (26, 26)
        requested = time.time_ns() // 1_000_000
        with librdkafka(world) as producer:
            for at, user in enumerate(victims):
                key = user.encode() if at % 2 else None
                producer.produce(world.topic_name("erasures"), b'{"user_id": "%s"}' % user.encode(), key)
        wait_until(lambda: swept(world) == {key64(user) for user in victims}, "receipts", worker.log)
        with librdkafka(world) as producer:  # late: of the time before
            for user in victims:
                value = {"user_id": user, "content_id": "c3", "occurred_at": requested - 60_000}
                producer.produce(world.topic_name("comments"), json.dumps(value).encode(), user.encode())
        count += len(victims)
        wait_for_outcomes(world, count, worker.log)
        inputs = {world.topic_name(topic) for topic in TOPIC_OF_WEIGHT.values()}

        def named() -> set[str]:
            return {
                topic.name
                for topic in declare(world)
                for r in clients.read_topic(world, topic.name, isolation_level="read_uncommitted")
                if topic.name not in inputs and b"victim-" in (r.value or b"") + (r.key or b"")
            } - {world.topic_name("interests")}

        wait_until(lambda: not named(), "nothing that names them", worker.log)
        assert worker.stop() == 0
    for receipt in receipts(world).values():
        assert abs(receipt.requested_at - requested) < 30_000
        assert receipt.removed.records == 1
    assert places(world) == {b"stays": {partition_of(b"stays", 4)}}


def swept(settings: Settings) -> set[int]:
    return {user for user, receipt in receipts(settings).items() if receipt.swept_at is not None}
