"""The state path's part of the suite: everybody over the same events, round by round, on one warm broker."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import alternatives
import numpy as np
from aiokafka import AIOKafkaConsumer
from alternatives import say, skipping
from figures import (
    AT_LEAST_ONCE,
    EXACTLY_ONCE,
    FAUST,
    KAFKA_STREAMS,
    OURS,
    PLAIN,
    QUIX,
    closed_form,
    is_closed_form,
    rates,
    state_path,
    streams_name,
)
from numpy.typing import NDArray
from sizes import Sizes
from state_path import START_MS, TOPICS, drawn, drawn_vectors, produce, run_faust, run_ours

from stream_app.kafka.admin import create_topics
from stream_app.kafka.broker import LocalBroker, free_port
from stream_app.kafka.clients import admin_client
from stream_app.kafka.connection import aiokafka_options
from stream_app.kafka.guard import die_with_parent
from stream_app.settings import Settings, build

WEIGHTS = {"likes": 1.0, "comments": 2.0, "shares": 3.0}
HALF_LIFE_MS = 7 * 86_400_000.0
CHECKED_USERS = 5
DIMENSIONS = 384
PASS_BOUND_S = 600.0
BROKER = {"log.segment.delete.delay.ms": "1000"}
"""Deleted topics leave the disk at once: a round writes gigabytes of changelogs."""

Contender = Callable[[Settings, Path], dict[str, float]]
Expected = dict[str, tuple[float, float, NDArray[np.float64]]]
"""User → the closed form."""
Samples = list[tuple[float, float, float]]


def measure(sizes: Sizes, skipped: dict[str, str]) -> dict[str, Any]:
    """The summary's ``state_path``; contenders that cannot be had go to ``skipped``, with the reason."""
    with (
        LocalBroker(full_jit=True, properties=BROKER) as broker,
        tempfile.TemporaryDirectory(prefix="stream-app-bench-") as folder,
        contextlib.ExitStack() as stack,
    ):
        directory = Path(folder)
        vectors = drawn_vectors(DIMENSIONS)
        np.save(directory / "vectors.npy", vectors.astype(np.float32))
        expected = expected_states(sizes)
        contenders: dict[str, Contender] = {
            PLAIN: lambda settings, _: asyncio.run(count_only(settings, sizes.events)),
            OURS: lambda settings, place: run_ours(settings, sizes.events, place, None),
            FAUST: lambda settings, place: run_faust(settings, sizes.faust_events, place),
        }
        with skipping(skipped, QUIX):
            contenders[QUIX] = quix(sizes, directory / "vectors.npy", expected)
        with skipping(skipped, KAFKA_STREAMS):
            jvm = stack.enter_context(StreamsJvm(broker.address, directory, sizes.events, expected))
            contenders |= {variant.name: jvm.contender(variant) for variant in VARIANTS}
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        with topics(broker.address, "warm-", sizes) as settings:
            say("warming the broker, and Kafka Streams' JVM …")
            for name in (PLAIN, OURS, *warm_up(contenders, sizes)):
                run(name, contenders[name], settings, directory)
        for number in range(sizes.repeats):
            with topics(broker.address, f"round{number}-", sizes) as settings:
                for name, contender in contenders.items():
                    runs[name].append(run(name, contender, settings, directory))
    return {"events": sizes.events, "users": sizes.users, **state_path(runs)}


def warm_up(contenders: Iterable[str], sizes: Sizes) -> Iterator[str]:
    """Variants of Kafka Streams until more than ``jit_events`` are done."""
    variants = [name for name in contenders if name.startswith(KAFKA_STREAMS)]
    # every third: the first three have both guarantees, the cache on and off, one thread and two
    order = itertools.islice(itertools.cycle(variants), 0, None, 3)
    return itertools.islice(order, sizes.jit_events // sizes.events + 1 if variants else 0)


def run(name: str, contender: Contender, settings: Settings, directory: Path) -> dict[str, float]:
    """One run in a directory of its own, shown as it comes."""
    with tempfile.TemporaryDirectory(dir=directory) as place:
        os.link(directory / "vectors.npy", Path(place) / "vectors.npy")
        figures = contender(settings, Path(place))
    say(f"{name:52} {figures['events_per_s']:12,.0f} events/s {figures['cpu_us']:10.1f} µs")
    return figures


@contextlib.contextmanager
def topics(address: str, prefix: str, sizes: Sizes) -> Iterator[Settings]:
    """Topics of one round with all events; they and what was derived from them are deleted afterwards."""
    settings = build(
        {
            "kafka": {"broker": address, "app_id": prefix + "app", "topic_prefix": prefix},
            "observability": {"port": free_port()},
        }
    )
    create_topics(settings)
    say(f"producing {sizes.events:,} events of {sizes.users:,} users …")
    asyncio.run(produce(settings, sizes.events, sizes.users, drawn_vectors(DIMENSIONS)))
    yield settings
    admin = admin_client(settings)
    admin.delete_topics([name for name in admin.list_topics() if name.startswith(prefix)])
    admin.close()


def expected_states(sizes: Sizes) -> Expected:
    """The closed form of some users of the backlog."""
    who, what = drawn(sizes.events, sizes.users)
    vectors = drawn_vectors(DIMENSIONS).astype(np.float64)
    weights = np.array([WEIGHTS[topic] for topic in TOPICS])
    expected: Expected = {}
    for user in np.unique(who)[:CHECKED_USERS].tolist():
        events = np.flatnonzero(who == user)
        expected[f"user-{user:06d}"] = closed_form(
            (START_MS + 500.0 * events).astype(np.float64),
            weights[events % len(TOPICS)],
            vectors[what[events]],
            HALF_LIFE_MS,
        )
    return expected


async def count_only(settings: Settings, events: int) -> dict[str, float]:
    """The ceiling: aiokafka's consumer, with default settings, that counts what it reads."""
    names = sorted({settings.topic_name(topic) for topic in TOPICS})
    consumer = AIOKafkaConsumer(
        *names, **aiokafka_options(settings, "benchmark"), auto_offset_reset="earliest"
    )
    await consumer.start()
    count = 0
    samples: Samples = [(time.monotonic(), time.process_time(), count)]
    while count < events:
        for records in (await consumer.getmany(timeout_ms=1000)).values():
            count += len(records)
        samples.append((time.monotonic(), time.process_time(), count))
    await consumer.stop()
    return rates(samples)


def followed(name: str, process: subprocess.Popen[str], expected: Expected) -> dict[str, float]:
    """Rates of a process that prints ``progress``, ``state`` and ``done``, its states checked.

    Raises SystemExit when it ends early, takes longer than a bound, or a state is not the closed form.
    """
    bound = threading.Timer(PASS_BOUND_S, process.kill)  # its output ends then, and so does the loop
    bound.start()
    samples: Samples = []
    states: dict[str, bytes] = {}
    lines: Iterable[str] = process.stdout or ()
    try:
        for line in lines:
            match line.split():
                case ["progress", done, when, cpu] if float(done) > 0:
                    samples.append((float(when), float(cpu), float(done)))
                case ["state", user, *value]:
                    states[user] = base64.b64decode("".join(value))
                case ["done"]:
                    break
        else:
            raise SystemExit(f"{name} ended, or took too long; its log is shown above")
    finally:
        bound.cancel()
    wrong = [user for user in expected if not is_closed_form(states.get(user, b""), expected[user])]
    if wrong:
        raise SystemExit(f"{name}: the state of {', '.join(wrong)} is not the closed form")
    return rates(samples)


def quix(sizes: Sizes, vectors: Path, expected: Expected) -> Contender:
    """Quix Streams in its own environment. Raises UnavailableError."""
    python = alternatives.python_with("quix", alternatives.QUIX)
    script = Path(__file__).with_name("idiomatic_quix.py")

    def contender(settings: Settings, place: Path) -> dict[str, float]:
        arguments = (settings.kafka.broker, settings.kafka.topic_prefix, vectors, place / "quix")
        process = started(
            [str(python), str(script), *map(str, arguments), str(sizes.events), ",".join(expected)], None
        )
        try:
            return followed(QUIX, process, expected)
        finally:
            ended(process)

    return contender


@dataclass(frozen=True)
class Variant:
    """How Kafka Streams is configured."""

    guarantee: str
    cache: bool
    threads: int

    @property
    def name(self) -> str:
        """As in the table."""
        return streams_name(self.guarantee, self.cache, self.threads)


VARIANTS = [
    Variant(guarantee, cache, threads)
    for guarantee in (AT_LEAST_ONCE, EXACTLY_ONCE)
    for cache in (False, True)
    for threads in (1, 2)
]
GUARANTEES = {AT_LEAST_ONCE: "at_least_once", EXACTLY_ONCE: "exactly_once_v2"}


class StreamsJvm:
    """One JVM that runs pass after pass of Kafka Streams, so that its code is compiled only once."""

    def __init__(
        self,
        address: str,
        directory: Path,
        events: int,
        expected: Expected,
    ) -> None:
        """Raises UnavailableError without Java or Maven, or when it cannot be built."""
        classpath = alternatives.kafka_streams()
        raw = directory / "vectors.raw"
        np.load(directory / "vectors.npy").tofile(raw)
        self._expected = expected
        self._passes = itertools.count()
        self._process = started(
            [
                *(alternatives.java(), "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"),
                *("-cp", classpath, "benchmark.Benchmark", address, str(raw), str(DIMENSIONS)),
                *(str(directory / "streams"), str(events), ",".join(expected)),
            ],
            subprocess.PIPE,
        )

    def contender(self, variant: Variant) -> Contender:
        """A pass of one variant."""

        def run_pass(settings: Settings, _place: Path) -> dict[str, float]:
            stdin: IO[str] | None = self._process.stdin
            assert stdin is not None  # noqa: S101  # for the type checker: it is a pipe
            words = (
                *(f"streams{next(self._passes)}", settings.kafka.topic_prefix),
                *(GUARANTEES[variant.guarantee], "on" if variant.cache else "off", variant.threads),
            )
            print(*words, file=stdin, flush=True)
            return followed(variant.name, self._process, self._expected)

        return run_pass

    def __enter__(self) -> StreamsJvm:
        return self

    def __exit__(self, *exception: object) -> None:
        ended(self._process)


def started(command: list[str], stdin: int | None) -> subprocess.Popen[str]:
    """A contender's process, which never outlives us."""
    return subprocess.Popen(  # noqa: S603  # our own command
        command,
        stdin=stdin,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )


def ended(process: subprocess.Popen[str]) -> None:
    """Stop a contender, by force after a bound."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
