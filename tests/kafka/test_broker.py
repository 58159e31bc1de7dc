"""The local broker: real Kafka that keeps its records, and never outlives whoever started it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest

from stream_app.errors import BrokerUnavailableError
from stream_app.kafka import broker as broker_module
from stream_app.kafka import distribution
from stream_app.kafka.admin import create_topics
from stream_app.kafka.broker import LocalBroker, broker_address
from stream_app.kafka.clients import producer, read_topic
from stream_app.settings import Settings, build

STARTER = """
import sys, threading, time
from pathlib import Path
from stream_app.kafka.broker import LocalBroker

broker = LocalBroker()
thread = threading.Thread(target=broker.start)  # which ends long before the process does
thread.start()
thread.join()
print(broker.pid, broker.directory, flush=True)
sys.stdin.read()
"""


def settings_for(address: str) -> Settings:
    return build({"kafka": {"broker": address, "partitions": 1, "shared_partitions": 1}})


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, "it did not happen in time"
        sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def local() -> Iterator[LocalBroker]:
    broker = LocalBroker()
    yield broker
    broker.stop()


def test_records_survive_a_kill_and_a_start_on_the_same_port(local: LocalBroker) -> None:
    local.start()
    address, settings = local.address, settings_for(local.address)
    create_topics(settings)
    client = producer(settings)
    for number in range(100):
        client.send("likes", b"%d" % number, key=b"user")
    client.flush(timeout=20)
    client.close()

    killed = local.pid
    local.kill()
    wait_until(lambda: not alive(killed))
    local.start()

    assert local.address == address
    assert [r.value for r in read_topic(settings, "likes")] == [b"%d" % n for n in range(100)]
    directory = local.directory
    local.stop()
    assert not directory.exists()
    assert not local.running


@pytest.mark.parametrize("full_jit", [False, True])
def test_the_full_compiler_is_there_for_who_asks(full_jit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def refuse(_broker: LocalBroker, command: list[str]) -> None:
        commands.append(command)
        raise BrokerUnavailableError("far enough")

    monkeypatch.setattr(LocalBroker, "_format", refuse)
    broker = LocalBroker(full_jit=full_jit)
    with pytest.raises(BrokerUnavailableError, match="far enough"):
        broker.start()
    broker.stop()
    broker.wipe()
    assert ("-XX:TieredStopAtLevel=1" in commands[0]) is not full_jit


def test_a_given_directory_is_kept_until_wiped(tmp_path: Path) -> None:
    with LocalBroker(tmp_path / "kept") as first:
        assert create_topics(settings_for(first.address))
    assert (tmp_path / "kept" / "server.properties").exists()
    with LocalBroker(tmp_path / "kept", properties={"num.partitions": "3"}) as second:
        assert create_topics(settings_for(second.address)) == []
        assert second._guard is not None
        second._guard.kill()  # whoever watches over Kafka may die first: Kafka goes with it
        wait_until(lambda: not alive(second.pid))
        assert not second.running
    second.wipe()
    assert not (tmp_path / "kept").exists()


def test_it_dies_with_its_starter_but_not_with_the_starting_thread() -> None:
    starter = subprocess.Popen(  # our own interpreter
        [sys.executable, "-c", STARTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdin is not None
    assert starter.stdout is not None
    with starter.stdin, starter.stdout:
        pid, directory = starter.stdout.readline().split()
        assert alive(int(pid))
        starter.send_signal(signal.SIGKILL)
        starter.wait(10)
        wait_until(lambda: not alive(int(pid)))
        wait_until(lambda: not Path(directory).exists())


def test_a_broker_that_cannot_start_says_why_and_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BrokerUnavailableError) as failure:
            LocalBroker(tmp_path, port=port).start()
    message = str(failure.value)
    assert "ended while starting" in message
    assert f"127.0.0.1:{port}" in message
    assert "Address already in use" in message
    assert "STREAM_APP_BROKER=host:port" in message


def test_jars_that_cannot_be_fetched_name_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # a proxy that refuses connections: no network, without leaving this machine
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    with pytest.raises(BrokerUnavailableError, match=r"could not be fetched.*STREAM_APP_BROKER=host:port"):
        LocalBroker().start()
    assert "fetching Apache Kafka" in capsys.readouterr().err
    assert list((tmp_path / "stream-app").iterdir()) == []


def test_every_locked_jar_has_a_checksum_and_kafka_its_version() -> None:
    lock = tomllib.loads(distribution.LOCK_FILE.read_text())
    assert all(len(jar["sha256"]) == 64 for jar in lock["dependencies"])
    kafka = next(jar for jar in lock["dependencies"] if jar["artifactId"] == "kafka_2.13")
    assert kafka["version"] == distribution.VERSION


def test_an_external_broker_is_used_when_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAM_APP_BROKER", "elsewhere:9092")
    monkeypatch.setattr(broker_module, "LocalBroker", None)
    with broker_address() as address:
        assert address == "elsewhere:9092"


def test_a_java_that_cannot_run_is_an_error_with_the_next_step(
    local: LocalBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distribution, "java_executable", lambda: tmp_path / "no-java")
    with pytest.raises(BrokerUnavailableError, match=r"Java cannot run.*no-java"):
        local.start()
    (local.directory / "records").mkdir()
    (local.directory / "records" / "meta.properties").touch()  # as if it had been prepared before
    with pytest.raises(BrokerUnavailableError, match=r"(?s)cannot be run .*STREAM_APP_BROKER=host:port"):
        local.start()
