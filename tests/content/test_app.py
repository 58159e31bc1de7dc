"""The content role against a real broker: contents in, vectors and dead letters out."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from msgspec.structs import replace

from stream_app.content.app import ContentStage, create_app, group_role
from stream_app.content.coverage import Coverage
from stream_app.content.index import ContentIndex
from stream_app.content.model import model_id
from stream_app.content.vectors import decode, split_key, tag, vector_key
from stream_app.hashing import key64, model_code
from stream_app.kafka.admin import create_topics
from stream_app.kafka.faust.app import RoleApp
from stream_app.kafka.partitions import partition_of
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
        self.index = ContentIndex(world, model_id(world))
        self.coverage = Coverage(model_id(world))
        self.standing: dict[bytes, bytes] = {}
        self.letters: list[Any] = []
        self.vectors = 0
        self._grown = asyncio.Event()
        self._readers = [
            TopicReader(world, world.topic_name("content-vectors"), self._index, label="test"),
            TopicReader(world, world.topic_name("events-dlq"), self._letter, label="test"),
        ]

    def _index(self, records: list[Any]) -> None:
        read = [(r.key, r.value) for r in records]
        self.vectors += sum((place := split_key(key)) is not None and place.former is None for key, _ in read)
        self.index.apply(read)
        self.coverage.apply(read)
        for key, value in read:
            if value is None:
                self.standing.pop(key, None)
            else:
                self.standing[key] = value
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


async def put(
    world: Settings, topic: str, records: list[tuple[bytes, bytes | None]], at: int | None = None
) -> None:
    """Place records by their contents' ids; ``at``: their Kafka timestamp, ms."""
    name = world.topic_name(topic)
    async with AIOKafkaProducer(bootstrap_servers=world.kafka.broker, linger_ms=5) as producer:
        for key, value in records:
            place = split_key(key)
            number = partition_of(key if place is None else place.content_id, 2)
            await producer.send_and_wait(name, value, key=key, partition=number, timestamp_ms=at)


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
        (b"bad2", b"[]"),
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
            await followed.until(lambda: b"c1" in followed.index.rows)
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
            reasons = (b"malformed_json", b"bad_type", b"oversized", b"key_mismatch")
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
        failed = asyncio.Event()

        async def fail(stage: ContentStage, batch: object) -> None:
            failed.set()
            raise ArithmeticError("broken invariant")

        monkeypatch.setattr(ContentStage, "take", fail)
        app = create_app(world, Health(world))
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


def renamed(world: Settings, name: str) -> Settings:
    """The same, with the encoder's files under another path."""
    path = Path(world.content.model).with_name(name)
    shutil.copytree(world.content.model, path)
    return replace(world, content=replace(world.content, model=str(path)))


def of_another_encoder(world: Settings, name: str = "newer") -> Settings:
    """The same, with other files."""
    newer = renamed(world, name)
    (Path(newer.content.model) / "notes.json").write_text("{}")
    return newer


@asynccontextmanager
async def encoded(world: Settings, *, contents: int) -> AsyncIterator[Followed]:
    """A content worker runs and has encoded everything."""
    async with Followed(world) as followed, running(create_app(world, Health(world))):
        await followed.until(lambda: len(followed.index) == contents and followed.coverage.complete)
        yield followed


def test_a_model_is_what_its_files_say_and_not_where_they_lie(world: Settings) -> None:
    moved, newer = renamed(world, "moved"), of_another_encoder(world)
    assert model_id(moved) == model_id(world) != model_id(newer)

    async def scenario() -> None:
        await send(world, [(b"a", made("one")), (b"b", made("two"))])
        async with encoded(world, contents=2):
            pass
        async with encoded(moved, contents=2) as followed:
            assert followed.vectors == 2, "nothing is encoded anew"

    run(scenario())


def test_vectors_of_two_models_stand_side_by_side_and_going_back_encodes_what_is_missing(
    world: Settings,
) -> None:
    newer = of_another_encoder(world)

    async def scenario() -> None:
        await send(world, [(b"a", made("one")), (b"b", made("two")), (b"gone", made("three"))])
        async with encoded(world, contents=3) as followed:
            before = followed.standing
        async with encoded(newer, contents=3) as followed:
            assert {key: followed.standing.get(key) for key in before} == before, "nothing is overwritten"
            await send(world, [(b"later", made("four")), (b"gone", None)])
            await followed.until(lambda: followed.index.rows.keys() == {b"a", b"b", b"later"})
            contents = {
                (p.content_id, p.code)
                for key in followed.standing
                if (p := split_key(key)) and p.former is None
            }
            old, new = (model_code(model_id(one)) for one in (world, newer))
            assert contents == {(b"a", old), (b"b", old), *((c, new) for c in (b"a", b"b", b"later"))}
        async with encoded(world, contents=3) as followed:
            assert followed.index.rows.keys() == {b"a", b"b", b"later"}

    run(scenario())


def test_offsets_of_a_group_whose_vectors_are_gone_are_not_believed(world: Settings) -> None:
    """An earlier version overwrote one model's vectors by another's, whose group stands at the end."""
    newer = of_another_encoder(world)

    async def scenario() -> None:
        await send(world, [(b"c%d" % n, made(f"number {n}")) for n in range(20)])
        async with encoded(world, contents=20) as followed:
            mine = list(followed.standing)
        async with encoded(newer, contents=20):
            pass
        await put(world, "content-vectors", [(key, None) for key in mine])  # marks among them
        async with encoded(world, contents=20) as followed:
            assert len(followed.index) == 20

    run(scenario())


def test_what_a_new_model_does_not_take_is_not_waited_for(world: Settings) -> None:
    narrow = of_another_encoder(world)
    narrow = replace(narrow, content=replace(narrow.content, max_bytes=100))

    async def scenario() -> None:
        await send(world, [(b"a", made("one")), (b"long", made("word " * 30))])
        async with encoded(world, contents=2):
            pass
        async with encoded(narrow, contents=1) as followed:
            assert followed.coverage.missing == 0
            assert len(followed.letters) == 1

    run(scenario())


def test_a_content_keeps_its_first_time_through_edits_restarts_and_models(world: Settings) -> None:
    first = 1_600_000_000_000
    newer = of_another_encoder(world)

    def time_of(followed: Followed, content: bytes) -> int:
        return int(followed.index.created_at[followed.index.rows[content]])

    async def scenario() -> None:
        await put(world, "content", [(b"a", made("one")), (b"b", made("two", created_at=first - 7))], first)
        async with encoded(world, contents=2) as followed:
            assert (time_of(followed, b"a"), time_of(followed, b"b")) == (first, first - 7)
            await send(world, [(b"a", made("one")), (b"b", made("edited"))])
            await followed.until(lambda: followed.vectors == 4)
            assert (time_of(followed, b"a"), time_of(followed, b"b")) == (first, first - 7)
        async with Followed(world) as followed, running(create_app(world, Health(world))):
            await send(world, [(b"a", made("edited")), (b"b", made("edited twice"))])
            await followed.until(lambda: followed.vectors >= 4 and sum(followed.index.known) == 1)
            await send(world, [(b"a", None), (b"b", None)])
            await followed.until(lambda: not followed.index.rows)
            await send(world, [(b"a", made("shown again")), (b"b", made("shown again"))])
            await followed.until(lambda: len(followed.index) == 2)
            assert (time_of(followed, b"a"), time_of(followed, b"b")) == (first, first - 7)
        async with encoded(newer, contents=2) as followed:
            assert (time_of(followed, b"a"), time_of(followed, b"b")) == (first, first - 7)
            assert followed.index.known[[followed.index.rows[c] for c in (b"a", b"b")]].tolist() == [
                False,
                True,
            ]

    run(scenario())


def test_former_vectors_outlive_restarts_until_their_days_are_over(world: Settings) -> None:
    async def scenario() -> None:
        await send(world, [(b"a", made("one")), (b"b", made("two")), (b"c", made("three"))])
        async with encoded(world, contents=3) as followed:
            before = {c: followed.index.vectors[followed.index.rows[c]].copy() for c in (b"a", b"b")}
            versions = {c: int(followed.index.versions[followed.index.rows[c]]) for c in before}
        app = create_app(world, Health(world))
        async with Followed(world) as followed, running(app):
            await send(world, [(b"a", None), (b"b", made("edited"))])
            await followed.until(lambda: followed.index.rows.keys() == {b"b", b"c"})
            await followed.until(lambda: followed.index.versions[followed.index.rows[b"b"]] != versions[b"b"])
            standing = dict(followed.standing)  # as compaction leaves it
            index = ContentIndex(world, model_id(world))
            index.apply(standing.items())
            for content, vector in before.items():
                row = index.row_of_version(key64(content), versions[content])
                assert row is not None
                assert (index.vectors[row] == vector).all()
            stage = app.owner
            assert isinstance(stage, ContentStage)
            now_ms = time.time_ns() // 1_000_000
            while len(list(stage._published.outdated(now_ms + 86_400_000))) < 2:  # noqa: ASYNC110 - bounded by run
                await asyncio.sleep(0.01)
            await stage.forget_former(now_ms + 29 * 86_400_000)
            assert len(list(stage._published.outdated(now_ms + 86_400_000))) == 2
            await stage.forget_former(now_ms + 31 * 86_400_000)
            await followed.until(
                lambda: not any((p := split_key(k)) and p.former is not None for k in followed.standing)
            )
            assert followed.index.row_of_version(key64(b"a"), versions[b"a"]) is None
            assert b"b" in followed.index.rows

    run(scenario())


def test_contents_without_text_and_texts_that_say_nothing_are_contents(world: Settings) -> None:
    async def scenario() -> None:
        await send(
            world,
            [
                (b"image", b'{"author": "ann", "created_at": 1600000000000, "tags": ["sea"]}'),
                (b"emoji", made("\U0001f600")),
                (b"other emoji", made("\U0001f4a9")),
                (b"text", made("words")),
            ],
        )
        async with encoded(world, contents=4) as followed:
            index = followed.index
            assert {c: index.versions[row] > 0 for c, row in index.rows.items()} == {
                b"image": False,
                b"emoji": False,
                b"other emoji": False,
                b"text": True,
            }
            value = followed.standing[vector_key(b"image", model_code(model_id(world)))]
            assert (tag(decode(value).vector), decode(value).author, decode(value).known) == (0, "ann", True)
            assert not followed.letters

    run(scenario())
