"""A source topic is deleted and created again: its offsets start at 0 once more, its events count as any."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from stream_app.interests.statistics_record import Outcomes
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.settings import Settings
from tests.interests.closed_form import Sent
from tests.interests.workers import (
    Worker,
    history,
    produce,
    publish_contents,
    unit_vectors,
    wait_for_outcomes,
    wait_until,
    workers,
    worst_error,
)

CONTENTS = 20
OLD = 1.0  # the weight of likes: all events go there


@pytest.fixture
def world(settings: Settings) -> Settings:
    settings = msgspec.structs.replace(
        settings,
        kafka=msgspec.structs.replace(settings.kafka, session_timeout_s=6.0, batch_records=64),
        content=msgspec.structs.replace(settings.content, dimensions=32, capacity=1000),
        interests=msgspec.structs.replace(settings.interests, recent=512, seen=512, slab_rows=256),
    )
    create_topics(settings)
    publish_contents(settings, unit_vectors(CONTENTS, 32))
    return settings


def likes(first: int, count: int) -> list[Sent]:
    """Distinct likes, numbered from ``first``."""
    sent = history(2 * count, 60, CONTENTS, seed=first)
    return [replace(e, event=first + n, weight=OLD, undo=False) for n, e in enumerate(sent[:count])]


def recreate(world: Settings) -> None:
    with clients.admin_client(world) as admin:
        admin.delete_topics([world.topic_name("likes")])
    wait_until(lambda: world.topic_name("likes") in create_topics(world), "the topic to be created again")


def check(world: Settings, sent: list[Sent], worker: Worker) -> None:
    assert wait_for_outcomes(world, len(sent), worker.log) == Outcomes(applied=len(sent))
    assert worst_error(world, sent, unit_vectors(CONTENTS, 32)) <= 1e-5


@pytest.mark.parametrize("later", [100, 2_000], ids=["shorter", "longer"])
@pytest.mark.parametrize("how", ["running", "stopped", "killed"])
def test_nothing_is_skipped_or_doubled(world: Settings, tmp_path: Path, how: str, later: int) -> None:
    before, after = likes(0, 600), likes(10_000, later)
    with workers(world, tmp_path, "w") as (worker,):
        produce(world, before)
        wait_for_outcomes(world, len(before), worker.log)
        if how == "stopped":  # it sees nothing of it, but comes back before its session ends
            worker.signal(signal.SIGSTOP)
        if how == "killed":
            worker.kill()
        recreate(world)
        produce(world, after)
        if how == "stopped":
            worker.signal(signal.SIGCONT)
        if how == "killed":
            worker.start()
        check(world, before + after, worker)


def test_an_offset_of_another_topic_of_that_name_is_nothing(world: Settings, tmp_path: Path) -> None:
    """A coordinator may tell it for a moment after the topic was deleted."""
    sent = likes(0, 600)
    produce(world, sent)
    commit(world, {p: OffsetAndMetadata(200, "0" * 32) for p in range(2)})
    with workers(world, tmp_path, "w") as (worker,):
        check(world, sent, worker)


def test_an_offset_that_somebody_set_by_hand_is_kept(world: Settings, tmp_path: Path) -> None:
    """Kafka's tools commit without a word about the topic."""
    produce(world, likes(0, 600))
    ends = counts(world)
    assert sum(ends.values()) == 600
    commit(world, {p: OffsetAndMetadata(end - 10, "") for p, end in ends.items()})
    with workers(world, tmp_path, "w") as (worker,):
        assert wait_for_outcomes(world, 20, worker.log) == Outcomes(applied=20)


def commit(world: Settings, marks: dict[int, OffsetAndMetadata]) -> None:
    """Offsets of the interests group in ``likes``."""

    async def life() -> None:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=world.kafka.broker,
            group_id=world.group("interests"),
            enable_auto_commit=False,
        )
        await consumer.start()
        try:
            consumer.assign([TopicPartition(world.topic_name("likes"), p) for p in marks])
            await consumer.commit({TopicPartition(world.topic_name("likes"), p): m for p, m in marks.items()})
        finally:
            await consumer.stop()

    asyncio.run(life())


def counts(world: Settings) -> dict[int, int]:
    """Records of ``likes`` by partition."""
    return Counter(record.partition for record in clients.read_topic(world, world.topic_name("likes")))
