"""Erasure on real workers and Apache Kafka: nothing is left, nothing comes back, nobody else is touched."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.settings import Settings
from tests.erasure.erasing import (
    CONTENTS,
    NEIGHBOUR,
    VICTIM,
    D,
    beginnings,
    erased,
    files_naming,
    letters,
    receipt_of,
    receipts,
    topics_naming,
)
from tests.interests.workers import (
    publish_contents,
    states,
    unit_vectors,
    wait_for_outcomes,
    wait_until,
    workers,
)


@pytest.fixture
def world(settings: Settings) -> Settings:
    """Two partitions, quick retries and sweeps, six contents."""
    replace = msgspec.structs.replace
    settings = replace(
        settings,
        kafka=replace(settings.kafka, session_timeout_s=3.0),
        events=replace(settings.events, retry_delays_s=(0.5, 1.0)),
        content=replace(settings.content, dimensions=D, capacity=100),
        interests=replace(settings.interests, slab_rows=256, sweep_interval_s=0.3),
    )
    create_topics(settings)
    publish_contents(settings, unit_vectors(CONTENTS, D))
    return settings


class Sender:
    """Sends events and counts them."""

    def __init__(self, settings: Settings) -> None:
        self.sent = 0
        self._producer = clients.producer(settings)
        self._topic = settings.topic_name("likes")

    def event(self, user: str, content: int, occurred_at: int | None = None, **fields: Any) -> None:
        value = {"event_id": f"e{self.sent}", "user_id": user, "content_id": f"c{content}", **fields}
        if occurred_at is not None:
            value["occurred_at"] = occurred_at
        self.raw(user.encode(), json.dumps(value).encode())

    def raw(self, key: bytes | None, value: bytes) -> None:
        headers = [("trace", (key or b"") + b"!")]
        self._producer.send(self._topic, key=key, value=value, headers=headers)
        self.sent += 1

    def flushed(self) -> int:
        """How many events the broker has."""
        self._producer.flush()
        return self.sent

    def close(self) -> None:
        self._producer.close()


@pytest.fixture
def send(world: Settings) -> Iterator[Sender]:
    with contextlib.closing(Sender(world)) as made:
        yield made


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def of_victim(letter: tuple[int, bytes | None, bytes | None, dict[str, bytes]]) -> bool:
    _, key, value, headers = letter
    return any(VICTIM.encode() in (part or b"") for part in (key, value, *headers.values()))


def test_nothing_is_left_of_an_erased_user_and_everything_of_the_others(
    world: Settings, send: Sender, tmp_path: Path
) -> None:
    with workers(world, tmp_path, "w") as (worker,):
        worker.wait_for("serving 2 partitions")
        for content in range(3):
            send.event(VICTIM, content)
            send.event(NEIGHBOUR, content)
        for user in (VICTIM, NEIGHBOUR):
            send.event(user, 99)  # an unknown content: retried twice, then dead-lettered
            send.raw(user.encode(), b'{"user_id": 5')
            send.raw(None, json.dumps({"user_id": user}).encode())  # without a key, from anywhere
        for number in range(30):
            send.raw(b"other", b"no event %d" % number)
        wait_for_outcomes(world, send.flushed(), worker.log)
        before = letters(world)
        assert sum(map(of_victim, before)) == 3
        untouched = {user: record.header for user, record in states(world).items()}
        tries = topics_naming(world, VICTIM)
        assert (tries["events-retry-1"], tries["events-retry-2"]) == (1, 1)

        status, (printed,) = erased(world, VICTIM)
        assert status == 0, worker.log.read_text()
        receipt = receipt_of(world, VICTIM)
        assert receipt is not None
        assert printed["receipt"] == json.loads(msgspec.json.encode(receipt))
        removed = receipt.removed
        assert (removed.records, removed.interactions, removed.retries, removed.dead_letters) == (1, 3, 2, 3)
        assert receipt.remains == tuple(world.topic_name(t) for t in ("likes", "comments", "shares"))
        assert receipt.requested_at <= receipt.fence
        assert receipt.swept_at is not None

        # only what is not ours, and the compacted topics until the broker compacts them
        assert set(topics_naming(world, VICTIM)) == {"likes", "interests"}
        assert beginnings(world, "erasures") != [0, 0]
        assert letters(world) == [letter for letter in before if not of_victim(letter)]
        del untouched[VICTIM.encode()]
        assert {user: record.header for user, record in states(world).items()} == untouched
        assert worker.stop() == 0
        assert files_naming(tmp_path / "w", NEIGHBOUR)
        assert not files_naming(tmp_path / "w", VICTIM)
        assert VICTIM not in worker.log.read_text()


def test_events_of_before_stay_out_and_newer_ones_begin_a_new_record(
    world: Settings, send: Sender, tmp_path: Path
) -> None:
    start = now_ms() - 60_000
    with workers(world, tmp_path, "first") as (first,):
        send.event(VICTIM, 0, start)
        send.flushed()
        wait_until(lambda: topics_naming(world, VICTIM)["interests"] > 0, "the record", first.log)
        status, (printed,) = erased(world, VICTIM, "--as-of", str(start + 10_000))
        assert status == 0
        assert printed["receipt"]["fence"] == start + 10_000
        send.event(VICTIM, 1, start + 10_000)
        send.event(VICTIM, 2, start - 50 * 86_400_000)
        send.raw(VICTIM.encode(), b"{")  # malformed: its time is Kafka's, which is after the fence
        send.event(VICTIM, 3, start + 10_001)
        wait_for_outcomes(world, send.flushed(), first.log)
        check_fenced(world, [3], refused=2, kept=1)
        first.kill()

        # the next owner knows nothing but what Kafka says, nor does one who takes over at once
        with workers(world, tmp_path, "second") as (second,):
            send.event(VICTIM, 4, start)
            wait_for_outcomes(world, send.flushed(), second.log)
            check_fenced(world, [3], refused=3, kept=1)
            first.start()
            first.wait_for("serving 1 partitions")
            second.wait_for("serving 1 partitions")
            assert second.stop() == 0
            send.event(VICTIM, 5, start)
            send.event(VICTIM, 4, start + 10_002)
            accounts = wait_for_outcomes(world, send.flushed(), first.log)
            check_fenced(world, [3, 4], refused=4, kept=1)
            assert accounts.dead_lettered == 5
            assert accounts.applied + accounts.dead_lettered == send.sent


def test_kill_9_in_the_middle_of_many_erasures(world: Settings, send: Sender, tmp_path: Path) -> None:
    go, stay = [f"goes-{n}" for n in range(40)], [f"stays-{n}" for n in range(20)]
    with workers(world, tmp_path, "w") as (worker,):
        for user in (*go, *stay):
            send.event(user, 1)
            send.raw(user.encode(), b"no event")
        wait_for_outcomes(world, send.flushed(), worker.log)
        kept = [letter for letter in letters(world) if (letter[1] or b"").startswith(b"stays-")]
        for part in (go[:20], go[20:]):
            assert erased(world, *part, "--no-wait")[0] == 0
            wait_until(lambda: bool(receipts(world)), "the first receipts", worker.log)
            worker.kill()
            worker.start()

        def done() -> bool:
            found = receipts(world)
            return len(found) == len(go) and all(r.swept_at is not None for r in found.values())

        wait_until(done, "all receipts", worker.log)
        assert {r.removed.records for r in receipts(world).values()} == {1}
        assert states(world).keys() == {user.encode() for user in stay}
        assert sorted(letters(world), key=repr) == sorted(kept, key=repr)
        for user in go:
            send.event(user, 2, now_ms() - 3_600_000)
        accounts = wait_for_outcomes(world, send.flushed(), worker.log)
        assert states(world).keys() == {user.encode() for user in stay}
        assert (accounts.applied, accounts.dead_lettered) == (60, 100)


def check_fenced(world: Settings, contents: list[int], refused: int, kept: int) -> None:
    """The record holds exactly these contents; so many letters without any data, so many with."""
    record = states(world)[VICTIM.encode()]
    assert record.header["total"] == len(contents)
    expected = unit_vectors(CONTENTS, D)[contents].astype(np.float32).sum(axis=0)
    np.testing.assert_allclose(record.vector, expected, rtol=1e-5, atol=1e-5)
    found = [(key, value, headers) for _, key, value, headers in letters(world)]
    empty = [headers for key, value, headers in found if key is None and value is None]
    assert {headers["stream-app-reason"] for headers in empty} == {b"erased"}
    assert all(name.startswith("stream-app-") for headers in empty for name in headers)
    assert (len(empty), len(found) - len(empty)) == (refused, kept)
