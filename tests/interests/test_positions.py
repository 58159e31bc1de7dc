"""Where inputs are read on is part of the state: whatever becomes of the group's offsets, nothing is taken
twice. Records remember four interactions here, so that nothing that comes again would be recognised."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from faust.types import TP
from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

from stream_app.interests.positions import goes_on
from stream_app.interests.statistics_record import OUTCOMES_KEY, Outcomes
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics, delete_records, topic_id
from stream_app.kafka.topic_ids import Bounds, CommittedOffset
from stream_app.replay.accounting import COUNTS
from stream_app.settings import Settings
from tests.interests.closed_form import Sent
from tests.interests.workers import (
    Worker,
    history,
    produce,
    publish_contents,
    unit_vectors,
    wait_for_outcomes,
    workers,
    worst_error,
)

CONTENTS = 20
LIKE = 1.0


@pytest.fixture
def world(settings: Settings) -> Settings:
    settings = msgspec.structs.replace(
        settings,
        kafka=msgspec.structs.replace(settings.kafka, session_timeout_s=6.0, batch_records=64),
        content=msgspec.structs.replace(settings.content, dimensions=32, capacity=1000),
        interests=msgspec.structs.replace(settings.interests, recent=4, seen=4, slab_rows=64),
    )
    create_topics(settings)
    publish_contents(settings, unit_vectors(CONTENTS, 32))
    return settings


def likes(first: int, count: int) -> list[Sent]:
    """Distinct likes of twenty users, numbered from ``first``."""
    sent = history(2 * count, 20, CONTENTS, seed=first)
    return [replace(e, event=first + n, weight=LIKE, undo=False) for n, e in enumerate(sent[:count])]


def check(world: Settings, sent: list[Sent], worker: Worker) -> None:
    assert wait_for_outcomes(world, len(sent), worker.log) == Outcomes(applied=len(sent))
    assert worst_error(world, sent, unit_vectors(CONTENTS, 32)) <= 1e-5


def delete_group(world: Settings) -> None:
    """As the broker does when its offsets expire."""
    with clients.admin_client(world) as admin:
        admin.delete_groups([world.group("interests")])


def set_group(world: Settings, offset: int) -> None:
    """As ``kafka-consumer-groups --reset-offsets`` does."""
    marks = {TopicPartition(world.topic_name("likes"), p): OffsetAndMetadata(offset, "", -1) for p in (0, 1)}
    with clients.admin_client(world) as admin:
        admin.alter_group_offsets(world.group("interests"), marks)


def group_offsets(world: Settings) -> dict[int, int]:
    """Of ``likes``, by partition."""
    group, topic = world.group("interests"), world.topic_name("likes")
    with clients.admin_client(world) as admin:
        found = admin.list_group_offsets({group: [TopicPartition(topic, p) for p in (0, 1)]})[group]
    return {tp.partition: mark.offset for tp, mark in found.items()}


def accounts(world: Settings) -> dict[int, Outcomes]:
    """The newest account of each partition."""
    return {
        record.partition: msgspec.json.decode(record.value, type=Outcomes)
        for record in clients.read_topic(world, world.topic_name("content-stats"))
        if record.key == OUTCOMES_KEY
    }


@pytest.mark.parametrize("how", ["expired", "back", "ahead"])
@pytest.mark.parametrize("disk", ["kept", "lost"])
def test_whatever_the_group_says_each_event_counts_once(
    world: Settings, tmp_path: Path, how: str, disk: str
) -> None:
    before, after = likes(0, 600), likes(10_000, 100)
    with workers(world, tmp_path, "w") as (worker,):
        produce(world, before)
        wait_for_outcomes(world, len(before), worker.log)
        reached = group_offsets(world)
        assert worker.stop() == 0
        produce(world, after)
        if how == "expired":
            delete_group(world)
        else:  # ahead: somebody skipped what comes next, and the state has not taken it
            set_group(world, 0 if how == "back" else max(reached.values()) + 10)
        other = worker if disk == "kept" else Worker(world, "other", tmp_path)
        try:
            other.start()
            check(world, before + after, other)
            assert sum(group_offsets(world).values()) == len(before + after)  # others see it again, too
        finally:
            other.kill()
    if how != "expired":
        assert "the state has taken all before" in other.log.read_text()


def test_what_retention_took_unread_is_said_and_counted(world: Settings, tmp_path: Path) -> None:
    before, gone, after = likes(0, 200), likes(5_000, 50), likes(10_000, 100)
    with workers(world, tmp_path, "w") as (worker,):
        produce(world, before)
        wait_for_outcomes(world, len(before), worker.log)
        assert worker.stop() == 0
        delete_group(world)
        reached = ends(world)
        produce(world, gone)
        topic = world.topic_name("likes")
        lost = {p: end for p, end in ends(world).items() if end > reached[p]}
        delete_records(world, {(topic, p): end for p, end in lost.items()})
        produce(world, after)
        worker.start()
        check(world, before + after, worker)
        text = worker.log.read_text()
        for p, end in lost.items():
            assert f"{topic}[{p}]: {end - reached[p]} offsets have left the topic unread" in text


def test_a_state_without_positions_goes_by_the_group(world: Settings, tmp_path: Path) -> None:
    """As versions wrote it that kept none."""
    before, after = likes(0, 600), likes(10_000, 100)
    with workers(world, tmp_path, "w") as (worker,):
        produce(world, before)
        wait_for_outcomes(world, len(before), worker.log)
        assert worker.stop() == 0
        with clients.producer(world) as producer:
            for p, account in accounts(world).items():
                value = msgspec.json.encode({count: getattr(account, count) for count in COUNTS})
                producer.send(world.topic_name("content-stats"), key=OUTCOMES_KEY, value=value, partition=p)
        produce(world, after)
        worker.start()
        check(world, before + after, worker)


@pytest.mark.parametrize(
    ("state", "first", "said"),
    [
        (Outcomes(), 0, True),
        (Outcomes(), 200, False),  # retention took everything, and nothing of it was ever read
        (Outcomes(applied=200), 0, False),  # of before positions were kept
    ],
)
def test_a_state_that_was_emptied_is_not_taken_for_a_new_one(
    state: Outcomes, first: int, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert goes_on(state, TP("likes", 0), CommittedOffset(200, "id"), Bounds(first, 300)) == 200
    assert ("there is no account of what was taken before" in caplog.text) == said


def test_every_committed_offset_has_its_position_in_the_state(world: Settings, tmp_path: Path) -> None:
    """Erasures and repeats change no count of what was taken, and are inputs all the same."""
    sent = likes(0, 100)
    with workers(world, tmp_path, "w") as (worker,):
        produce(world, sent)
        wait_for_outcomes(world, len(sent), worker.log)
        erasures = world.topic_name("erasures")
        with clients.producer(world) as producer:
            user = sent[0].user
            at = producer.send(erasures, key=user, value=msgspec.json.encode({"user_id": user.decode()}))
            place = at.get(10)
        deadline = time.monotonic() + 60
        while erasures not in accounts(world)[place.partition].positions and time.monotonic() < deadline:
            time.sleep(0.1)  # the account is read anew each time
        assert worker.stop() == 0
    account = accounts(world)[place.partition]
    likes_topic = world.topic_name("likes")
    assert account.positions[erasures] == (place.offset + 1, hexadecimal(world, erasures))
    assert account.positions[likes_topic] == (ends(world)[place.partition], hexadecimal(world, likes_topic))


def hexadecimal(world: Settings, topic: str) -> str:
    return topic_id(world, topic).replace("-", "")


def ends(world: Settings) -> dict[int, int]:
    """Where the partitions of ``likes`` end."""
    topic = world.topic_name("likes")
    with clients.consumer(world) as consumer:
        found = consumer.end_offsets([TopicPartition(topic, p) for p in (0, 1)])
    return {tp.partition: end for tp, end in found.items()}
