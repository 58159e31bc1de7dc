"""Every kind of producer at once: {kafka-python, aiokafka, librdkafka} x codec x partitioner x partitions.

Each cell has users of its own, with the same events. So all users must end with the same state, each in one
place; and whoever is erased must be gone, whatever brought the events.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import aiokafka.codec
import confluent_kafka
import kafka.codec
import kafka.record.default_records
import msgspec
import numpy as np
import pytest
from aiokafka import AIOKafkaProducer
from kafka import KafkaProducer

from stream_app.kafka import clients
from stream_app.kafka.admin import admin_client, create_topics
from stream_app.kafka.partitions import partition_of
from stream_app.settings import Settings
from stream_app.topics import declare
from tests.erasure.erasing import erased
from tests.interests.closed_form import Sent
from tests.interests.workers import (
    NOW_MS,
    publish_contents,
    states,
    unit_vectors,
    wait_for_outcomes,
    wait_until,
    workers,
    worst_error,
)

CLIENTS = ("kafka-python", "aiokafka", "librdkafka")
CODECS = (None, "gzip", "snappy", "lz4", "zstd")
PLACED = ("murmur2", "crc32", "no key")
PARTITIONS = {"likes": 4, "comments": 7, "shares": 2}
"""Of the table: 4. So one topic has the same, one more, one fewer."""
CELLS = list(product(CLIENTS, CODECS, PLACED, PARTITIONS))
USERS = ("gone", "stay")
D = 16


class Record(NamedTuple):
    """One record to be sent."""

    topic: str
    placed: str
    user: bytes
    value: bytes


def user_of(who: str, client: str, codec: str | None, placed: str, topic: str) -> bytes:
    return f"{who}-{client}-{codec}-{placed}-{topic}".encode()


def history(user: bytes) -> list[Sent]:
    """A repeat, an undo, and an event that is older than those before it."""
    sent = [Sent(user, n, n, NOW_MS - age * 3_600_000) for n, age in enumerate((50, 20, 300, 5, 90))]
    return [*sent, sent[1], Sent(user, 3, 3, NOW_MS - 3_600_000, undo=True)]


def records(client: str, codec: str | None) -> Iterator[Record]:
    for who, placed, topic in product(USERS, PLACED, PARTITIONS):
        user = user_of(who, client, codec, placed, topic)
        for event in history(user):
            value = {
                "event_id": f"e{event.event}",
                "user_id": user.decode(),
                "content_id": f"c{event.content}",
                "occurred_at": event.time,
                "undo": event.undo,
            }
            yield Record(topic, placed, user, json.dumps(value).encode())


def place(record: Record) -> tuple[bytes | None, int | None]:
    """Key and partition that Python's clients are given."""
    if record.placed == "no key":
        return None, None
    count = PARTITIONS[record.topic]
    return record.user, crc32(record.user) % count if record.placed == "crc32" else None


def by_kafka_python(settings: Settings, codec: str | None) -> None:
    with contextlib.closing(
        KafkaProducer(bootstrap_servers=settings.kafka.broker, compression_type=codec, linger_ms=50)
    ) as producer:
        for record in records("kafka-python", codec):
            key, partition = place(record)
            producer.send(settings.topic_name(record.topic), record.value, key, partition=partition)
        producer.flush()


def by_aiokafka(settings: Settings, codec: str | None) -> None:
    async def send() -> None:
        async with AIOKafkaProducer(
            bootstrap_servers=settings.kafka.broker, compression_type=codec, linger_ms=50
        ) as producer:
            sent = []
            for record in records("aiokafka", codec):
                key, partition = place(record)
                topic = settings.topic_name(record.topic)
                sent.append(await producer.send(topic, record.value, key, partition=partition))
            await asyncio.gather(*sent)

    asyncio.run(send())


def by_librdkafka(settings: Settings, codec: str | None) -> None:
    partitioners = {"murmur2": "murmur2_random", "crc32": "consistent_random", "no key": "consistent_random"}
    for placed, partitioner in partitioners.items():
        producer = confluent_kafka.Producer(
            {
                "bootstrap.servers": settings.kafka.broker,
                "compression.type": codec or "none",
                "partitioner": partitioner,
            }
        )
        for record in records("librdkafka", codec):
            if record.placed == placed:
                key = None if placed == "no key" else record.user
                producer.produce(settings.topic_name(record.topic), record.value, key)
        assert producer.flush(30) == 0


SENDERS: dict[str, Callable[[Settings, str | None], None]] = {
    "kafka-python": by_kafka_python,
    "aiokafka": by_aiokafka,
    "librdkafka": by_librdkafka,
}


@pytest.fixture
def _codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    """kafka-python compresses with the packages snappy, lz4 and zstandard; here aiokafka does it for it."""
    for name in ("snappy", "lz4", "zstd"):
        compress = getattr(aiokafka.codec, f"{name}_encode")
        monkeypatch.setattr(kafka.record.default_records, f"{name}_encode", compress)
        _, attributes = KafkaProducer._COMPRESSORS[name]
        monkeypatch.setitem(KafkaProducer._COMPRESSORS, name, (lambda: True, attributes))
        monkeypatch.setattr(kafka.codec, f"has_{name}", lambda: True)


@pytest.fixture
def world(settings: Settings) -> Settings:
    replace = msgspec.structs.replace
    actions = tuple(replace(action, weight=1.0) for action in settings.events.actions)
    settings = replace(
        settings,
        kafka=replace(settings.kafka, partitions=4),
        events=replace(settings.events, actions=actions),
        content=replace(settings.content, dimensions=D, capacity=100),
        interests=replace(settings.interests, sweep_interval_s=1.0),
    )
    with contextlib.closing(admin_client(settings)) as admin:
        admin.create_topics(
            {
                settings.topic_name(topic): {"num_partitions": count, "replication_factor": 1}
                for topic, count in PARTITIONS.items()
            },
            wait_for_metadata=True,
        )
    create_topics(settings)
    publish_contents(settings, unit_vectors(10, D))
    return settings


@pytest.mark.usefixtures("_codecs")
def test_every_producers_events_end_in_the_same_states_in_one_place_and_can_be_erased(
    world: Settings, tmp_path: Path
) -> None:
    everybody = {user_of(who, *cell) for who in USERS for cell in CELLS}
    assert len(everybody) == 270
    sent = [event for user in everybody for event in history(user)]
    gone = sorted(user.decode() for user in everybody if user.startswith(b"gone"))
    with workers(world, tmp_path, "a", "b") as (first, second):
        for client, codec in product(CLIENTS, CODECS):
            SENDERS[client](world, codec)
        outcomes = wait_for_outcomes(world, len(sent), first.log)
        assert (outcomes.applied, outcomes.duplicates) == (6 * 270, 270)

        assert worst_error(world, sent, unit_vectors(10, D)) < 1e-5
        found = states(world)
        one = found[everybody.copy().pop()]
        for user, record in found.items():
            assert record.t_ref == one.t_ref
            assert record.mass == pytest.approx(one.mass, rel=1e-6), user
            np.testing.assert_allclose(record.vector, one.vector, atol=1e-6)
        assert places(world) == {user: {partition_of(user, 4)} for user in everybody}

        status, printed = erased(world, *gone)
        assert status == 0
        assert all(line["receipt"]["removed"]["records"] == 1 for line in printed)
        wait_until(lambda: not naming(world, b"gone-"), "nothing that names them", first.log)
        assert (first.stop(), second.stop()) == (0, 0)
    assert places(world) == {u: {partition_of(u, 4)} for u in everybody if u.startswith(b"stay")}


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


def naming(settings: Settings, part: bytes) -> set[str]:
    """Topics of ours, without the table's tombstones, that have ``part`` in a key or a value."""
    events = [settings.topic_name(topic) for topic in (*PARTITIONS, "interests")]
    return {
        topic.name
        for topic in declare(settings)
        if topic.name not in events
        for r in clients.read_topic(settings, topic.name, isolation_level="read_uncommitted")
        if part in (r.value or b"") + (r.key or b"")
    }
