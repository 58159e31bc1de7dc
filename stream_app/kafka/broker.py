"""A real Apache Kafka on this machine behind one small interface: start, address, stop, wipe.

KRaft mode, broker and controller in one process, without Docker or a system Java (see
:mod:`stream_app.kafka.distribution`). Tests, demo and ``stream-app broker`` use it;
``STREAM_APP_BROKER=host:port`` points them at another broker instead.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from stream_app.errors import BrokerUnavailableError
from stream_app.kafka import distribution, guard
from stream_app.settings import external_broker

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.02
# Below the range that systems hand out to outgoing connections, so that a broker which is killed and
# started again finds its port free.
PORTS = range(20_000, 32_000)
READY = "Kafka Server started"
CLUSTER_ID = "c3RyZWFtLWFwcC1sb2NhbA"  # any 16 bytes in base64
JAVA_OPTIONS = (
    "-Xmx2g",
    "-XX:+UseSerialGC",
    "--sun-misc-unsafe-memory-access=allow",  # Kafka's memory maps; only silences a warning
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
)
# The first compiler tier alone starts sooner and is right for a test or a demo; what runs for longer than
# some minutes pays twice for each request.
QUICK_START = ("-XX:TieredStopAtLevel=1",)

PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    # a killed broker that comes back waits for the end of its former session (default 9 s); much shorter
    # ones end by themselves on a busy machine
    "broker.session.timeout.ms": "5000",
    "broker.heartbeat.interval.ms": "500",
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.segment.bytes": "1048576",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.segment.bytes": "1048576",
    "share.coordinator.state.topic.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # a transaction of a killed worker is aborted this soon after its own time-out (default 10 s)
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "log.index.size.max.bytes": "1048576",
    "socket.request.max.bytes": "104857600",
}


class LocalBroker:
    """One Kafka process of ours.

    Without ``directory`` it keeps its records in a temporary one, which ``stop`` deletes; a given
    directory is kept, and a later broker on it finds its topics again. It listens on 127.0.0.1 only,
    and never outlives the process that started it. ``properties`` override the server's.

    Beside the plain listener, which brokers need among themselves, ``listeners`` names others and their
    security protocols; what these need (certificates, users) is among the properties. ``full_jit`` lets
    Java compile as far as it can, as a broker in earnest does: dearer for the first minute, then cheaper.
    """

    pid: int
    """Process id of the running Kafka."""

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int | None = None,
        properties: Mapping[str, str] | None = None,
        listeners: Mapping[str, str] | None = None,
        full_jit: bool = False,
    ) -> None:
        self._temporary = directory is None
        self._directory = directory
        self._port = port
        self._controller_port = 0
        self._overrides = dict(properties or {})
        self._protocols = dict(listeners or {})
        self._compiler = () if full_jit else QUICK_START
        self._listener_ports: dict[str, int] = {}
        self._guard: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        """``127.0.0.1:PORT``; known once started."""
        return f"127.0.0.1:{self._port}"

    def listener(self, name: str) -> str:
        """``127.0.0.1:PORT`` of a further listener; known once started."""
        return f"127.0.0.1:{self._listener_ports[name]}"

    @property
    def directory(self) -> Path:
        """Where its records, configuration and log are."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="stream-app-broker-"))
        return self._directory

    @property
    def log_path(self) -> Path:
        """Kafka's own log file."""
        return self.directory / "broker.log"

    @property
    def running(self) -> bool:
        """Whether the Kafka process is alive."""
        return self._guard is not None and self._guard.poll() is None

    def start(self) -> None:
        """Start and wait until it serves requests; at most a minute.

        After ``kill`` or ``stop`` it starts again on the same port. Raises BrokerUnavailableError with
        the end of Kafka's log when it does not come up.
        """
        if self.running:
            return
        java, jars = distribution.java_executable(), distribution.jars()
        atexit.register(self.stop)
        self._port = self._port or free_port()
        self._controller_port = self._controller_port or free_port(besides={self._port})
        for name in self._protocols:
            taken = {self._port, self._controller_port, *self._listener_ports.values()}
            self._listener_ports.setdefault(name, free_port(besides=taken))
        self._write_configuration()
        command = [
            str(java),
            *JAVA_OPTIONS,
            *self._compiler,
            "-cp",
            f"{jars}{os.sep}*",
        ]
        if not (self.directory / "records" / "meta.properties").exists():
            self._format(command)
        before = self._log_size()
        with self.log_path.open("ab") as log:
            self._guard = subprocess.Popen(  # noqa: S603  # our own command
                [
                    *(sys.executable, "-I", guard.__file__),
                    str(self.directory) if self._temporary else "",
                    *command,
                    *("kafka.Kafka", str(self.directory / "server.properties")),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Ctrl-C on a terminal is for us: we stop Kafka after the workers, not at the same time
                start_new_session=True,
            )
        assert self._guard.stdout is not None  # noqa: S101  # for the type checker: it is a pipe
        if not (pid := self._guard.stdout.readline()):
            self._guard.wait()
            raise self._give_up("cannot be run", before)
        self.pid = int(pid)
        self._wait_until_ready(before)

    def stop(self) -> None:
        """Shut down in order, by force after a bound. A temporary directory is deleted: then nothing has to
        be written out first, which takes a minute where there are thousands of partitions."""
        self._end(signal.SIGKILL if self._temporary else signal.SIGTERM)
        if self._temporary:
            self.wipe()

    def kill(self) -> None:
        """SIGKILL, as a crash: the directory stays, and ``start`` brings it back on the same port."""
        self._end(signal.SIGKILL)

    def wipe(self) -> None:
        """Delete its directory with all records. The broker must not be running."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None if self._temporary else self._directory

    def __enter__(self) -> LocalBroker:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _end(self, how: signal.Signals) -> None:
        atexit.unregister(self.stop)
        process, self._guard = self._guard, None
        if process is None:
            return
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, how)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                process.wait(STOP_TIMEOUT_S)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _write_configuration(self) -> None:
        public = [f"PLAINTEXT://{self.address}"]
        public += [f"{name}://{self.listener(name)}" for name in self._protocols]
        protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT"} | self._protocols
        properties = PROPERTIES | {
            "listeners": ",".join((*public, f"CONTROLLER://127.0.0.1:{self._controller_port}")),
            "advertised.listeners": ",".join(public),
            "listener.security.protocol.map": ",".join(f"{name}:{used}" for name, used in protocols.items()),
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "log.dirs": str(self.directory / "records"),
        }
        lines = (f"{key}={value}\n" for key, value in (properties | self._overrides).items())
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / "server.properties").write_text("".join(lines))
        except OSError as error:
            raise BrokerUnavailableError(f"cannot write to {self.directory}: {error.strerror}") from None

    def _format(self, command: list[str]) -> None:
        """Prepare an empty directory: Kafka refuses to start on one that has no cluster id."""
        arguments = ["format", "-t", CLUSTER_ID, "-c", str(self.directory / "server.properties")]
        try:
            done = subprocess.run(  # noqa: S603  # our own command
                [*command, "kafka.tools.StorageTool", *arguments],
                capture_output=True,
                text=True,
                timeout=START_TIMEOUT_S,
                start_new_session=True,  # a Ctrl-C now is noticed by us, and not taken for Java's failure
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BrokerUnavailableError(f"Java cannot run: {error}; {distribution.INSTEAD}") from None
        if done.returncode:
            raise self._unavailable("cannot prepare its directory", done.stdout + done.stderr)

    def _wait_until_ready(self, before: int) -> None:
        assert self._guard is not None  # noqa: S101  # for the type checker: start() has just set it
        deadline = time.monotonic() + START_TIMEOUT_S
        while READY not in self._log_text(before):
            if self._guard.poll() is not None:
                raise self._give_up("ended while starting", before)
            if time.monotonic() > deadline:
                raise self._give_up(f"did not come up within {START_TIMEOUT_S:.0f} s", before)
            time.sleep(POLL_S)

    def _give_up(self, what: str, before: int) -> BrokerUnavailableError:
        error = self._unavailable(what, self._log_text(before))
        self._end(signal.SIGKILL)
        if self._temporary:
            self.wipe()
        return error

    def _unavailable(self, what: str, log: str) -> BrokerUnavailableError:
        tail = "\n  ".join(log.splitlines()[-15:])
        return BrokerUnavailableError(
            f"the local Kafka {what} ({self.address}, {self.directory}). Its log ends with\n  {tail}\n"
            f"Free the port or the directory, or {distribution.INSTEAD}"
        )

    def _log_size(self) -> int:
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def _log_text(self, start: int) -> str:
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as file:
            file.seek(start)
            return file.read().decode(errors="replace")


@contextlib.contextmanager
def broker_address(directory: Path | None = None, **options: Any) -> Iterator[str]:
    """Address of the broker to use: ``STREAM_APP_BROKER`` if set, else of a LocalBroker of ours.

    Arguments are LocalBroker's.
    """
    if address := external_broker():
        yield address
        return
    with LocalBroker(directory, **options) as local:
        yield local.address


def free_port(besides: Collection[int] = ()) -> int:
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in besides:
            return port
    raise BrokerUnavailableError(f"no free port found; {distribution.INSTEAD}")
