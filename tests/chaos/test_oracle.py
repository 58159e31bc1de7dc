"""The oracle is told lies: a real run is archived, then damaged in one place, and each time it must notice."""

from __future__ import annotations

import copy
import json
import struct
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from stream_app.chaos.archive import Archive
from stream_app.chaos.archived import Archived, Kept, Place, Sample, Spot
from stream_app.chaos.oracle import TOLERANCE, Verdict, verdict
from stream_app.errors import ConfigurationError
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.settings import Settings, build
from tests.conftest import RunningBroker
from tests.interests.closed_form import Sent
from tests.interests.workers import (
    NOW_MS,
    history,
    produce,
    publish_contents,
    unit_vectors,
    wait_until,
    workers,
)

CONTENTS = 20
UNKNOWN = CONTENTS + 5
HEADER_BYTES, ENTRY_BYTES, VECTOR_AT = 96, 32, 96


@pytest.fixture(scope="module")
def world(broker: RunningBroker, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    name = f"t{uuid.uuid4().hex[:10]}"
    made = build(
        {
            "kafka": {
                "broker": broker.address,
                "app_id": name,
                "topic_prefix": f"{name}.",
                "partitions": 2,
                "shared_partitions": 2,
                "batch_records": 64,
            },
            "events": {"retry_delays_s": [0.2, 0.3]},
            "interests": {
                "data_dir": str(tmp_path_factory.mktemp("state")),
                "recent": 256,
                "seen": 256,
                "min_mass": 0.0,
            },
            "content": {"dimensions": 16, "capacity": 1000},
            "recommendations": {"skip_unchanged": False},
            "observability": {"port": 0},
        }
    )
    create_topics(made)
    return made


@pytest.fixture(scope="module")
def whole(world: Settings, tmp_path_factory: pytest.TempPathFactory) -> Archived:
    """A real run, with repeats, undos, malformed events, events on contents nobody knows, and a kill."""
    publish_contents(world, unit_vectors(CONTENTS, 16))
    sent = history(1500, 60, CONTENTS, seed=9)
    sent.insert(300, Sent(b"user-3", UNKNOWN, 5000, NOW_MS - 1000))
    with Archive(world) as archive, workers(world, tmp_path_factory.mktemp("logs"), "w") as (worker,):
        worker.wait_for("serving 2 partitions")
        produce(world, sent[:700])
        worker.kill()
        worker.start()
        with clients.producer(world) as producer:
            for number, value in enumerate((b"", b"{", b"[1]", b'{"user_id":"u","content_id":"c1"}')):
                producer.send(world.topic_name("likes"), key=b"user-%d" % number, value=value)
            nameless = {"user_id": "user-1", "content_id": "c1", "occurred_at": NOW_MS}
            producer.send(world.topic_name("likes"), key=b"user-1", value=json.dumps(nameless).encode())
        produce(world, sent[700:])

        def settled() -> bool:
            archive.catch_up()
            return archive.unsettled(slates=False) is None

        wait_until(settled, "everything to come to rest", worker.log)
        archive.catch_up()
    archived = archive.archived
    _add_slates(archived)
    return archived


def _add_slates(archived: Archived) -> None:
    """What a ranker would have published."""
    for user, followed in archived.users.items():
        assert followed.value is not None
        topic, partition, offset = archived.last_of(followed.value)
        cause = {"topic": topic, "partition": partition, "offset": offset}
        slate = {"caused_by": cause, "items": [{"content_id": "c1"}]}
        archived.slates[user] = Kept(1, NOW_MS, user, json.dumps(slate).encode())


@pytest.fixture
def archived(whole: Archived) -> Archived:
    """A copy to damage."""
    return copy.deepcopy(whole, {id(whole.settings): whole.settings})


def test_what_is_sound_is_found_sound(archived: Archived) -> None:
    found = verdict(archived)
    assert found.differences == []
    assert found.sound
    assert found.users == 60
    assert found.accounts["dead_lettered"] == 5
    assert found.accounts["duplicates"] > 10
    assert sum(found.accounts.values()) == found.inputs
    assert 0 < found.max_relative_error < TOLERANCE
    assert any(sample.committed for sample in archived.samples), "the offsets were looked at"
