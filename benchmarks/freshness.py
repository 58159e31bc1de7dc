"""Event produced → slate in a subscriber's hand: all roles and the broker on this machine.

    python benchmarks/suite.py --parts freshness [--contents N] [--rates 10 100] [--seconds S] [--backlog N]

Contents are written as finished vectors, so that encoding takes no part. Latency is from the producer's
clock at the sending of an event to the subscriber's when the slate that names this event as its cause is in
hand. Events that a newer one of the same user superseded are named by no slate: which share is named
stands beside it. A backlog is written at once, and drained when no slate has come for a while.
"""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from alternatives import say
from figures import freshness, latencies
from kafka import KafkaConsumer, KafkaProducer
from sizes import Sizes
from state_path import cpu_seconds

from stream_app.content.model import model_id
from stream_app.content.vectors import ContentVector, encode
from stream_app.demo.roles import Roles
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.kafka.broker import LocalBroker
from stream_app.kafka.connection import kafka_python_options
from stream_app.settings import Settings, build

USERS = 2_000
TOPICS = ("likes", "likes", "comments", "shares")
SKEW = 0.5
"""Shape of the Pareto law that contents are chosen by: few are engaged with by many."""
WARM_UP_RATE, WARM_UP_S = 50, 15.0
POLL_MS = 20
QUIET_S, LONGEST_DRAIN_S = 3.0, 120.0
"""A load is over when no slate has come for so long, or after the bound."""

Place = tuple[str, int, int]
"""Topic, partition and offset of an event."""


class Cause(msgspec.Struct):
    """What a slate says it was made for."""

    topic: str
    partition: int
    offset: int


class Slate(msgspec.Struct):
    """What is read of a slate."""

    caused_by: Cause | None = None


class Subscriber:
    """Reads slates on a thread of its own, and notes when each came."""

    def __init__(self, settings: Settings) -> None:
        self.arrived: dict[Place, float] = {}
        """Event → arrival of the first slate that names it: one that is made anew names it again."""
        self.last = 0.0
        """When the newest of them came."""
        self._consumer = KafkaConsumer(
            settings.topic_name("recommendations"),
            **kafka_python_options(settings),
            isolation_level="read_committed",
            auto_offset_reset="latest",
            fetch_max_wait_ms=50,
        )
        self._consumer.poll(1000)  # it has its partitions now, and misses nothing that comes from here on
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        decoder = msgspec.json.Decoder(Slate)
        while not self._ended.is_set():
            for records in self._consumer.poll(POLL_MS).values():
                now = time.time()
                for record in records:
                    if record.value is None:
                        continue
                    if cause := decoder.decode(record.value).caused_by:
                        place = (cause.topic, cause.partition, cause.offset)
                        if place not in self.arrived:
                            self.arrived[place] = self.last = now

    def wait_until_quiet(self) -> None:
        """Return once no slate for a new event has come for a while, or after a bound."""
        begun = time.time()
        while time.time() - max(begun, self.last) < QUIET_S and time.time() - begun < LONGEST_DRAIN_S:
            time.sleep(0.05)

    def clear(self) -> None:
        """Forget what came so far; between two loads, while nothing comes."""
        self.arrived = {}

    def close(self) -> None:
        """End the thread and the connection."""
        self._ended.set()
        self._thread.join()
        self._consumer.close()


class Load:
    """Events of random users on random contents, each with the time of its sending."""

    def __init__(self, settings: Settings, producer: KafkaProducer, contents: int, users: int) -> None:
        self.sent: dict[Place, float] = {}
        self._settings, self._producer = settings, producer
        self._contents, self._users = contents, users
        self._random = random.Random(2)  # noqa: S311  # a load, no secret
        self._number = 0

    def offer(self, rate: float, seconds: float) -> tuple[int, float]:
        """Events at a steady rate; how many were sent, and in which time (s)."""
        begun, count = time.monotonic(), 0
        while (passed := time.monotonic() - begun) < seconds:
            while count < rate * passed:
                self._send()
                count += 1
            time.sleep(0.001)
        self._producer.flush()
        return count, time.monotonic() - begun

    def burst(self, count: int) -> tuple[int, float]:
        """So many events as fast as they can be written; how many, and in which time (s)."""
        begun = time.monotonic()
        for _ in range(count):
            self._send()
        self._producer.flush()
        return count, time.monotonic() - begun

    def _send(self) -> None:
        user = b"user-%05d" % self._random.randrange(self._users)
        value = {
            "event_id": f"e{self._number}",
            "user_id": user.decode(),
            "content_id": f"c{int(self._random.paretovariate(SKEW)) % self._contents}",
            "occurred_at": time.time_ns() // 1_000_000,
        }
        self._number += 1
        now, sent = time.time(), self.sent
        topic = self._settings.topic_name(self._random.choice(TOPICS))
        future = self._producer.send(topic, key=user, value=msgspec.json.encode(value))
        future.add_callback(lambda at: sent.__setitem__((at.topic, at.partition, at.offset), now))

    def clear(self) -> None:
        """Forget what was sent."""
        self.sent = {}


@contextmanager
def running(contents: int, directory: Path) -> Iterator[tuple[Settings, KafkaProducer, dict[str, int]]]:
    """A broker with its full compiler and all roles, ready, over so many contents; process ids by name."""
    with LocalBroker(full_jit=True) as broker:
        settings = build(
            {
                "kafka": {"broker": broker.address},
                "content": {"capacity": max(contents, 100_000)},
                "observability": {"port": 0},
            }
        )
        create_topics(settings)
        producer = clients.producer(settings)
        rng, now, model = np.random.default_rng(1), time.time_ns() // 1_000_000, model_id(settings)
        for number in range(contents):
            vector = rng.standard_normal(settings.content.dimensions).astype(np.float32)
            record = ContentVector(
                model,
                f"author-{number % 500}",
                now,
                now,
                (vector / np.linalg.norm(vector)).astype(np.float16),
            )
            producer.send(settings.topic_name("content-vectors"), key=b"c%d" % number, value=encode(record))
        producer.flush()
        roles = Roles(settings, directory, keep=False)
        try:
            roles.start()
            roles.wait_until_ready(say)
            yield settings, producer, {"broker": broker.pid, **roles.pids, "this program": os.getpid()}
        finally:
            roles.stop()
            producer.close()


def measure(sizes: Sizes, users: int = USERS) -> list[dict[str, Any]]:
    """The summary's ``freshness``: every rate and a backlog, for each number of contents."""
    entries = []
    for contents in sizes.contents:
        with (
            tempfile.TemporaryDirectory(prefix="stream-app-freshness-", ignore_cleanup_errors=True) as folder,
            running(contents, Path(folder)) as (settings, producer, pids),
        ):
            entries += _measure(settings, producer, pids, contents, sizes, users)
    return entries


def _measure(
    settings: Settings,
    producer: KafkaProducer,
    pids: dict[str, int],
    contents: int,
    sizes: Sizes,
    users: int,
) -> list[dict[str, Any]]:
    load, subscriber = Load(settings, producer, contents, users), Subscriber(settings)
    entries = []
    try:
        say("warming up …")
        load.offer(WARM_UP_RATE, WARM_UP_S)
        subscriber.wait_until_quiet()
        for rate in (*sizes.rates, None):
            runs = []
            for _ in range(sizes.repeats):
                load.clear()
                subscriber.clear()
                runs.append(_one(load, subscriber, pids, rate, sizes))
            kind, offered = ("steady", rate) if rate else ("backlog", runs[0]["events_per_s"])
            entries.append(freshness(contents, kind, offered, runs))
            say(line(entries[-1]))
    finally:
        subscriber.close()
    return entries


def _one(
    load: Load, subscriber: Subscriber, pids: dict[str, int], rate: int | None, sizes: Sizes
) -> dict[str, Any]:
    """One load until its last slate, as :func:`figures.freshness` takes it.

    Slates a second count those that events of this load caused, until the last of them: a lag makes them
    fewer, and what is made anew in the background counts for nothing.
    """
    before, begun = {name: cpu_seconds(pid) for name, pid in pids.items()}, time.time()
    events, seconds = load.burst(sizes.backlog) if rate is None else load.offer(rate, sizes.seconds)
    subscriber.wait_until_quiet()
    named = [subscriber.arrived[place] for place in load.sent if place in subscriber.arrived]
    ended = max([begun + seconds, *named])
    return {
        "events": events,
        "events_per_s": events / seconds,
        "slates_per_s": len(named) / (ended - begun),
        "latencies_ms": [1000 * s for s in latencies(load.sent, subscriber.arrived)],
        "cpu_s": {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()},
    }


def line(entry: dict[str, Any]) -> str:
    """An entry of the summary on one line."""
    p50, p99 = (f"{ms:,.0f}" if (ms := entry[name]) is not None else "-" for name in ("p50_ms", "p99_ms"))
    cpu = ", ".join(f"{name} {seconds:.1f}" for name, seconds in entry["cpu_s"].items())
    offered = f"{entry['load']} {entry['offered_events_per_s']:,.0f} events/s"
    return (
        f"{entry['contents']:>8,} contents, {offered:>26}: {entry['slates_per_s']:,.0f} slates/s, "
        f"p50 {p50} ms, p99 {p99} ms, {entry['named_share']:.0%} named; processor s: {cpu}"
    )
