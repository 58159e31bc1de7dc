"""Batches on real Kafka that cannot be read: workers dead-letter each as one range; state stops."""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from stream_app.errors import UnreadableStateError
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.kafka.broker import LocalBroker
from stream_app.kafka.changelog import ChangelogReader
from stream_app.settings import Settings
from tests.interests.workers import (
    NOW_MS,
    Worker,
    publish_contents,
    states,
    unit_vectors,
    wait_for_outcomes,
    workers,
)
from tests.kafka import record_batches as made

MIB = 1 << 20
BOMB_BYTES = 900 * MIB
GROWTH_BYTES = 400 * MIB  # some takes wait in the stream, each of them twice in memory as it is unpacked
"""What a worker may take more, at 16 MiB a batch: buffers of a fetch, of a take, and of its state."""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """A broker whose files can be damaged."""
    with LocalBroker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture
def world(settings: Settings, disk: LocalBroker) -> Settings:
    kafka = msgspec.structs.replace(
        settings.kafka, broker=disk.address, partitions=1, batch_max_bytes=16 * MIB
    )
    world = msgspec.structs.replace(settings, kafka=kafka)
    create_topics(world)
    publish_contents(world, unit_vectors(3, world.content.dimensions))
    return world


def events(world: Settings, name: str, count: int, codec: str | None = "gzip") -> int:
    """One batch of likes by as many users; the offset that it begins at."""
    with clients.producer(world, compression_type=codec, linger_ms=100, batch_size=MIB) as producer:
        sent = [
            producer.send(
                world.topic_name("likes"),
                key=b"%s-%d" % (name.encode(), n),
                value=json.dumps(
                    {
                        "event_id": f"{name}-{n}",
                        "user_id": f"{name}-{n}",
                        "content_id": "c0",
                        "occurred_at": NOW_MS,
                    }
                ).encode(),
                partition=0,
            )
            for n in range(count)
        ]
        producer.flush()
        return int(sent[0].get(10).offset)


def letters(world: Settings) -> list[dict[str, str]]:
    """Our headers of the dead letters, without time and timestamp."""
    found = []
    for record in clients.read_topic(world, world.topic_name("events-dlq")):
        assert record.key is None
        assert record.value is None
        headers = {name.removeprefix("stream-app-"): text.decode() for name, text in record.headers}
        found.append({name: headers[name] for name in ("offset", "last-offset", "records", "reason")})
    return sorted(found, key=lambda letter: int(letter["offset"]))


def letter(
    first: int, count: int, reason: str = "unreadable_batch", records: int | None = None
) -> dict[str, str]:
    said = count if records is None else records
    return {
        "offset": str(first),
        "last-offset": str(first + count - 1),
        "records": str(said),
        "reason": reason,
    }


def peak(worker: Worker, what: str = "VmHWM") -> int:
    """Memory of a worker, bytes."""
    status = Path(f"/proc/{worker._process.pid}/status").read_text()
    found = re.search(what + r":\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10


DAMAGES: dict[str, tuple[str | None, Callable[[bytes], bytes]]] = {
    "garbled gzip": ("gzip", made.garbled),
    "a flipped bit": ("gzip", made.flipped),
    "a flipped bit, uncompressed": (None, made.flipped),
    "codec 7": ("gzip", made.of_codec(7)),
    "version 9": ("gzip", lambda raw: raw[:16] + b"\x09" + raw[17:]),
}


def test_each_becomes_one_dead_letter_and_its_neighbours_are_applied(
    world: Settings, disk: LocalBroker, tmp_path: Path
) -> None:
    file = made.on_disk(disk.directory, world.topic_name("likes"), 0)
    expected, applied, bad = [], 5, 0
    events(world, "first", 5)
    for number, (codec, edit) in enumerate(DAMAGES.values()):
        at = events(world, f"bad{number}", 7, codec)
        made.change(file, at, edit)
        events(world, f"good{number}", 3)
        expected.append(letter(at, 7))
        applied, bad = applied + 3, bad + 7
    with workers(world, tmp_path, "one") as (worker,):
        outcomes = wait_for_outcomes(world, applied + bad, worker.log)
        assert (outcomes.applied, outcomes.dead_lettered) == (applied, bad)
        assert letters(world) == expected
        users = {user.decode().split("-")[0] for user in states(world)}
        assert users == {"first", *(f"good{n}" for n in range(len(DAMAGES)))}
        # and another one while it runs
        at = events(world, "last", 4)
        assert at > 0
        assert wait_for_outcomes(world, applied + bad + 4, worker.log).applied == applied + 4
        assert worker.running
        assert worker.stop() == 0
    with workers(world, tmp_path, "two") as (worker,):  # each was settled once and for all
        events(world, "after", 1)
        outcomes = wait_for_outcomes(world, applied + bad + 5, worker.log)
        assert (outcomes.applied, outcomes.dead_lettered) == (applied + 5, bad)
    assert letters(world) == expected


def test_a_bomb_is_dead_lettered_and_costs_no_more_than_the_bound(world: Settings, tmp_path: Path) -> None:
    topic = world.topic_name("likes")
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    head = made.record(0, b"x", bytes(BOMB_BYTES))[: -BOMB_BYTES - 1]
    payload = packer.compress(head)
    for _ in range(BOMB_BYTES // MIB):
        payload += packer.compress(bytes(MIB))
    payload += packer.compress(b"\x00") + packer.flush()
    bomb = made.batch(0, payload, 1, codec=1)
    assert len(bomb) < MIB
    within = made.batch(0, made.packed("zstd", made.record(0, b"x", bytes(15 * MIB))), 1, codec=4)
    with workers(world, tmp_path, "one") as (worker,):
        events(world, "first", 5)
        wait_for_outcomes(world, 5, worker.log)
        before = peak(worker, "VmRSS")
        for _ in range(3):
            asyncio.run(made.send(world, topic, bomb))
        for _ in range(60):  # each within the bound, and together in one fetch
            asyncio.run(made.send(world, topic, within))
        events(world, "last", 5)
        outcomes = wait_for_outcomes(world, 5 + 63 + 5, worker.log)
        assert (outcomes.applied, outcomes.dead_lettered) == (10, 63)
        assert peak(worker) - before < GROWTH_BYTES
        assert worker.running
    reasons = [
        dict(record.headers)["stream-app-reason"].decode()
        for record in clients.read_topic(world, world.topic_name("events-dlq"))
    ]
    assert sorted(reasons) == ["oversized"] * 60 + ["oversized_batch"] * 3


def test_state_is_not_rebuilt_without_what_cannot_be_read(
    world: Settings, disk: LocalBroker, tmp_path: Path
) -> None:
    """A user would lose what the batch says of them: the worker stops, and says why."""
    with workers(world, tmp_path, "one") as (worker,):
        events(world, "first", 5)
        wait_for_outcomes(world, 5, worker.log)
        events(world, "later", 5)  # in a batch of its own
        wait_for_outcomes(world, 10, worker.log)
        assert worker.stop() == 0
    topic = world.topic_name("interests")
    made.change(made.on_disk(disk.directory, topic, 0), 0, made.flipped)

    async def rebuild() -> None:
        async def nothing(*_: object) -> None:
            pass

        reader = ChangelogReader(world, topic, 0)
        try:
            await reader.start(0)
            await reader.read_to_end(nothing)
        finally:
            await reader.stop()

    with pytest.raises(UnreadableStateError, match=r"interests\[0\]: offsets 0 to \d+ cannot be read"):
        asyncio.run(rebuild())
    with workers(world, tmp_path, "two") as (worker,):
        assert worker.end() == 1
        assert "cannot be read" in worker.log.read_text()
    offsets = [record.offset for record in clients.read_topic(world, topic)]
    assert offsets  # those who only look go on after it
    assert 0 not in offsets
