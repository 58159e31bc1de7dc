"""The ranker role against a real broker: records in, slates out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaTimeoutError

from stream_app.content import vectors
from stream_app.content.index import ContentIndex
from stream_app.content.model import model_id
from stream_app.content.vectors import ContentVector
from stream_app.kafka.faust.app import RoleApp
from stream_app.kafka.reader import TopicReader
from stream_app.observability.health import Health
from stream_app.recommendations.app import create_app
from stream_app.recommendations.pipeline import Change
from stream_app.recommendations.publish import SlatePublisher
from stream_app.recommendations.slate import COLD_START_USER, Slate, decode
from stream_app.settings import Settings, build
from tests.ranking import ranking_world as world
from tests.ranking.ranking_world import Engagement

COLD_START = COLD_START_USER.decode()


@pytest.fixture
def small(settings: Settings, topics: list[str]) -> Settings:
    """Topics that exist, short vectors, the CPU."""
    names = ("broker", "app_id", "topic_prefix", "partitions", "shared_partitions")
    return build(
        {
            "kafka": {name: getattr(settings.kafka, name) for name in names},
            "content": {"dimensions": world.D, "capacity": 500},
            "ranking": {"device": "cpu"},
            "recommendations": {"cold_start_interval_s": 0.2},
            "inspect": {"enabled": True, "port": 0},
        }
    )


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


@asynccontextmanager
async def running(app: RoleApp) -> AsyncIterator[RoleApp]:
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


class Subscriber:
    """The newest slate of each user; None once it has been withdrawn."""

    def __init__(self, config: Settings) -> None:
        self.slates: dict[str, Slate | None] = {}
        self._grown = asyncio.Event()
        topic = config.topic_name("recommendations")
        self._reader = TopicReader(config, topic, self._take, label="test")

    def _take(self, records: list[Any]) -> None:
        for r in records:
            self.slates[r.key.decode()] = decode(r.value) if r.value is not None else None
        self._grown.set()

    async def until(self, reached: Callable[[dict[str, Slate | None]], bool]) -> None:
        while not reached(self.slates):
            self._grown.clear()
            await asyncio.wait_for(self._grown.wait(), 30)

    async def __aenter__(self) -> Subscriber:
        await self._reader.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._reader.stop()


async def send(config: Settings, topic: str, records: list[tuple[bytes, bytes | None]]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=config.kafka.broker, linger_ms=5) as producer:
        name = config.topic_name(topic)
        await asyncio.gather(*[await producer.send(name, value, key=key) for key, value in records])


async def committed(config: Settings) -> int:
    """Records of ``interests`` that the role's group has committed."""
    group = config.group("ranker")
    async with AIOKafkaConsumer(bootstrap_servers=config.kafka.broker, group_id=group) as consumer:
        topic = config.topic_name("interests")
        offsets = [await consumer.committed(TopicPartition(topic, p)) for p in range(config.kafka.partitions)]
    return sum(offset or 0 for offset in offsets)


# in a worker, the process ends with the app that crashed
leaves_clients = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def catalogue(config: Settings) -> tuple[ContentIndex, list[tuple[bytes, bytes | None]]]:
    """An index of 60 contents, and the records that make it."""
    index = world.filled_index(config, 60, model=model_id(config))
    records: list[tuple[bytes, bytes | None]] = [
        (
            id_,
            vectors.encode(
                ContentVector(
                    index.model, "", int(index.created_at[row]), 0, index.vectors[row].astype("float16")
                )
            ),
        )
        for id_, row in index.rows.items()
    ]
    return index, records


def liked(config: Settings, index: ContentIndex, i: int) -> bytes:
    engagement = Engagement(world.content_id(i), world.NOW)
    return world.interest_record(config, index, [engagement], model=index.model, seen=[engagement.content_id])


def contents(slate: Slate | None) -> list[str]:
    return [] if slate is None else [item.content_id for item in slate.items]


def test_records_become_slates(small: Settings) -> None:
    index, records = catalogue(small)
    popular = world.statistics_value(
        small, 0, world.NOW, {"like": [50.0] * len(small.interests.stats_half_lives_h)}
    )

    async def scenario() -> None:
        await send(small, "content-vectors", records)
        await send(small, "content-stats", [(b"\x00outcomes", b"{}"), (world.content_id(7), popular)])
        users = [(b"user-%d" % i, liked(small, index, i)) for i in range(40)]
        await send(small, "interests", [*users, (b"user-9", b"not a record")])
        async with Subscriber(small) as subscriber, running(create_app(small, Health(small))) as app:
            await subscriber.until(lambda s: s.keys() >= {COLD_START, *(u.decode() for u, _ in users[:9])})
            await subscriber.until(lambda s: len(s) >= 40)
            slates = dict(subscriber.slates)
            assert "content-7" in contents(slates[COLD_START])
            for i in (*range(9), *range(10, 40)):
                slate = slates[f"user-{i}"]
                assert slate is not None
                assert slate.kind == "personal"
                assert len(slate.items) == 10
                assert f"content-{i}" not in contents(slate)
                assert slate.items[0].reasons[0].content_id == f"content-{i}"
                assert slate.caused_by is not None
                assert slate.caused_by.offset == 42

            # deleted contents are gone from then on
            shown = contents(slates["user-1"])
            await send(small, "content-vectors", [(c.encode(), None) for c in shown])
            await subscriber.until(lambda s: not set(shown) & set(contents(s[COLD_START])))
            await send(small, "interests", [(b"user-1", liked(small, index, 2))])
            await subscriber.until(lambda s: s["user-1"] != slates["user-1"])
            assert not set(shown) & set(contents(subscriber.slates["user-1"]))

            # the page that explains a slate has it, and the one before
            inspection = app.owner._inspection  # type: ignore[union-attr]  # a ranker
            url = f"http://127.0.0.1:{inspection.port}/inspect?user=user-1"
            both, html = {*shown, *contents(subscriber.slates["user-1"])}, ""
            async with ClientSession() as session:
                while not all(f"<bdi>{content}</bdi>" in html for content in both):  # bounded by ``run``
                    async with session.get(url) as response:
                        html = await response.text()

            # an erased user's slate goes
            await send(small, "interests", [(b"user-2", None)])
            await subscriber.until(lambda s: s["user-2"] is None)
            assert inspection.remembered.get(b"user-2") is None
        assert await committed(small) == 40 + 1 + 1 + 1

    run(scenario())


@leaves_clients
@pytest.mark.usefixtures("left_over")
def test_a_batch_that_could_not_be_published_is_not_committed(
    small: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, records = catalogue(small)

    publish = SlatePublisher.publish

    async def refuse(self: SlatePublisher, changes: list[Change], *ends: Any) -> None:
        if any(change.user == b"u" for change in changes):
            raise KafkaTimeoutError("no acknowledgement in time")
        await publish(self, changes, *ends)

    async def scenario() -> None:
        await send(small, "content-vectors", records)
        await send(small, "interests", [(b"u", liked(small, index, 1))])
        with monkeypatch.context() as patched:
            patched.setattr(SlatePublisher, "publish", refuse)
            async with running(create_app(small, Health(small))) as app:
                await asyncio.wait_for(app._crashed.wait(), 30)
                assert isinstance(app.crash_reason, KafkaTimeoutError)
        assert await committed(small) == 0
        async with Subscriber(small) as subscriber, running(create_app(small, Health(small))):
            await subscriber.until(lambda s: "u" in s)
        assert await committed(small) == 1

    run(scenario())


@leaves_clients
@pytest.mark.usefixtures("left_over")
def test_a_crashed_app_leaves_nothing_that_keeps_the_event_loop(
    small: Settings,
) -> None:
    async def scenario() -> set[str]:
        before = asyncio.all_tasks()
        async with running(create_app(small, Health(small))) as app:
            app.stop_loudly(KafkaTimeoutError("as any error would"))
            await asyncio.wait_for(app._crashed.wait(), 30)
        left = asyncio.all_tasks() - before
        for _ in range(3):  # what starts anew when it is cancelled is there again
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=1) if left else None
            left = asyncio.all_tasks() - before
        return {repr(task.get_coro()) for task in left}

    assert asyncio.run(asyncio.wait_for(scenario(), 60)) == set()
