"""Worker processes that cannot go on: each says so and ends with a status that gets it started anew."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from stream_app.demo.roles import environment
from stream_app.errors import StalledError
from stream_app.kafka.broker import LocalBroker
from stream_app.settings import Settings
from tests.interests.closed_form import Sent
from tests.interests.workers import NOW_MS, produce, publish_contents, unit_vectors, wait_until

D = 16
STALL_S = 6.0
STALLED = StalledError.exit_status


@pytest.fixture
def world(settings: Settings, topics: list[str]) -> Settings:
    return small(settings)


def small(settings: Settings) -> Settings:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return msgspec.structs.replace(
        settings,
        content=msgspec.structs.replace(settings.content, dimensions=D, capacity=100),
        kafka=msgspec.structs.replace(settings.kafka, session_timeout_s=6.0),
        observability=msgspec.structs.replace(settings.observability, port=port, stall_timeout_s=STALL_S),
    )


class Faulty:
    """A worker process with a fault."""

    def __init__(self, world: Settings, fault: str, directory: Path, role: str = "interests") -> None:
        self.log = directory / f"{fault.replace(':', '-')}.log"
        self._page = f"http://127.0.0.1:{world.observability.port}"
        command = [sys.executable, "-m", "tests.supervision.faulty_worker", fault, "worker", role]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=os.environ | environment(world), stderr=log)

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.log.read_text() or self.ended, repr(text), self.log)
        assert text in self.log.read_text(), self.log.read_text()[-2000:]

    def wait_until_ready(self) -> None:
        wait_until(lambda: self._status("/readyz")[0] == 200, "readiness", self.log)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def cause(self) -> str:
        """Of the first 503 on ``/healthz``; fails when the process ends without one."""
        while not self.ended:
            status, text = self._status("/healthz")
            if status == 503:
                return str(json.loads(text)["cause"])
            time.sleep(0.05)
        raise AssertionError(self.log.read_text()[-3000:])

    def end(self) -> int:
        return self.process.wait(60)

    def _status(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self._page + path, timeout=2) as page:
                return page.status, page.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""


@contextmanager
def faulty(world: Settings, fault: str, directory: Path) -> Iterator[Faulty]:
    worker = Faulty(world, fault, directory)
    try:
        yield worker
    finally:
        worker.process.kill()
        worker.process.wait()


def send_events(world: Settings) -> None:
    publish_contents(world, unit_vectors(1, D))
    produce(world, [Sent(b"user-%d" % n, 0, n, NOW_MS, 1.0) for n in range(20)])


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("end_fetcher", "aiokafka's fetcher has ended"),
        ("hang_thread", "Faust's consumer thread has had work for|has records to read and has not moved"),
    ],
)
def test_a_worker_that_cannot_go_on_says_so_and_ends(
    world: Settings, tmp_path: Path, fault: str, cause: str
) -> None:
    with faulty(world, fault, tmp_path) as worker:
        worker.wait_until_ready()
        worker.process.send_signal(signal.SIGUSR1)
        assert re.search(cause, worker.cause())
        assert worker.end() == STALLED
        assert re.search(rf"stream-app: \[stalled\] .*({cause})", worker.log.read_text())


def test_background_work_that_ended_ends_the_worker(world: Settings, tmp_path: Path) -> None:
    with faulty(world, "end_flush", tmp_path) as worker:
        worker.wait_until_ready()
        worker.process.send_signal(signal.SIGUSR1)
        assert worker.end() == STALLED
        assert "flush has ended" in worker.log.read_text()


def test_an_event_loop_that_stands_still_ends_the_worker(world: Settings, tmp_path: Path) -> None:
    with faulty(world, "block_loop", tmp_path) as worker:
        worker.wait_until_ready()
        worker.process.send_signal(signal.SIGUSR1)
        assert worker.end() == STALLED
        log = worker.log.read_text()
        assert "the event loop has stood still" in log
        assert "in block_loop" in log


def test_an_end_that_takes_too_long_is_no_clean_end(world: Settings, tmp_path: Path) -> None:
    with faulty(world, "stop_soon", tmp_path) as worker:
        worker.wait_until_ready()
        worker.process.send_signal(signal.SIGUSR1)
        send_events(world)
        worker.wait_for("an agent hangs")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.end() == STALLED
        assert "did not come to rest within" in worker.log.read_text()


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[LocalBroker]:
    with LocalBroker(tmp_path / "broker") as broker:
        yield broker


def test_a_broker_that_stays_away_ends_the_worker(
    settings: Settings, mortal: LocalBroker, tmp_path: Path
) -> None:
    world = small(
        msgspec.structs.replace(
            settings, kafka=msgspec.structs.replace(settings.kafka, broker=mortal.address)
        )
    )
    with faulty(world, "end_fetcher", tmp_path) as worker:
        worker.wait_until_ready()
        mortal.kill()
        assert "the broker has not answered for" in worker.cause()
        assert worker.end() == STALLED
