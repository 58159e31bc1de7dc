"""The oldest broker that is supported, by its protocol: it has no topic ids and describes no transactions."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stream_app.demo.roles import environment
from stream_app.interests.statistics_record import Outcomes
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics, topic_id
from stream_app.kafka.broker import LocalBroker, free_port
from stream_app.settings import Settings, build
from tests.interests.closed_form import Sent
from tests.interests.older import OlderGate
from tests.interests.workers import (
    history,
    produce,
    publish_contents,
    unit_vectors,
    wait_for_outcomes,
    wait_until,
    workers,
    worst_error,
)

OLDEST = (2, 5)
CONTENTS = 20
D = 16
METADATA, DESCRIBE_TRANSACTIONS = 3, 65


@pytest.fixture(scope="module")
def older() -> Iterator[OlderGate]:
    gate, port = OlderGate(OLDEST), free_port()
    ways = f"PLAINTEXT://127.0.0.1:{port},GATED://127.0.0.1:{gate.port}"
    broker = LocalBroker(
        port=port, listeners={"GATED": "PLAINTEXT"}, properties={"advertised.listeners": ways}
    )
    with contextlib.closing(gate), broker:
        gate.target = broker.listener("GATED")
        yield gate


@pytest.fixture
def world(older: OlderGate) -> Settings:
    name = f"t{uuid.uuid4().hex[:10]}"
    settings = build(
        {
            "kafka": {
                "broker": f"127.0.0.1:{older.port}",
                "app_id": name,
                "topic_prefix": f"{name}.",
                "partitions": 2,
                "shared_partitions": 1,
                "batch_records": 64,
                "session_timeout_s": 6.0,
            },
            "interests": {"recent": 4, "seen": 4, "slab_rows": 64, "sweep_interval_s": 0.5},
            "content": {"dimensions": D, "capacity": 1000},
            "observability": {"port": 0},
        }
    )
    create_topics(settings)
    publish_contents(settings, unit_vectors(CONTENTS, D))
    return settings


def likes(first: int, count: int) -> list[Sent]:
    sent = history(2 * count, 20, CONTENTS, seed=first)
    return [replace(e, event=first + n, weight=1.0, undo=False) for n, e in enumerate(sent[:count])]


def command(world: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stream_app", *arguments],
        env=os.environ | environment(world),
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("how", ["restarted", "group lost", "killed"])
def test_nothing_is_read_again(world: Settings, older: OlderGate, tmp_path: Path, how: str) -> None:
    before, after = likes(0, 300), likes(10_000, 100)
    assert topic_id(world, world.topic_name("likes")) == ""
    with workers(world, tmp_path, "w") as (worker,):
        produce(world, before)
        wait_for_outcomes(world, len(before), worker.log)
        if how == "killed":
            worker.kill()
        else:
            assert worker.stop() == 0
        if how == "group lost":
            with clients.admin_client(world) as admin:
                admin.delete_groups([world.group("interests")])
        produce(world, after)
        worker.start()
        accounts = wait_for_outcomes(world, len(before + after), worker.log)
        assert accounts == Outcomes(applied=len(before + after))
        assert worst_error(world, before + after, unit_vectors(CONTENTS, D)) <= 1e-5
        assert worker.stop() == 0
    assert METADATA in older.seen
    assert {api for api, _ in older.refused} <= {DESCRIBE_TRANSACTIONS}


def test_a_shorter_topic_of_that_name_is_read_from_its_beginning(world: Settings, tmp_path: Path) -> None:
    before, after = likes(0, 300), likes(10_000, 100)
    with workers(world, tmp_path, "w") as (worker,):
        produce(world, before)
        wait_for_outcomes(world, len(before), worker.log)
        assert worker.stop() == 0
        with clients.admin_client(world) as admin:
            admin.delete_topics([world.topic_name("likes")])
        wait_until(lambda: world.topic_name("likes") in create_topics(world), "the topic to be there again")
        produce(world, after)
        worker.start()
        accounts = wait_for_outcomes(world, len(before + after), worker.log)
        assert accounts == Outcomes(applied=len(before + after))


def test_the_commands_work(world: Settings, older: OlderGate, tmp_path: Path) -> None:
    sent = likes(0, 50)
    with workers(world, tmp_path, "w") as (worker,):
        produce(world, sent)
        wait_for_outcomes(world, len(sent), worker.log)
        user = sent[0].user.decode()
        for arguments in (["topics"], ["show", user], ["dlq", "count"], ["erase", user]):
            done = command(world, *arguments)
            assert done.returncode == 0, (arguments, done.stdout[-500:], done.stderr[-500:])
        assert worker.stop() == 0
    assert older.refused == []
