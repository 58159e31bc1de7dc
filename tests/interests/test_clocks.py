"""No record moves a shared clock: what is stamped in 2191 costs nobody else anything, on real Kafka."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import pytest

from stream_app.content.model import model_id
from stream_app.content.vectors import ContentVector, encode
from stream_app.events.dead_letters import our_headers
from stream_app.hashing import action_code
from stream_app.interests.statistics_record import decode as decode_statistics
from stream_app.interests.statistics_record import like, prefix
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.replay.accounting import Outcomes, read_outcomes
from stream_app.settings import Settings
from tests.interests.workers import DAY_MS, unit_vectors, wait_for_outcomes, wait_until, workers

FAR_MS = 7_000_000_000_000  # 2191
CONTENTS = 5
D = 8


@pytest.fixture
def world(settings: Settings) -> Settings:
    """Event topics as an administrator makes them: their timestamps are the producers', and unbounded."""
    replace = msgspec.structs.replace
    settings = replace(
        settings,
        kafka=replace(settings.kafka, partitions=1),
        content=replace(settings.content, dimensions=D, capacity=100),
        interests=replace(settings.interests, expiry_interval_s=0.3),
    )
    theirs = {"num_partitions": 1, "replication_factor": 1}
    theirs["configs"] = {
        "message.timestamp.type": "CreateTime",
        "message.timestamp.after.max.ms": str(2**63 - 1),
    }  # type: ignore[assignment]
    admin = clients.admin_client(settings)
    admin.create_topics(
        {settings.topic_name(t): theirs for t in ("likes", "impressions", "erasures")}, wait_for_metadata=True
    )
    admin.close()
    create_topics(settings)
    now = time.time_ns() // 1_000_000
    with clients.producer(settings) as producer:
        for number, vector in enumerate(unit_vectors(CONTENTS, D)):
            record = ContentVector(model_id(settings), "", now - DAY_MS, now, vector)
            producer.send(settings.topic_name("content-vectors"), key=b"c%d" % number, value=encode(record))
    return settings


def like_of(settings: Settings, users: str, count: int, stamped: int | None = None, **fields: object) -> None:
    with clients.producer(settings) as producer:
        for number in range(count):
            user = f"{users}{number}"
            value = {"user_id": user, "content_id": f"c{number % CONTENTS}", **fields}
            producer.send(
                settings.topic_name("likes"),
                key=user.encode(),
                value=json.dumps(value).encode(),
                timestamp_ms=stamped,
            )


def test_one_wrong_clock_costs_nobody_else_anything(world: Settings, tmp_path: Path) -> None:
    now = time.time_ns() // 1_000_000
    with workers(world, tmp_path, "w") as (worker,):
        like_of(world, "before-", 20)
        wait_for_outcomes(world, 20, worker.log)
        like_of(world, "bare-", 1, FAR_MS)  # no time but the Kafka timestamp
        like_of(world, "stated-", 1, FAR_MS, occurred_at=FAR_MS)
        like_of(world, "only-stated-", 1, occurred_at=FAR_MS)
        like_of(world, "only-stamped-", 1, FAR_MS, occurred_at=now)  # its own time is sound
        wait_for_outcomes(world, 24, worker.log)
        time.sleep(1)  # a few rounds of expiry: nothing is evicted
        like_of(world, "after-", 20)
        assert wait_for_outcomes(world, 44, worker.log) == Outcomes(applied=41, dead_lettered=3)
        letters = clients.read_topic(world, world.topic_name("events-dlq"))
        assert [our_headers(letter)["reason"] for letter in letters] == [b"timestamp_in_future"] * 3
        assert worker.stop() == 0
        worker.start()
        like_of(world, "later-", 20)
        assert wait_for_outcomes(world, 64, worker.log).applied == 61


def test_counts_that_an_earlier_version_left_in_the_future_count_as_of_now(
    world: Settings, tmp_path: Path
) -> None:
    with workers(world, tmp_path, "w") as (worker,):
        like_of(world, "a-", CONTENTS)
        wait_for_outcomes(world, CONTENTS, worker.log)
        worker.stop()
        topic = world.topic_name("content-stats")
        written = {r.key: r.value for r in clients.read_topic(world, topic) if r.key == b"c1"}
        value = written[b"c1"]
        codes = [action_code(action.name) for action in world.events.actions]
        record = decode_statistics(value)
        head, middle = prefix(0, record.actions, record.half_lives_h)
        assert list(record.actions) == codes
        assert like(head, middle, value) is not None
        poisoned = head + FAR_MS.to_bytes(8, "little", signed=True) + value[len(head) + 8 :]
        with clients.producer(world) as producer:
            producer.send(topic, key=b"c1", value=poisoned, partition=0)
        worker.start()
        like_of(world, "b-", 20)
        assert wait_for_outcomes(world, CONTENTS + 20, worker.log).applied == CONTENTS + 20

        def healed() -> bool:
            newest = {r.key: r.value for r in clients.read_topic(world, topic)}[b"c1"]
            return decode_statistics(newest).t_ref < time.time_ns() // 1_000_000 + DAY_MS

        wait_until(healed, "the record to be written as of now", worker.log)
        assert read_outcomes(world).dead_lettered == 0
