"""Deleted contents on a real broker: every slate that names one is made anew, and no other is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np
import pytest
from aiokafka import AIOKafkaProducer
from prometheus_client import REGISTRY

from stream_app.content import vectors
from stream_app.content.index import ContentIndex
from stream_app.content.model import model_id
from stream_app.content.vectors import ContentVector
from stream_app.interests.record import HEADER
from stream_app.kafka.clients import read_topic
from stream_app.kafka.partitions import partition_of
from stream_app.observability.health import Health
from stream_app.ranking.ranked import Item, Parts
from stream_app.recommendations.app import create_app
from stream_app.recommendations.slate import COLD_START_USER, Slate, decode, encode, rfc3339
from stream_app.settings import Settings, build
from tests.ranking import ranking_world as world
from tests.ranking.ranking_world import Engagement

USERS = [b"user-%d" % n for n in range(30)]

# a client that is told to end while it connects leaves the connection to the collector
pytestmark = [
    pytest.mark.usefixtures("left_over"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
CONTENTS = 60


@pytest.fixture
def small(settings: Settings, topics: list[str]) -> Settings:
    """Topics that exist, short vectors, the CPU; the cold-start slate is not renewed by the clock."""
    names = ("broker", "app_id", "topic_prefix", "partitions", "shared_partitions")
    return build(
        {
            "kafka": {name: getattr(settings.kafka, name) for name in names},
            "content": {"dimensions": world.D, "capacity": 500},
            "ranking": {"device": "cpu", "batch_users": 4},
            "recommendations": {"cold_start_interval_s": 3600},
        }
    )


def remembering(settings: Settings, users: int) -> Settings:
    recommendations = msgspec.structs.replace(settings.recommendations, remembered_users=users)
    return msgspec.structs.replace(settings, recommendations=recommendations)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 120))


@asynccontextmanager
async def ranker(settings: Settings) -> AsyncIterator[None]:
    app = create_app(settings, Health(settings))
    await app.start()
    try:
        yield
        assert app.crash_reason is None
    finally:
        await app.stop()


async def send(settings: Settings, topic: str, records: list[tuple[bytes, bytes | None]]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=settings.kafka.broker, linger_ms=5) as producer:
        name = settings.topic_name(topic)
        await asyncio.gather(*[await producer.send(name, value, key=key) for key, value in records])


async def until(true: Callable[[], bool], what: str) -> None:
    """Bounded; looks ten times a second."""
    for _ in range(600):
        if await asyncio.to_thread(true):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"waited 60 s for: {what}")


def metric(name: str) -> float:
    return REGISTRY.get_sample_value(f"stream_app_{name}") or 0.0


def on_topic(settings: Settings) -> dict[bytes, list[list[bytes] | None]]:
    """What each user was shown, one slate after the other; None where it was withdrawn."""
    found: dict[bytes, list[list[bytes] | None]] = {}
    for record in read_topic(settings, settings.topic_name("recommendations")):
        contents = None
        if record.value is not None:
            contents = [item.content_id.encode() for item in decode(record.value).items]
        found.setdefault(record.key, []).append(contents)
    return found


def newest(settings: Settings) -> dict[bytes, list[bytes]]:
    return {user: last for user, shown in on_topic(settings).items() if (last := shown[-1]) is not None}


def naming(slates: dict[bytes, list[bytes]], *contents: bytes) -> set[bytes]:
    return {user for user, shown in slates.items() if set(contents) & set(shown)}


def vector_record(index: ContentIndex, row: int, created_at: int) -> bytes:
    vector = index.vectors[row].astype("float16")
    return vectors.encode(ContentVector(index.model, "", created_at, 0, vector))


def catalogue(settings: Settings) -> tuple[ContentIndex, list[tuple[bytes, bytes | None]]]:
    index = world.filled_index(settings, CONTENTS, model=model_id(settings))
    records: list[tuple[bytes, bytes | None]] = [
        (id_, vector_record(index, row, int(index.created_at[row]))) for id_, row in index.rows.items()
    ]
    return index, records


def liked(settings: Settings, index: ContentIndex, user: bytes, number: int) -> bytes:
    """The record of one like, whose event was in the user's partition."""
    id_ = world.content_id(number)
    value = bytearray(
        world.interest_record(settings, index, [Engagement(id_, world.NOW)], model=index.model, seen=[id_])
    )
    np.frombuffer(value, HEADER, count=1)["partition"] = partition_of(user, settings.kafka.partitions)
    return bytes(value)


async def fed(settings: Settings) -> ContentIndex:
    """Contents, and a record of every user."""
    index, records = catalogue(settings)
    await send(settings, "content-vectors", records)
    await send(settings, "interests", [(u, liked(settings, index, u, n)) for n, u in enumerate(USERS)])
    return index


async def all_ranked(settings: Settings) -> dict[bytes, list[bytes]]:
    """What everybody is shown, as soon as they are."""
    everybody = {*USERS, COLD_START_USER}
    await until(lambda: newest(settings).keys() >= everybody, "a slate of every user")
    return newest(settings)


def some_deleted(slates: dict[bytes, list[bytes]]) -> set[bytes]:
    """Two contents that some users are shown, one of them to whom nobody knows, and others are not."""
    often = sorted({c for shown in slates.values() for c in shown}, key=lambda c: len(naming(slates, c)))
    deleted = {often[len(often) // 3], slates[COLD_START_USER][-1]}
    assert COLD_START_USER in naming(slates, *deleted)
    assert 2 < len(naming(slates, *deleted)) < len(slates) - 2
    return deleted


@pytest.mark.parametrize("remembered", [200_000, 5])
def test_affected_slates_are_made_anew_and_others_are_not(small: Settings, remembered: int) -> None:
    settings = remembering(small, remembered)

    async def scenario() -> None:
        await fed(settings)
        async with ranker(settings):
            before = await all_ranked(settings)
            deleted = some_deleted(before)
            affected = naming(before, *deleted)
            searches, renewed = metric("ledger_searches_total"), metric("slates_renewed_total")
            await send(settings, "content-vectors", [(c, None) for c in deleted])
            await until(lambda: not naming(newest(settings), *deleted), "slates without the deleted")
            await until(lambda: metric("slates_renewed_total") == renewed + len(affected), "their count")
        assert (metric("ledger_searches_total") > searches) == (remembered < len(USERS))
        after = on_topic(settings)
        assert {user for user, shown in after.items() if len(shown) > 1} == affected
        assert all(shown[-1] and len(shown[-1]) == 10 for shown in after.values())

    run(scenario())


@pytest.mark.parametrize("remembered", [200_000, 5])
def test_what_was_deleted_while_no_ranker_ran_is_noticed(small: Settings, remembered: int) -> None:
    """The tombstone is compacted away as well: the content merely no longer stands on the topic."""
    settings = remembering(small, remembered)
    long_ago = world.NOW - 3 * 365 * world.DAY

    def slate(user: bytes, *contents: bytes) -> tuple[bytes, bytes]:
        items = [Item(c.decode(), 1.0, Parts(1.0, 0.0, 0.0, 0.0), []) for c in contents]
        return user, encode(Slate(user.decode(), rfc3339(world.NOW), "m", None, "personal", items))

    async def scenario() -> None:
        index, records = catalogue(settings)
        expired = (b"expired", vector_record(index, 0, long_ago))
        await send(settings, "content-vectors", [*records, expired])
        await send(settings, "interests", [(u, liked(settings, index, u, n)) for n, u in enumerate(USERS)])
        async with ranker(settings):
            await all_ranked(settings)
        kept = world.content_id(3)
        await send(
            settings,
            "recommendations",
            [
                *(slate(user, kept, b"deleted") for user in USERS[:10]),
                *(slate(user, kept, b"expired") for user in USERS[10:20]),
                slate(b"without a record", kept, b"deleted"),
                slate(COLD_START_USER, b"deleted"),
            ],
        )
        async with ranker(settings):
            await until(lambda: not naming(newest(settings), b"deleted"), "slates without the deleted")
        after = newest(settings)
        assert naming(after, b"expired") == set(USERS[10:20])
        assert b"without a record" not in after
        assert all(len(after[user]) == 10 for user in (*USERS[:10], COLD_START_USER))
        assert all(len(shown) == 1 for user, shown in on_topic(settings).items() if user in USERS[20:])

    run(scenario())


def test_a_deletion_among_events_leaves_everybody_with_a_slate_by_their_newest_record(
    small: Settings,
) -> None:
    async def scenario() -> None:
        index = await fed(small)
        async with ranker(small):
            before = await all_ranked(small)
            deleted = some_deleted(before)
            again = [(u, liked(small, index, u, n + 7)) for n, u in enumerate(USERS)]
            await asyncio.gather(
                send(small, "content-vectors", [(c, None) for c in deleted]),
                *(send(small, "interests", [record]) for record in again),
            )

            def settled() -> bool:
                slates: dict[bytes, Slate] = {}
                for record in read_topic(small, small.topic_name("recommendations")):
                    slates[record.key] = decode(record.value)
                reasons = {
                    user: slates[user].items[0].reasons[0].content_id
                    for user in USERS
                    if slates[user].items[0].reasons
                }
                wanted = {
                    user: world.content_id(n + 7).decode()
                    for n, user in enumerate(USERS)
                    if world.content_id(n + 7) not in deleted
                }
                shown = {user: [i.content_id.encode() for i in s.items] for user, s in slates.items()}
                return not naming(shown, *deleted) and wanted.items() <= reasons.items()

            await until(settled, "everybody's slate by the newest record, without the deleted")

    run(scenario())
