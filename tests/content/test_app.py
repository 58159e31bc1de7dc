"""The content role against a real broker: contents in, vectors and dead letters out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from msgspec.structs import replace

from stream_app.content.app import ContentStage, create_app, group_role
from stream_app.content.index import ContentIndex
from stream_app.kafka.admin import create_topics
from stream_app.kafka.app import RoleApp
from stream_app.kafka.reader import TopicReader
from stream_app.observability.health import Health
from stream_app.settings import Settings, build


@pytest.fixture
def world(settings: Settings, tiny: Path) -> Settings:
    """Topics that exist, and a small encoder."""
    tree = {
        "kafka": {
            name: getattr(settings.kafka, name)
            for name in ("broker", "app_id", "topic_prefix", "partitions", "shared_partitions")
        },
        "content": {"model": str(tiny), "dimensions": 16, "max_bytes": 2_000, "device": "cpu"},
    }
    world = build(tree)
    create_topics(world)
    return world


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


@asynccontextmanager
async def running(app: RoleApp) -> AsyncIterator[RoleApp]:
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


class Followed:
    """What stands on the topics that the role writes, as it comes."""

    def __init__(self, world: Settings) -> None:
        self.index = ContentIndex(world, world.content.model)
        self.letters: list[Any] = []
        self.vectors = 0
        self._grown = asyncio.Event()
        self._readers = [
            TopicReader(world, world.topic_name("content-vectors"), self._index, label="test"),
            TopicReader(world, world.topic_name("events-dlq"), self._letter, label="test"),
        ]

    def _index(self, records: list[Any]) -> None:
        self.vectors += len(records)
        self.index.apply((r.key, r.value) for r in records)
        self._grown.set()

    def _letter(self, records: list[Any]) -> None:
        self.letters += records
        self._grown.set()

    async def until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self._grown.clear()
            await asyncio.wait_for(self._grown.wait(), 30)

    async def __aenter__(self) -> Followed:
        for reader in self._readers:
            await reader.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for reader in self._readers:
            await reader.stop()


async def send(world: Settings, records: list[tuple[bytes, bytes | None]]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=world.kafka.broker, linger_ms=5) as producer:
        topic = world.topic_name("content")
        await asyncio.gather(*[await producer.send(topic, value, key=key) for key, value in records])


async def committed(world: Settings) -> int:
    """Records of ``content`` that the role's group has committed."""
    group = world.group(group_role(world))
    async with AIOKafkaConsumer(bootstrap_servers=world.kafka.broker, group_id=group) as consumer:
        topic = world.topic_name("content")
        offsets = [await consumer.committed(TopicPartition(topic, p)) for p in range(2)]
    return sum(offset or 0 for offset in offsets)


def made(text: str, **fields: Any) -> bytes:
    return json.dumps({"text": text, **fields}).encode()


def test_contents_become_vectors_and_bad_ones_dead_letters(world: Settings) -> None:
    good = [
        (b"c%d" % i, made(f"post number {i % 50}", author="ann", created_at=10**12 + i)) for i in range(900)
    ]
    bad = [
        (b"bad1", b"not JSON"),
        (b"bad2", made("")),
        (b"bad3", made("x" * 3_000)),
        (b"bad4", made("x", content_id="another")),
    ]

    async def scenario() -> None:
        health = Health(world)
        app = create_app(world, health)
        served: list[bool] = []
        app.serving.append(served.append)
        await send(world, [*good[:500], *bad, *good[500:], (b"c0", None), (b"c1", made("a newer version"))])
        async with Followed(world) as followed, running(app):
            await followed.until(lambda: len(followed.letters) == 4)
            await followed.until(lambda: followed.vectors >= 900 and b"c0" not in followed.index.rows)
            assert served[-1]
            assert health.stalled() is None
            assert followed.index.rows.keys() == {key for key, _ in good} - {b"c0"}
            c51, c101 = (followed.index.rows[key] for key in (b"c51", b"c101"))
            assert (followed.index.vectors[c51] == followed.index.vectors[c101]).all(), "the same text"
            assert followed.index.created_at[c51] == 10**12 + 51
            assert (followed.index.vectors[followed.index.rows[b"c1"]] != followed.index.vectors[c51]).any()
            letters = {
                record.key: (dict(record.headers)["stream-app-reason"], record.value)
                for record in followed.letters
            }
            reasons = (b"malformed_json", b"empty_text", b"oversized", b"key_mismatch")
            assert letters == {
                key: (reason, value) for (key, value), reason in zip(bad, reasons, strict=True)
            }
            # what comes later is taken at once
            await send(world, [(b"later", made("one more"))])
            await followed.until(lambda: b"later" in followed.index.rows)
        assert await committed(world) == 900 + 4 + 2 + 1

    run(scenario())


def test_a_batch_that_could_not_be_published_is_not_committed(
    world: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        app = create_app(world, Health(world))
        failed = asyncio.Event()

        async def fail(stage: ContentStage, batch: object) -> None:
            failed.set()
            raise ArithmeticError("broken invariant")

        monkeypatch.setattr(ContentStage, "take", fail)
        await send(world, [(b"a", made("one")), (b"b", made("two"))])
        async with running(app):
            await asyncio.wait_for(failed.wait(), 30)
            await asyncio.wait_for(app.wait_until_stopped(), 30)
            assert isinstance(app.crash_reason, ArithmeticError)
        assert await committed(world) == 0
        monkeypatch.undo()
        async with Followed(world) as followed, running(create_app(world, Health(world))):
            await followed.until(lambda: len(followed.index) == 2)

    run(scenario())


def test_a_new_model_encodes_all_contents_anew(world: Settings) -> None:
    path = Path(world.content.model).with_name("newer")
    newer = replace(world, content=replace(world.content, model=str(path)))

    async def encode_all(settings: Settings, records_written: int) -> None:
        async with Followed(settings) as followed, running(create_app(settings, Health(settings))):
            await followed.until(lambda: len(followed.index) == 2)
            assert followed.vectors == records_written

    run(send(world, [(b"a", made("one")), (b"b", made("two"))]))
    run(encode_all(world, 2))
    Path(world.content.model).rename(path)
    run(encode_all(newer, 4))
