"""Interests workers as processes against the test broker, and what they are fed and checked with."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
from kafka import KafkaProducer
from numpy.typing import NDArray

from stream_app.content.model import model_id
from stream_app.content.vectors import ContentVector, encode
from stream_app.demo.roles import environment
from stream_app.interests.record import InterestRecord, decode
from stream_app.kafka import clients
from stream_app.replay.accounting import Outcomes, read_outcomes
from stream_app.settings import Settings
from tests.interests.closed_form import Sent, closed_form

DAY_MS = 86_400_000
NOW_MS = 1_750_000_000_000
TOPIC_OF_WEIGHT = {1.0: "likes", 2.0: "comments", 3.0: "shares"}
PATIENCE_S = 90.0


class Worker:
    """One worker process with a state directory and a log of its own."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        directory: Path,
        role: str = "interests",
        *,
        module: str = "stream_app",
        more: Mapping[str, str] | None = None,
    ) -> None:
        """``module`` stands for ``stream_app`` where a worker is not as it should be; ``more`` is
        added to its environment."""
        interests = msgspec.structs.replace(settings.interests, data_dir=str(directory / name))
        used = msgspec.structs.replace(settings, interests=interests)
        self._environment = os.environ | environment(used) | (more or {})
        self._module = module
        self._role = role
        self.log = directory / f"{name}.log"

    def start(self) -> None:
        command = [sys.executable, "-m", self._module, "worker", self._role, "--end-with-parent"]
        with self.log.open("a") as log:
            self._process = subprocess.Popen(command, env=self._environment, stderr=log)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self._process.terminate()
        return self._process.wait(60)

    def end(self) -> int:
        """It ends by itself; the exit status."""
        return self._process.wait(PATIENCE_S)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_for(self, *texts: str) -> None:
        """Until the log has a line with one of ``texts``; no longer than the worker runs."""
        what = " or ".join(map(repr, texts))

        def said() -> bool:
            log = self.log.read_text()
            return any(text in log for text in texts)

        wait_until(lambda: said() or not self.running, f"{what} in the log", self.log)
        assert said(), f"ended without {what}:\n{self.log.read_text()[-3000:]}"


@contextlib.contextmanager
def workers(settings: Settings, directory: Path, *names: str) -> Iterator[list[Worker]]:
    """Started workers, gone at the end."""
    made = [Worker(settings, name, directory) for name in names]
    try:
        for worker in made:
            worker.start()
        yield made
    finally:
        for worker in made:
            with contextlib.suppress(AttributeError):
                worker.signal(signal.SIGCONT)
                worker.kill()


def wait_until(true: Callable[[], bool], what: str, log: Path | None = None) -> None:
    """Bounded; says what was waited for, and shows the log's end."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > deadline:
            tail = log.read_text()[-3000:] if log is not None else ""
            raise AssertionError(f"waited {PATIENCE_S:.0f} s for: {what}\n{tail}")
        time.sleep(0.1)


def unit_vectors(count: int, dimensions: int) -> NDArray[np.float16]:
    vectors = np.random.default_rng(5).standard_normal((count, dimensions)).astype(np.float32)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def publish_contents(settings: Settings, vectors: NDArray[np.float16]) -> None:
    """Contents c0, c1, … as the content worker would publish them."""
    with clients.producer(settings) as producer:
        for number, vector in enumerate(vectors):
            record = ContentVector(model_id(settings), "", NOW_MS, NOW_MS, vector)
            topic = settings.topic_name("content-vectors")
            producer.send(topic, key=b"c%d" % number, value=encode(record))


def history(events: int, users: int, contents: int, seed: int = 1) -> list[Sent]:
    """Engagements over a month, some sent twice, some undone, some late."""
    rng = random.Random(seed)
    sent: list[Sent] = []
    for number in range(events):
        user, content = b"user-%d" % rng.randrange(users), rng.randrange(contents)
        time_ms = NOW_MS - rng.randrange(30 * DAY_MS)
        sent.append(Sent(user, content, number, time_ms, rng.choice([1.0, 1.0, 2.0, 3.0])))
        if rng.random() < 0.03:
            sent.append(sent[-1])
        if rng.random() < 0.02:
            sent.append(Sent(user, content, number, time_ms + 1000, sent[-1].weight, undo=True))
    return sent


def produce(settings: Settings, sent: list[Sent]) -> None:
    """Send them in order."""
    with clients.producer(settings) as producer:
        for event in sent:
            produce_one(producer, settings, event)


def produce_one(producer: KafkaProducer, settings: Settings, event: Sent, *, keyed: bool = True) -> None:
    """Send one event to its action's topic, keyed by user or, to anywhere, without a key."""
    value = {
        "event_id": f"e{event.event}",
        "user_id": event.user.decode(),
        "content_id": f"c{event.content}",
        "occurred_at": event.time,
        **({"undo": True} if event.undo else {}),
    }
    topic = settings.topic_name(TOPIC_OF_WEIGHT[event.weight])
    producer.send(topic, key=event.user if keyed else None, value=json.dumps(value).encode())


def states(settings: Settings) -> dict[bytes, InterestRecord]:
    """Every user's record as it stands on the interests topic."""
    newest: dict[bytes, bytes | None] = {}
    for record in clients.read_topic(settings, settings.topic_name("interests")):
        newest[record.key] = record.value
    return {key: decode(value) for key, value in newest.items() if value is not None}


def wait_for_outcomes(settings: Settings, count: int, log: Path | None = None) -> Outcomes:
    """Until so many input records are accounted for and none waits; returns the accounts."""
    last: list[Outcomes] = []

    def settled() -> bool:
        last[:] = [read_outcomes(settings)]
        return last[0].accounted >= count and last[0].retrying == 0

    try:
        wait_until(settled, f"{count} records accounted for", log)
    except AssertionError as error:
        raise AssertionError(f"{error}\nlast seen: {last}") from None
    return last[0]


def worst_error(settings: Settings, sent: list[Sent], vectors: NDArray[np.float16]) -> float:
    """Largest relative error of any user's vector and mass; checks that the users are the same."""
    found = states(settings)
    half_life_ms = settings.interests.half_life_days * DAY_MS
    expected = closed_form(sent, vectors.astype(np.float32), half_life_ms)
    assert found.keys() == expected.keys()
    worst = 0.0
    for user, (t_ref, mass, total) in expected.items():
        record = found[user]
        assert record.t_ref == t_ref
        scale = float(np.linalg.norm(total))
        if scale > 0:
            worst = max(worst, float(np.linalg.norm(record.vector - total)) / scale)
            worst = max(worst, abs(record.mass - mass) / mass)
        else:
            assert not record.vector.any()
    return worst


def metric(port: int, name: str) -> float:
    """Sum of a metric's samples on a worker's page."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))
