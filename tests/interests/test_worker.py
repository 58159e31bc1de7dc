"""A worker process meeting what operators meet: faded users, late content, wrong topics, brokers that go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka.admin import NewTopic

from stream_app.interests.statistics_record import Outcomes
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.kafka.broker import LocalBroker
from stream_app.replay.accounting import read_outcomes
from stream_app.settings import Settings
from tests.interests.closed_form import Sent
from tests.interests.workers import (
    DAY_MS,
    NOW_MS,
    history,
    produce,
    publish_contents,
    states,
    unit_vectors,
    wait_for_outcomes,
    wait_until,
    workers,
    worst_error,
)

CONTENTS = 20
D = 16
VECTORS = unit_vectors(CONTENTS, D)


def adapted(settings: Settings, section: str, **fields: Any) -> Settings:
    return msgspec.structs.replace(
        settings, **{section: msgspec.structs.replace(getattr(settings, section), **fields)}
    )


@pytest.fixture
def world(settings: Settings) -> Settings:
    settings = adapted(settings, "content", dimensions=D, capacity=1000)
    settings = adapted(settings, "kafka", session_timeout_s=3.0)
    return adapted(settings, "interests", recent=512, seen=512, slab_rows=256)


def distinct(sent: list[Sent]) -> int:
    return len({(e.event, e.undo) for e in sent})


def check(world: Settings, sent: list[Sent], log: Path) -> None:
    accounts = wait_for_outcomes(world, len(sent), log)
    assert accounts == Outcomes(applied=distinct(sent), duplicates=len(sent) - distinct(sent))
    assert worst_error(world, sent, VECTORS) <= 1e-5


def test_faded_users_are_tombstoned_and_gone(world: Settings, tmp_path: Path) -> None:
    world = adapted(world, "interests", expiry_interval_s=0.3, half_life_days=1.0, min_mass=0.001)
    world = adapted(world, "kafka", partitions=1)
    create_topics(world)
    publish_contents(world, VECTORS)
    early = NOW_MS - 20 * DAY_MS
    faded = [Sent(b"faded-%d" % n, n % CONTENTS, n, early, 1.0) for n in range(5)]
    kept = Sent(b"kept", 1, 100, NOW_MS - 2 * DAY_MS, 1.0)
    with workers(world, tmp_path, "w") as (worker,):
        produce(world, [*faded, kept])
        wait_until(lambda: states(world).keys() == {b"kept"}, "faded users to be dropped", worker.log)
        produce(world, [faded[0]])  # no longer known: a repeat of what faded counts once more
        accounts = wait_for_outcomes(world, 7, worker.log)
        assert accounts.accounted == 7
        assert worker.stop() == 0
        newest = {}
        for record in clients.read_topic(world, world.topic_name("interests")):
            newest[record.key] = record.value
        assert {key for key, value in newest.items() if value is None} >= {
            b"faded-%d" % n for n in range(1, 5)
        }
        worker.start()  # RocksDB does not bring them back either
        again = Sent(b"faded-1", 3, 200, NOW_MS, 1.0)
        produce(world, [again])
        wait_for_outcomes(world, 8, worker.log)
        assert states(world)[b"faded-1"].header["total"] == 1


def test_events_of_late_content_are_retried_and_applied(world: Settings, tmp_path: Path) -> None:
    world = adapted(world, "events", retry_delays_s=(0.2, 0.4, 0.8, 60.0))
    create_topics(world)
    publish_contents(world, VECTORS[:10])
    sent = history(400, 40, CONTENTS, seed=11)
    with workers(world, tmp_path, "w") as (worker,):
        worker.wait_for("serving 2 partitions")
        produce(world, sent)
        wait_until(lambda: read_outcomes(world).accounted >= len(sent), "all events", worker.log)
        assert read_outcomes(world).retrying > 50
        publish_contents(world, VECTORS)
        check(world, sent, worker.log)


def test_a_waiting_retry_delays_neither_the_end_nor_a_rebalance(world: Settings, tmp_path: Path) -> None:
    world = adapted(world, "events", retry_delays_s=(300.0,))
    create_topics(world)
    publish_contents(world, VECTORS[:10])
    sent = [Sent(b"user-%d" % n, 15, n, NOW_MS, 1.0) for n in range(20)]
    with workers(world, tmp_path, "first") as (first,):
        first.wait_for("serving 2 partitions")
        produce(world, sent)
        wait_until(lambda: read_outcomes(world).retrying == 20, "the retries", first.log)
        with workers(world, tmp_path, "second") as (second,):
            begun = time.monotonic()
            second.wait_for("serving 1 partitions")
            assert time.monotonic() - begun < 20
            for worker in (second, first):
                begun = time.monotonic()
                assert worker.stop() == 0
                assert time.monotonic() - begun < 10
    assert read_outcomes(world) == Outcomes(retrying=20)


def test_topics_of_ours_of_different_partition_counts_end_the_worker_by_name(
    world: Settings, tmp_path: Path
) -> None:
    admin = clients.admin_client(world)
    admin.create_topics([NewTopic(world.topic_name("events-retry"), 3, 1)])
    admin.close()
    with workers(world, tmp_path, "w") as (worker,):
        assert worker._process.wait(30) == 2
    text = worker.log.read_text()
    assert world.topic_name("events-retry") in text
    assert world.topic_name("interests") in text
    assert "Traceback" not in text


def test_without_a_broker_the_worker_says_so_keeps_trying_and_ends_at_once(
    world: Settings, tmp_path: Path
) -> None:
    away = adapted(world, "kafka", broker="127.0.0.1:9")
    with workers(away, tmp_path, "w") as (worker,):
        worker.wait_for("127.0.0.1:9")
        worker.wait_for("trying again")
        assert worker.running
        begun = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - begun < 2
    text = worker.log.read_text()
    assert "WARNING" in text.upper()
    assert "Traceback" not in text


def test_sigterm_under_load_ends_soon_and_loses_nothing(world: Settings, tmp_path: Path) -> None:
    world = adapted(world, "kafka", batch_records=32)
    create_topics(world)
    publish_contents(world, VECTORS)
    sent = history(2500, 100, CONTENTS, seed=12)
    with workers(world, tmp_path, "w") as (worker,):
        worker.wait_for("serving 2 partitions")
        produce(world, sent)
        wait_until(lambda: read_outcomes(world).accounted > 0, "the first events", worker.log)
        begun = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - begun < 15
        worker.start()
        wait_until(
            lambda: worker.log.read_text().count("serving 2 partitions") == 2, "the second start", worker.log
        )
        check(world, sent, worker.log)
        assert worker.stop() == 0
    assert "Traceback" not in worker.log.read_text()


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[LocalBroker]:
    with LocalBroker(tmp_path / "broker") as broker:
        yield broker


def test_a_killed_broker_that_comes_back_costs_nothing(
    world: Settings, mortal: LocalBroker, tmp_path: Path
) -> None:
    world = adapted(
        world,
        "kafka",
        broker=mortal.address,
        session_timeout_s=6.0,
        transaction_timeout_s=5.0,
        batch_records=64,
    )
    create_topics(world)
    publish_contents(world, VECTORS)
    sent = history(1500, 100, CONTENTS, seed=13)
    half = len(sent) // 2
    with workers(world, tmp_path, "w") as (worker,):
        worker.wait_for("serving 2 partitions")
        produce(world, sent[:half])
        wait_until(lambda: read_outcomes(world).accounted > 0, "the first events", worker.log)
        mortal.kill()
        time.sleep(1)  # the worker meets a broker that is not there
        mortal.start()
        produce(world, sent[half:])
        check(world, sent, worker.log)
        assert worker.running
        assert worker.stop() == 0
