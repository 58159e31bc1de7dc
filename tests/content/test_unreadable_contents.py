"""A batch of contents that cannot be read: one dead letter for its offsets; its neighbours are encoded."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from stream_app.content.app import create_app
from stream_app.kafka.admin import create_topics
from stream_app.observability.health import Health
from stream_app.settings import Settings
from tests.content.test_app import Followed, committed, made, run, running
from tests.kafka import record_batches

MIB = 1 << 20


def test_contents_around_an_oversized_batch_are_encoded(settings: Settings, tiny: Path) -> None:
    world = replace(
        settings,
        kafka=replace(settings.kafka, batch_max_bytes=MIB),
        content=replace(settings.content, model=str(tiny), dimensions=16, device="cpu"),
    )
    create_topics(world)
    topic = world.topic_name("content")
    texts = b"".join(
        record_batches.record(n, b"big%d" % n, made("x" * (MIB // 2), created_at=10**12)) for n in range(3)
    )
    bomb = record_batches.batch(0, record_batches.packed("zstd", texts), 3, codec=4)

    def small(key: bytes) -> bytes:
        text = record_batches.record(0, key, made("a text", created_at=10**12))
        return record_batches.batch(0, record_batches.packed("lz4", text), 1, codec=3)

    async def scenario() -> None:
        for raw in (small(b"before"), bomb, small(b"after")):
            await record_batches.send(world, topic, raw)
        async with Followed(world) as followed, running(create_app(world, Health(world))):
            await followed.until(lambda: b"after" in followed.index.rows and bool(followed.letters))
            assert followed.index.rows.keys() == {b"before", b"after"}
            (letter,) = followed.letters
            assert (letter.key, letter.value) == (None, None)
            named = {name: text for name, text in letter.headers if name != "stream-app-time"}
            assert named["stream-app-topic"] == topic.encode()
            assert named["stream-app-partition"] == b"0"
            assert (named["stream-app-offset"], named["stream-app-last-offset"]) == (b"1", b"3")
            assert named["stream-app-records"] == b"3"
            assert named["stream-app-reason"] == b"oversized_batch"
        assert await committed(world) == 5

    run(scenario())
