"""While a partition's files are rewritten, everything else goes on: it, other partitions, and its end."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import msgspec
import pytest

from stream_app.interests.app import purged
from stream_app.interests.store import PartitionStore
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.settings import Settings
from tests.interests.workers import (
    Worker,
    history,
    produce,
    publish_contents,
    unit_vectors,
    wait_for_outcomes,
    wait_until,
)

BYTES = 2_000
CONTENTS, D = 20, 16
STALL_S = 4.0


@pytest.fixture
def store(tmp_path: Path) -> PartitionStore:
    store = PartitionStore(tmp_path / "s")
    for position in range(1, 41):
        users = range(1_000 * position, 1_000 * (position + 1))
        store.write(
            [(b"user-%06d" % user, user.to_bytes(8, "big") * (BYTES // 8)) for user in users], position
        )
    return store


def begun(store: PartitionStore) -> threading.Thread:
    purge = threading.Thread(target=store.purge)
    purge.start()
    while purge.is_alive() and not store._purging:
        time.sleep(0.001)
    return purge


def test_reading_and_writing_go_on_and_last(store: PartitionStore, tmp_path: Path) -> None:
    store.write([(b"user-001000", None)], 41)
    purge = begun(store)
    written = 0
    while purge.is_alive():
        written += 1
        store.write([(b"new-%d" % written, b"value")], 41 + written)
        assert store.get([b"new-%d" % written, b"user-001001"])[0] == b"value"
    purge.join()
    assert store.get([b"user-001000", b"new-1"]) == [None, b"value"]
    store.close()
    assert not any(b"user-001000" in file.read_bytes() for file in (tmp_path / "s").iterdir())
    again = PartitionStore(tmp_path / "s")
    assert again.position == 41 + written
    assert again.get([b"new-%d" % written]) == [b"value"]
    again.close()


def test_closing_gives_a_purge_up_and_keeps_what_was_written(store: PartitionStore, tmp_path: Path) -> None:
    purge = begun(store)
    store.write([(b"last", b"value")], 99)
    store.close()
    purge.join(10)
    assert not purge.is_alive()
    store.purge()  # asked for too late: nothing to do
    again = PartitionStore(tmp_path / "s")
    assert again.position == 99
    assert again.get([b"last", b"user-001000"])[0] == b"value"
    again.close()


def test_whoever_scans_is_not_closed_under(store: PartitionStore) -> None:
    scan = store.scan(b"", 10_000)
    first = next(scan)
    purge = threading.Thread(target=store.purge)
    purge.start()
    rest = list(scan)
    purge.join()
    assert len([first, *rest]) == 10_000
    store.close()


@pytest.fixture
def world(settings: Settings) -> Settings:
    replace = msgspec.structs.replace
    settings = replace(
        settings,
        kafka=replace(settings.kafka, session_timeout_s=6.0),
        content=replace(settings.content, dimensions=D, capacity=100),
        interests=replace(settings.interests, sweep_interval_s=0.3, flush_interval_s=0.2, slab_rows=64),
        observability=replace(settings.observability, stall_timeout_s=STALL_S),
    )
    create_topics(settings)
    publish_contents(settings, unit_vectors(CONTENTS, D))
    return settings


def test_a_long_purge_holds_no_partition_up_and_is_no_stall(world: Settings, tmp_path: Path) -> None:
    before, after = history(200, 100, CONTENTS), history(300, 100, CONTENTS, seed=2)
    victim = before[0].user
    worker = Worker(
        world, "w", tmp_path, module="tests.interests.slow_purge", more={"SLOW_PURGE": str(tmp_path)}
    )
    worker.start()
    try:
        produce(world, before)
        wait_for_outcomes(world, len(before), worker.log)
        with clients.producer(world) as producer:
            value = json.dumps({"user_id": victim.decode()}).encode()
            producer.send(world.topic_name("erasures"), key=victim, value=value)
        wait_until((tmp_path / "begun").exists, "the purge to begin", worker.log)
        purging = time.monotonic()
        produce(world, [event for event in after if event.user != victim])  # of all partitions, its own too
        count = len(before) + sum(event.user != victim for event in after)
        wait_for_outcomes(world, count, worker.log)
        wait_until(
            lambda: not worker.running or time.monotonic() - purging > 3 * STALL_S,
            "longer than anything may stand still",
        )
        assert worker.running, worker.log.read_text()[-3000:]
        (tmp_path / "go-on").touch()
        wait_until(lambda: swept(world), "the receipt to say that all is gone", worker.log)
        assert worker.stop() == 0
    finally:
        worker.kill()


def swept(world: Settings) -> bool:
    receipts = clients.read_topic(world, world.topic_name("erasure-receipts"))
    return any(msgspec.json.decode(record.value)["swept_at"] is not None for record in receipts)


def test_what_was_routed_is_purged_again_once_the_offset_of_its_batch_is_committed() -> None:
    reached = {0: 7, 1: 5}
    done = purged(reached, {1: 5}, {0: 3})  # of partition 0 a batch is on its way: 7 is not committed yet
    assert done == {1: 5}
    assert purged(reached, done, {0: 7}) == reached
    assert purged({0: 9}, reached, {}) == {}  # 1 has moved away; nothing of 0 is committed
