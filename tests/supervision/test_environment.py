"""Workers in a world that is not ready for them: what an operator reads, what is to be done, how they end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream_app import worker
from stream_app.chaos.disks import disk
from stream_app.chaos.proxy import Proxy
from stream_app.demo.roles import environment
from stream_app.errors import BrokerUnavailableError
from stream_app.kafka import diagnosis
from stream_app.kafka.admin import create_topics, ensure_topics
from stream_app.observability.health import Health
from stream_app.settings import ENV_PREFIX, Settings, build
from tests.conftest import RunningBroker
from tests.interests.workers import Worker

BOUND_S = 120
"""Of a whole start on a busy machine: a worker that goes on for ever is what it is to catch."""
NOWHERE = "stream-app.invalid:9092"


@dataclass(frozen=True)
class End:
    """Of a worker that could not start."""

    status: int
    said: str
    """All of it, on stderr."""

    @property
    def last(self) -> str:
        return self.said.splitlines()[-1]


def world(broker: str, section: str = "kafka", **changes: Any) -> Settings:
    """Settings with topics of their own, and the default log level; ``changes`` are to one section."""
    name = f"t{uuid.uuid4().hex[:10]}"
    sections: dict[str, dict[str, Any]] = {
        "kafka": {"broker": broker, "app_id": name, "topic_prefix": f"{name}."}
        | {"partitions": 2, "shared_partitions": 2, "replication_factor": 1},
        "observability": {"port": 0},
        "serving": {"port": 0},
        "content": {"dimensions": 16, "capacity": 100},
    }
    return build(sections | {section: sections.get(section, {}) | changes})


def command(role: str) -> list[str]:
    """A worker's, as a user gives it."""
    return [sys.executable, "-m", "stream_app", "worker", role]


class Ends:
    """Workers that start side by side, and how each of them ended."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._started: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, settings: Settings, arguments: list[str]) -> int:
        """The process id."""
        # the broker that the tests may have been given is not this worker's
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
        process = subprocess.Popen(
            arguments, env=inherited | environment(settings), stderr=subprocess.PIPE, text=True
        )
        self._stack.callback(process.__exit__, None, None, None)
        self._stack.callback(process.kill)
        self._started[name] = process
        return process.pid

    def of(self, name: str) -> End:
        """Waits for it."""
        process = self._started[name]
        _, said = process.communicate(timeout=BOUND_S)
        return End(process.returncode, said)


@pytest.fixture(scope="module")
def taken() -> Iterator[int]:
    """A port on which somebody listens, and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        yield mute.getsockname()[1]


@pytest.fixture(scope="module")
def free() -> Iterator[int]:
    """A port on which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@dataclass(frozen=True)
class Fault:
    """What a worker meets, and what it is to say in its last line."""

    name: str
    code: str
    status: int
    cause: str
    remedy: str


FAULTS = (
    Fault(
        "no broker",
        "broker_unavailable",
        1,
        "no Kafka broker answers at 127.0.0.1:{free},127.0.0.1:{taken},stream-app.invalid:9092 "
        "(connection refused at 127.0.0.1:{free}, connected, but no answer within 3 s at 127.0.0.1:{taken}, "
        "the name does not resolve at stream-app.invalid:9092)",
        "start one (`stream-app broker`), correct kafka.broker, or set STREAM_APP_BROKER=host:port",
    ),
    Fault(
        "topic that cannot be created",
        "configuration",
        2,
        "impressions cannot be created at {broker} (InvalidReplicationFactorError)",
        "kafka.replication_factor = 9 is more than there are brokers; set it lower, or start more",
    ),
    Fault(
        "other number of partitions",
        "topic_mismatch",
        2,
        "interests has 2 partitions, but kafka.partitions = 4",
        "set kafka.partitions = 2",
    ),
    Fault(
        "full disk",
        "state_directory",
        1,
        "cannot write {full}",
        "Free space there, or set interests.data_dir to another place, and start again",
    ),
    Fault(
        "no directory",
        "state_directory",
        1,
        "cannot make {file}/",
        "set interests.data_dir to a place that can be written",
    ),
    Fault(
        "port taken",
        "configuration",
        2,
        "observability.host = '127.0.0.1', observability.port = {taken}: cannot listen there "
        "(Address already in use)",
        "set observability.port to one that is free (0 takes any)",
    ),
)


@dataclass(frozen=True)
class Met:
    """The workers that met the faults, and the names that their messages must have."""

    ends: Ends
    names: dict[str, str]


@pytest.fixture(scope="module")
def met(
    broker: RunningBroker, taken: int, free: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Met]:
    """All of them at once: what takes the time is Python's imports."""
    at, directory = broker.address, tmp_path_factory.mktemp("faults")
    file = directory / "file"
    file.touch()
    with contextlib.ExitStack() as stack:
        ends = Ends(stack)
        nobody = f"127.0.0.1:{free},127.0.0.1:{taken},{NOWHERE}"
        absent = world(nobody, connect_timeout_s=1.0)
        ends.start("no broker", absent, command("ranker"))
        refused = world(at, replication_factor=9)
        ends.start("topic that cannot be created", refused, command("trainer"))
        other = world(at)
        create_topics(other)
        other = msgspec.structs.replace(other, kafka=msgspec.structs.replace(other.kafka, partitions=4))
        ends.start("other number of partitions", other, command("ranker"))
        small = disk(directory / "disk")
        stack.callback(small.close)
        full = world(at, "interests", data_dir=str(directory / "disk"))
        small.fill(ends.start("full disk", full, small.inside(command("interests"))))
        unusable = world(at, "interests", data_dir=str(file))
        ends.start("no directory", unusable, command("serve"))
        twice = world(at, "observability", port=taken)
        ends.start("port taken", twice, command("content"))
        names = {"broker": at, "free": free, "taken": taken, "full": directory / "disk", "file": file}
        yield Met(ends, {name: str(value) for name, value in names.items()})


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_worker_says_what_is_wrong_and_what_to_do_and_ends(fault: Fault, met: Met) -> None:
    end = met.ends.of(fault.name)
    assert end.last.startswith(f"stream-app: [{fault.code}] "), end.said
    assert fault.cause.format(**met.names) in end.last
    assert fault.remedy in end.last
    assert end.status == fault.status
    assert "Traceback" not in end.said


def test_a_worker_waits_for_a_broker_says_so_and_goes_on(settings: Settings, tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        away = msgspec.structs.replace(
            settings,
            kafka=msgspec.structs.replace(settings.kafka, broker=f"127.0.0.1:{port}"),
            serving=msgspec.structs.replace(settings.serving, port=0),
        )
        more = {f"{ENV_PREFIX}BROKER": away.kafka.broker}
        serve = Worker(away, "serve", tmp_path, "serve", more=more)
        serve.start()
        try:
            serve.wait_for(f"no Kafka broker answers at 127.0.0.1:{port} (connection refused): ")
            serve.wait_for("trying again in 2 s")
            bound.close()
            proxy = Proxy(port, int(settings.kafka.broker.rpartition(":")[2]))
            proxy.start()
            try:
                serve.wait_for("answering on port")
                assert serve.stop() == 0
            finally:
                proxy.stop()
        finally:
            serve.kill()
    assert "Traceback" not in serve.log.read_text()


def test_a_slow_broker_is_called_slow_and_waited_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    proxy = Proxy(port, int(settings.kafka.broker.rpartition(":")[2]))
    proxy.start()
    try:
        proxy.hang(1.0)
        monkeypatch.setattr(worker, "WAITING_S", 0.2)
        address = f"127.0.0.1:{port}"
        slow = msgspec.structs.replace(
            settings, kafka=msgspec.structs.replace(settings.kafka, broker=address)
        )
        with caplog.at_level(logging.INFO, "stream_app"):
            asked = functools.partial(ensure_topics, slow)
            waiting = worker._once_the_broker_answers(slow, Health(slow), asked)
            asyncio.run(asyncio.wait_for(waiting, BOUND_S))
    finally:
        proxy.stop()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any(line.startswith(f"the broker at {address} is slow: ") for line in said)
    assert all("see to its load and to the network" in line for line in said if "is slow" in line)


def test_a_worker_that_is_not_ready_says_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "WAITING_S", 0.01)
    health = Health(Settings())
    health.waiting_for = "the content index"

    async def waiting() -> None:
        task = asyncio.create_task(worker._say_what_is_waited_for(health))
        async with asyncio.timeout(BOUND_S):
            while len(caplog.records) < 2:  # noqa: ASYNC110  # there is no event for it
                await asyncio.sleep(0.01)
            health.ready = True
            caplog.clear()
            await asyncio.sleep(0.1)
        task.cancel()

    with caplog.at_level(logging.INFO, "stream_app"):
        asyncio.run(waiting())
    assert [record.getMessage() for record in caplog.records] == []


def hang_up(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            server.accept()[0].close()


def test_how_a_broker_is_silent(
    free: int, taken: int, broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "TIMEOUT_S", 1.0)

    def cause(address: str) -> str:
        error = diagnosis.cause(world(address), TimeoutError())
        assert isinstance(error, BrokerUnavailableError)
        return str(error)

    assert f"127.0.0.1:{free} (connection refused): start one" in cause(f"127.0.0.1:{free}")
    assert "(connected, but no answer within 1 s): start" in cause(f"127.0.0.1:{taken}")
    assert "(the name does not resolve): start one" in cause(NOWHERE)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=hang_up, args=(server,), daemon=True).start()
        closing = f"127.0.0.1:{server.getsockname()[1]}"
        assert f"{closing} (what listens there hangs up, or is no Kafka): start one" in cause(closing)
        server.shutdown(socket.SHUT_RDWR)
    reached = cause(broker.address)
    assert reached.startswith(f"the broker at {broker.address} answers, but ")
    assert "advertised.listeners" in reached
