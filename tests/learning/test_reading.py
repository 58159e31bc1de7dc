"""Reading interests for learning: from where it was left, and never far behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest
from aiokafka import ConsumerRecord
from prometheus_client import REGISTRY

from stream_app.kafka import clients
from stream_app.kafka.written import extents
from stream_app.learning.reading import InterestsReader
from stream_app.settings import Learning, Settings

MOST = 100


def produce(settings: Settings, numbers: range) -> None:
    with clients.producer(settings) as producer:
        for n in numbers:
            producer.send(settings.topic_name("interests"), key=b"u", value=b"%d" % n, partition=n % 2)


def skipped() -> float:
    return REGISTRY.get_sample_value("stream_app_trainer_skipped_total") or 0.0


async def read(
    settings: Settings, positions: dict[int, int], enough: Callable[[list[int]], bool], more: range = range(0)
) -> list[int]:
    """What a reader that begins there hands on, until it is enough; ``more`` is sent once it has begun."""
    found: list[int] = []
    done = asyncio.Event()

    async def take(records: list[ConsumerRecord]) -> None:
        found.extend(int(record.value) for record in records)
        if enough(found):
            done.set()

    reader = InterestsReader(settings, take, positions)
    await reader.start()
    try:
        await asyncio.to_thread(produce, settings, more)
        async with asyncio.timeout(60):
            await done.wait()
    finally:
        await reader.stop()
    return found


@pytest.fixture
def few(settings: Settings, topics: list[str]) -> Settings:
    return msgspec.structs.replace(settings, learning=Learning(max_backlog=MOST))


def test_reading_goes_on_at_the_positions_and_at_the_end_of_the_others(few: Settings) -> None:
    produce(few, range(60))
    written = asyncio.run(extents(few, few.topic_name("interests")))
    assert {tp.partition: extent for tp, extent in written.items()} == {0: (0, 30), 1: (0, 30)}
    found = asyncio.run(read(few, {0: 20}, lambda found: 61 in found and 60 in found, range(60, 62)))
    assert sorted(found) == [*range(40, 60, 2), 60, 61]


def test_what_is_too_far_behind_is_skipped_and_counted(few: Settings) -> None:
    produce(few, range(3 * MOST))
    before = skipped()
    more = range(1000, 1002)
    found = asyncio.run(read(few, {0: 0, 1: 0}, lambda found: {*more} <= {*found}, more))
    assert sorted(found) == list(more)
    assert skipped() - before == 3 * MOST


def test_partitions_are_learned_from_in_turn(settings: Settings, topics: list[str]) -> None:
    produce(settings, range(2000))
    found = asyncio.run(read(settings, {0: 0, 1: 0}, lambda found: len(found) == 2000))
    assert sorted(found) == list(range(2000))
    for start in range(0, 2000, 500):
        assert {n % 2 for n in found[start : start + 500]} == {0, 1}


def test_positions_that_the_topic_does_not_have_are_no_trouble(few: Settings) -> None:
    produce(few, range(10))
    more = range(1000, 1002)
    found = asyncio.run(read(few, {7: 3}, lambda found: {*more} <= {*found}, more))
    assert sorted(found) == list(more)
