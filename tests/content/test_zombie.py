"""A content worker that was taken for dead wakes up: it brings no deleted content back."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path

import msgspec

from stream_app.content.vectors import split_key
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.settings import Settings
from tests.content.conftest import TINY_DIMENSIONS
from tests.interests.workers import Worker, wait_until

CONTENTS = 2_000


def send(settings: Settings, *, deleted: bool) -> None:
    with clients.producer(settings) as producer:
        for number in range(CONTENTS):
            value = None if deleted else json.dumps({"text": f"number {number}"}).encode()
            producer.send(settings.topic_name("content"), key=b"c%d" % number, value=value)


def standing(settings: Settings) -> tuple[set[bytes], set[bytes]]:
    """Contents that have a vector, and those that were deleted."""
    newest: dict[bytes, bytes | None] = {}
    for record in clients.read_topic(settings, settings.topic_name("content-vectors")):
        if (place := split_key(record.key)) is not None and place.former is None:
            newest[place.content_id] = record.value
    there = {content for content, value in newest.items() if value is not None}
    return there, newest.keys() - there


def test_a_zombie_brings_no_deleted_content_back(settings: Settings, tiny: Path, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(
        settings,
        kafka=msgspec.structs.replace(settings.kafka, session_timeout_s=3.0),
        content=msgspec.structs.replace(
            settings.content, model=str(tiny), dimensions=TINY_DIMENSIONS, device="cpu", batch_size=2
        ),
    )
    create_topics(settings)
    zombie, heir = (Worker(settings, name, tmp_path, "content") for name in ("zombie", "heir"))
    try:
        zombie.start()
        zombie.wait_for("serving 2 partitions")
        send(settings, deleted=False)
        wait_until(lambda: bool(standing(settings)[0]), "the first vectors", zombie.log)
        zombie.signal(signal.SIGSTOP)  # in the middle of its backlog
        assert len(standing(settings)[0]) < CONTENTS * 3 // 4
        heir.start()
        heir.wait_for("serving 2 partitions")  # the zombie's session has timed out
        send(settings, deleted=True)
        wait_until(lambda: len(standing(settings)[1]) == CONTENTS, "everything to be deleted", heir.log)
        zombie.signal(signal.SIGCONT)
        # refused by the broker; a rebalance that comes first cuts off who would say so in words
        zombie.wait_for("another worker owns this partition now", "ProducerFenced")
        zombie.wait_for("serving 1 partitions")
        assert standing(settings) == (set(), {b"c%d" % number for number in range(CONTENTS)})
        assert zombie.stop() == 0
        assert heir.stop() == 0
    finally:
        for worker in (zombie, heir):
            with contextlib.suppress(AttributeError):  # one that was not started
                worker.signal(signal.SIGCONT)
                worker.kill()
