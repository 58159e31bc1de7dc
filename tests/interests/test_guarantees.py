"""What must always hold, tried on real workers, real signals and real Apache Kafka."""

from __future__ import annotations

import collections
import os
import signal
import time
from pathlib import Path

import msgspec
import pytest

from stream_app.interests.statistics_record import Outcomes
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.replay.accounting import read_outcomes
from stream_app.settings import Settings
from tests.events.malformed import USER, malformed
from tests.interests.closed_form import Sent
from tests.interests.workers import (
    history,
    produce,
    produce_one,
    publish_contents,
    states,
    unit_vectors,
    wait_for_outcomes,
    wait_until,
    workers,
    worst_error,
)

CONTENTS = 40
SESSION_S = 3.0


@pytest.fixture
def world(settings: Settings) -> Settings:
    """Small vectors, short sessions, small batches: many transactions in which something can happen."""
    settings = msgspec.structs.replace(
        settings,
        kafka=msgspec.structs.replace(
            settings.kafka, session_timeout_s=SESSION_S, partitions=4, batch_records=64
        ),
        content=msgspec.structs.replace(settings.content, dimensions=32, capacity=1000),
        # a record holds a user's whole history here: undo and repeats are recognised without a horizon
        interests=msgspec.structs.replace(settings.interests, recent=512, seen=512, slab_rows=256),
    )
    create_topics(settings)
    return settings


def distinct(sent: list[Sent]) -> int:
    return len({(e.event, e.undo) for e in sent})


def check(world: Settings, sent: list[Sent], log: Path) -> None:
    """Every record accounted for exactly once, every state the closed form."""
    accounts = wait_for_outcomes(world, len(sent), log)
    expected = Outcomes(applied=distinct(sent), duplicates=len(sent) - distinct(sent))
    assert accounts == expected
    assert worst_error(world, sent, unit_vectors(CONTENTS, 32)) <= 1e-5


def test_kill_9_in_the_middle_changes_nothing(world: Settings, tmp_path: Path) -> None:
    publish_contents(world, unit_vectors(CONTENTS, 32))
    sent = history(6000, 300, CONTENTS)
    with workers(world, tmp_path, "w") as (worker,):
        worker.wait_for("serving 4 partitions")
        third = len(sent) // 3
        for part in (sent[:third], sent[third : 2 * third]):
            produce(world, part)  # the worker is at it while they arrive
            worker.kill()
            worker.start()
        produce(world, sent[2 * third :])
        check(world, sent, worker.log)
        assert worker.stop() == 0


def test_a_zombie_is_fenced_and_harms_nothing(world: Settings, tmp_path: Path) -> None:
    publish_contents(world, unit_vectors(CONTENTS, 32))
    sent = history(5000, 300, CONTENTS, seed=2)
    crawling = msgspec.structs.replace(world, kafka=msgspec.structs.replace(world.kafka, batch_records=2))
    with workers(crawling, tmp_path, "zombie") as (zombie,):
        zombie.wait_for("serving 4 partitions")
        produce(world, sent)
        wait_until(lambda: read_outcomes(world).accounted > 50, "the first events", zombie.log)
        zombie.signal(signal.SIGSTOP)  # in the middle of its backlog
        assert read_outcomes(world).accounted < len(sent) // 2
        with workers(world, tmp_path, "heir") as (heir,):
            heir.wait_for("serving 4 partitions")  # the zombie's session has timed out
            wait_for_outcomes(world, len(sent), heir.log)
            before = {user: record.header for user, record in states(world).items()}
            zombie.signal(signal.SIGCONT)
            # refused by the broker; a rebalance that comes first cuts off who would say so in words
            zombie.wait_for("another worker owns this partition now", "ProducerFenced")
            zombie.wait_for("serving 2 partitions")
            check(world, sent, heir.log)
            assert {user: record.header for user, record in states(world).items()} == before
            assert zombie.running


def test_partitions_move_when_workers_come_and_go(world: Settings, tmp_path: Path) -> None:
    publish_contents(world, unit_vectors(CONTENTS, 32))
    sent = history(8000, 300, CONTENTS, seed=3)
    quarter = len(sent) // 4
    with workers(world, tmp_path, "first") as (first,):
        first.wait_for("serving 4 partitions")
        produce(world, sent[:quarter])
        with workers(world, tmp_path, "second") as (second,):
            produce(world, sent[quarter : 2 * quarter])
            second.wait_for("serving 2 partitions")
            first.wait_for("serving 2 partitions")
            produce(world, sent[2 * quarter : 3 * quarter])
            assert first.stop() == 0
            wait_until(
                lambda: second.log.read_text().count("serving 4 partitions") > 0,
                "the second worker to take over",
                second.log,
            )
            produce(world, sent[3 * quarter :])
            check(world, sent, second.log)


def test_lost_local_state_and_a_larger_working_set_than_memory(world: Settings, tmp_path: Path) -> None:
    publish_contents(world, unit_vectors(CONTENTS, 32))
    sent = history(5000, 2000, CONTENTS, seed=4)  # 500 users a partition, 256 rows
    half = len(sent) // 2
    with workers(world, tmp_path, "w") as (worker,):
        produce(world, sent[:half])
        wait_for_outcomes(world, half, worker.log)
        worker.kill()
        for path in (tmp_path / "w").rglob("*"):
            if path.is_file():
                os.unlink(path)
        worker.start()
        produce(world, sent[half:])
        check(world, sent, worker.log)


def test_standbys_take_over_warm(world: Settings, tmp_path: Path) -> None:
    world = msgspec.structs.replace(
        world, interests=msgspec.structs.replace(world.interests, standby_replicas=1)
    )
    publish_contents(world, unit_vectors(CONTENTS, 32))
    sent = history(4000, 300, CONTENTS, seed=5)
    half = len(sent) // 2
    with workers(world, tmp_path, "first", "second") as (first, second):
        first.wait_for("serving 2 partitions, 2 standbys")
        second.wait_for("serving 2 partitions, 2 standbys")
        produce(world, sent[:half])
        wait_for_outcomes(world, half, second.log)
        first.kill()
        second.wait_for("serving 4 partitions")
        produce(world, sent[half:])
        check(world, sent, second.log)


def test_ten_thousand_malformed_records_cost_their_neighbours_nothing(
    world: Settings, tmp_path: Path
) -> None:
    publish_contents(world, unit_vectors(CONTENTS, 32))
    sent = history(2000, 300, CONTENTS, seed=6)
    bad = list(malformed(10_000, time.time_ns() // 1_000_000))
    with workers(world, tmp_path, "w") as (worker,):
        options = {"max_request_size": 32 << 20, "compression_type": "gzip"}  # 10 MB pass when compressed
        with clients.producer(world, **options) as producer:
            for number, (_reason, value) in enumerate(bad):  # all in one partition, among good ones
                producer.send(world.topic_name("likes"), key=USER.encode(), value=value)
                if number % 5 == 0:
                    produce_one(producer, world, sent[number // 5])
            for event in sent[(len(bad) + 4) // 5 :]:
                produce_one(producer, world, event)
        accounts = wait_for_outcomes(world, len(sent) + len(bad), worker.log)
        assert accounts.dead_lettered == len(bad)
        assert accounts.applied == distinct(sent)
        assert worst_error(world, sent, unit_vectors(CONTENTS, 32)) <= 1e-5
        found = collections.Counter(
            dict(letter.headers)["stream-app-reason"].decode()
            for letter in clients.read_topic(world, world.topic_name("events-dlq"))
        )
        assert found == collections.Counter(reason for reason, _ in bad)
