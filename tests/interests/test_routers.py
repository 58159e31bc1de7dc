"""Who reads a partition of events: the table's partition or a router, never both, each on from the other."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import msgspec
from aiokafka import ConsumerRecord
from kafka.admin import NewPartitions

from stream_app.interests.owners import written_topics
from stream_app.interests.routers import RoutedInput, Router, Standings
from stream_app.interests.statistics_record import NOT_ROUTED, RouterStanding, router_key
from stream_app.kafka import clients
from stream_app.kafka.admin import admin_client
from stream_app.kafka.records import Partition, RecordBatch
from stream_app.replay.accounting import read_outcomes
from stream_app.settings import Settings
from tests.interests.test_partition import NOW_MS, Owner, small
from tests.interests.workers import states
from tests.kafka.offsets import KnownOffsets, share_of


async def opened(settings: Settings, offsets: KnownOffsets, number: int = 0) -> RoutedInput:
    source, writes = Partition(settings.topic_name("likes"), number), written_topics(settings)
    share = await share_of(settings, "interests", "interests", writes, [source], lambda: offsets)
    reader = RoutedInput(settings, source, Router(settings), Standings(settings, 0), share, lambda: None)
    await reader.open(offsets)
    return reader


async def close(reader: RoutedInput) -> None:
    await reader.close()
    await reader.share.transactions.close()


def copies(settings: Settings) -> list[ConsumerRecord]:
    return list(clients.read_topic(settings, settings.topic_name("events-routed")))


def standing(settings: Settings, number: int = 0) -> RouterStanding | None:
    key, newest = router_key(settings.topic_name("likes"), number), None
    for record in clients.read_topic(settings, settings.topic_name("content-stats")):
        if record.key == key:
            newest = record.value
    return None if newest is None else msgspec.json.decode(newest, type=RouterStanding)


def grow(settings: Settings, partitions: int) -> None:
    with contextlib.closing(admin_client(settings)) as admin:
        admin.create_partitions({settings.topic_name("likes"): NewPartitions(partitions)})


async def take(reader: RoutedInput, batch: RecordBatch) -> None:
    await reader.take(batch)
    await reader.settle()


def test_a_router_that_takes_over_fences_the_tables_partition(
    settings: Settings, topics: list[str], tmp_path: Path
) -> None:
    settings = small(settings)
    owner = Owner(settings, tmp_path / "a")

    async def life() -> None:
        await owner.open(committed=0)
        await owner.partition.handle(owner.batch(0, "ana"))
        await owner.partition.settle()
        reader = await opened(settings, KnownOffsets(1, claims=owner.claims))
        await owner.partition.handle(owner.batch(1, "ben"))  # a zombie: its topic has grown
        await owner.partition.settle()
        assert owner.partition.lost
        await take(reader, owner.batch(1, "ben"))
        await owner.close()
        await close(reader)

    asyncio.run(life())
    assert states(settings).keys() == {b"ana"}
    (copy,) = copies(settings)
    headers = dict(copy.headers)
    assert (copy.partition, copy.key) == (0, b"ben")
    assert (headers["stream-app-offset"], headers["stream-app-partition"]) == (b"1", b"0")
    assert standing(settings) == RouterStanding(2, "first", routed=1)
    assert read_outcomes(settings).routed == 1


def test_the_tables_partition_that_takes_over_fences_the_router_and_goes_on_where_it_was(
    settings: Settings, topics: list[str], tmp_path: Path
) -> None:
    settings = small(settings)
    owner = Owner(settings, tmp_path / "a")

    async def life() -> None:
        reader = await opened(settings, KnownOffsets(0, claims=owner.claims))
        await take(reader, owner.batch(0, "ana"))
        await owner.open(committed=0)  # the group's offset is of before
        assert owner.partition.positions[reader_place(settings)] == 1
        await take(reader, owner.batch(1, "ben"))
        assert reader.lost
        await owner.partition.handle(owner.batch(1, "ben"))
        await owner.close()
        await close(reader)

    asyncio.run(life())
    assert states(settings).keys() == {b"ben"}
    assert len(copies(settings)) == 1
    assert standing(settings) == RouterStanding(NOT_ROUTED, "first", routed=1)


def reader_place(settings: Settings) -> tuple[str, int]:
    return settings.topic_name("likes"), 0


def test_a_routers_own_position_counts_before_the_groups_unless_the_topic_is_another(
    settings: Settings, topics: list[str]
) -> None:
    """Group offsets expire; and offsets of a topic that was deleted say nothing of the next of its name."""
    settings = small(settings)
    grow(settings, 8)

    async def position(offsets: KnownOffsets) -> int | None:
        reader = await opened(settings, offsets, 7)
        at = reader.position
        await take(reader, batch(settings, at or 0, 3))
        await close(reader)
        return at

    async def life() -> None:
        assert await position(KnownOffsets(0)) == 0
        assert await position(KnownOffsets(0)) == 3
        assert await position(KnownOffsets(99)) == 6
        again = KnownOffsets(0)
        again.topic = "second"
        assert await position(again) == 0

    asyncio.run(life())
    assert standing(settings, 7) == RouterStanding(3, "second", routed=12)


def test_what_names_nobody_is_a_dead_letter_where_it_stands(settings: Settings, topics: list[str]) -> None:
    settings = small(settings)
    grow(settings, 8)
    records = [b"", b"{", b'{"user_id": 5}', b'{"user_id": "\xff"}', b'{"user_id": "ana"}']

    async def life() -> None:
        reader = await opened(settings, KnownOffsets(0), 7)
        topic = settings.topic_name("likes")
        made = [
            ConsumerRecord(topic, 7, n, NOW_MS, 1, None, v, None, 0, 0, ()) for n, v in enumerate(records)
        ]
        await take(reader, RecordBatch(topic, 7, 0, made))
        await close(reader)

    asyncio.run(life())
    letters = list(clients.read_topic(settings, settings.topic_name("events-dlq")))
    found = {dict(r.headers)["stream-app-offset"]: dict(r.headers)["stream-app-reason"] for r in letters}
    assert found == {b"0": b"empty", b"1": b"malformed_json", b"2": b"bad_type", b"3": b"invalid_utf8"}
    (copy,) = copies(settings)  # it is no event either, and Ana's partition will say so
    assert copy.key == b"ana"
    outcomes = read_outcomes(settings)
    assert (outcomes.routed, outcomes.dead_lettered, outcomes.accounted) == (1, 4, 4)


def batch(settings: Settings, start: int, count: int) -> RecordBatch:
    topic = settings.topic_name("likes")
    value = json.dumps({"user_id": "ana", "content_id": "c0"}).encode()
    records = [
        ConsumerRecord(topic, 7, start + n, NOW_MS, 1, None, value, None, 0, 0, ()) for n in range(count)
    ]
    return RecordBatch(topic, 7, start, records)
