"""What a person reads when broker and client do not accept each other, and that it comes at once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stream_app import cli
from stream_app.demo.roles import environment
from stream_app.errors import AccessError, BrokerUnavailableError
from stream_app.kafka.admin import create_topics
from stream_app.kafka.diagnosis import cause
from stream_app.kafka.reader import TopicReader
from stream_app.secret import Secret
from stream_app.settings import Settings
from tests.interests.gate import Gate
from tests.interests.workers import Worker
from tests.security.conftest import PASSWORD, SecuredBroker, secured

WRONG = "not the password of anybody"
BOUND_S = 60
"""Of a whole command on a busy machine: a command that tries for ever is what it is to catch."""

Connection = Callable[[SecuredBroker], dict[str, Any]]


def of(listener: str, **options: Any) -> Connection:
    return lambda broker: broker.connection(listener, **options)


def untrusted(broker: SecuredBroker) -> dict[str, Any]:
    return broker.connection("USERS", ssl_ca_file=broker.certificates.other_authority)


def in_the_clear(listener: str, **options: Any) -> Connection:
    return lambda broker: {"broker": broker.broker.listener(listener)} | options


def tls_to_plain(broker: SecuredBroker) -> dict[str, Any]:
    return broker.connection("USERS", broker=broker.broker.address)


def unknown_certificate(broker: SecuredBroker) -> dict[str, Any]:
    names = broker.certificates
    return broker.connection(
        "CERTIFICATES", ssl_certificate_file=names.certificate("unknown"), ssl_key_file=names.key("unknown")
    )


UNKNOWN_USER = (
    "the broker at {broker} refuses the user 'alice' ({mechanism}): "
    "correct kafka.sasl_username, its password or kafka.sasl_mechanism"
)
REFUSED: dict[str, tuple[Connection, str]] = {
    "wrong password, PLAIN": (
        of("USERS", sasl_password=Secret(WRONG)),
        UNKNOWN_USER.replace("{mechanism}", "PLAIN"),
    ),
    "wrong password, SCRAM": (
        of("USERS", sasl_password=Secret(WRONG), sasl_mechanism="SCRAM-SHA-512"),
        UNKNOWN_USER.replace("{mechanism}", "SCRAM-SHA-512"),
    ),
    "unknown user": (
        of("USERS", sasl_username="bob", sasl_mechanism="SCRAM-SHA-256"),
        UNKNOWN_USER.replace("{mechanism}", "SCRAM-SHA-256").replace("alice", "bob"),
    ),
    "mechanism not taken": (
        of("CLEAR", sasl_mechanism="PLAIN"),
        "the listener at {broker} does not take kafka.sasl_mechanism = PLAIN: set one of SCRAM-SHA-512",
    ),
    "another authority": (
        untrusted,
        "the certificate of the broker at {broker} is not trusted by kafka.ssl_ca_file = {other_ca} "
        "(unable to get local issuer certificate): set kafka.ssl_ca_file to the certificate of the authority "
        "that issued it",
    ),
    "the system's authorities": (
        of("USERS", ssl_ca_file=""),
        "the certificate of the broker at {broker} is not trusted by the system "
        "(unable to get local issuer certificate): set kafka.ssl_ca_file to the certificate of the authority "
        "that issued it",
    ),
    "another host": (
        of("STRANGER"),
        "the certificate of the broker at {broker} is not for 127.0.0.1: set kafka.broker to a name that it "
        "has (kafka.ssl_check_hostname = false accepts any)",
    ),
    "plaintext to TLS": (
        in_the_clear("CERTIFICATES"),
        "the listener at {broker} speaks TLS only, but kafka.security_protocol = PLAINTEXT: "
        "set SSL, or another port",
    ),
    "TLS to plaintext": (
        tls_to_plain,
        "the listener at {broker} does not speak TLS, but kafka.security_protocol = SASL_SSL: "
        "set SASL_PLAINTEXT, or another port",
    ),
    "nobody to users": (
        in_the_clear("CLEAR"),
        "the listener at {broker} wants a user and a password, but kafka.security_protocol = PLAINTEXT: set "
        "SASL_PLAINTEXT, kafka.sasl_mechanism (SCRAM-SHA-512), kafka.sasl_username and a password",
    ),
    "a user to nobody": (
        lambda broker: broker.connection("CLEAR", broker=broker.broker.address),
        "the listener at {broker} knows no users, but kafka.security_protocol = SASL_PLAINTEXT: "
        "set PLAINTEXT, or another port",
    ),
    "no certificate": (of("CERTIFICATES"), "the broker at {broker} breaks off the TLS handshake ("),
    "unknown certificate": (
        unknown_certificate,
        "the broker at {broker} refuses kafka.ssl_certificate_file = {unknown} (",
    ),
}


def expected(message: str, settings: Settings, broker: SecuredBroker) -> str:
    for name, value in {
        "broker": settings.kafka.broker,
        "other_ca": broker.certificates.other_authority,
        "unknown": broker.certificates.certificate("unknown"),
    }.items():
        message = message.replace(f"{{{name}}}", value)
    return message


@pytest.mark.parametrize("name", REFUSED)
def test_a_command_says_what_is_wrong_and_what_to_do(
    name: str,
    settings: Settings,
    secured_broker: SecuredBroker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    connection, message = REFUSED[name]
    world = secured(settings, connection(secured_broker))
    monkeypatch.setattr("stream_app.kafka.clients.CONNECT_TIMEOUT_MS", 1000)
    for variable, value in environment(world).items():
        monkeypatch.setenv(variable, value)
    assert cli.run(["topics"]) == 1
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert lines[-1].startswith(f"stream-app: [access] {expected(message, world, secured_broker)}")
    assert len(lines) == 1
    assert WRONG not in shown.err + shown.out
    assert PASSWORD not in shown.err + shown.out


def test_workers_that_are_refused_say_so_and_end(
    settings: Settings, secured_broker: SecuredBroker, tmp_path: Path
) -> None:
    """They do not try again, as they do while nobody answers. Side by side: the imports take the time."""
    started = []
    with contextlib.ExitStack() as stack:
        for role, name in (
            ("interests", "wrong password, SCRAM"),
            ("content", "another authority"),
            ("serve", "plaintext to TLS"),
        ):
            connection, message = REFUSED[name]
            world = secured(settings, connection(secured_broker))
            worker = Worker(world, role, tmp_path, role)
            worker.start()
            stack.callback(worker.kill)
            started.append((worker, expected(message, world, secured_broker)))
        for worker, message in started:
            assert worker.end() == AccessError.exit_status
            log = worker.log.read_text()
            assert log.splitlines()[-1] == f"stream-app: [access] {message}"
            assert not any(unwanted in log for unwanted in ("Traceback", "trying again", WRONG, PASSWORD))


def test_a_reader_in_a_worker_says_the_same(settings: Settings, secured_broker: SecuredBroker) -> None:
    """aiokafka hides the cause as well; a wrong password, and a broker that nobody vouches for."""
    for name in ("wrong password, SCRAM", "another authority"):
        connection, message = REFUSED[name]
        world = secured(settings, connection(secured_broker))

        async def scenario(world: Settings = world) -> None:
            await TopicReader(world, world.topic_name("content"), lambda records: None, label="test").start()

        with pytest.raises(AccessError) as error:
            asyncio.run(asyncio.wait_for(scenario(), BOUND_S))
        assert str(error.value) == expected(message, world, secured_broker)


def test_any_host_name_will_do_if_one_says_so(settings: Settings, secured_broker: SecuredBroker) -> None:
    world = secured(settings, secured_broker.connection("STRANGER", ssl_check_hostname=False))
    assert create_topics(world)

    async def scenario() -> int:
        reader = TopicReader(world, world.topic_name("content"), lambda records: None, label="test")
        await reader.start()
        await reader.stop()
        return reader.records

    assert asyncio.run(asyncio.wait_for(scenario(), BOUND_S)) == 0


class SlowGate(Gate):
    """TLS to a broker far away: each record takes its time."""

    def _chunks(self, end: socket.socket) -> Iterator[bytes]:
        with end.makefile("rb") as stream:
            while header := stream.read(5):
                record = stream.read(int.from_bytes(header[3:]))
                time.sleep(0.05)
                yield header + record


def test_a_user_who_is_refused_leaves_no_socket_open(
    settings: Settings, secured_broker: SecuredBroker
) -> None:
    """TLS is closed by a farewell of either side, and the broker's comes after its refusal."""
    with contextlib.closing(SlowGate(secured_broker.broker.listener("USERS"))) as gate:
        connection = secured_broker.connection(
            "USERS", broker=f"127.0.0.1:{gate.port}", sasl_password=Secret(WRONG)
        )
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", ResourceWarning)
            assert isinstance(cause(secured(settings, connection), TimeoutError()), AccessError)
            gc.collect()
    assert [shown for one in warned if "unclosed transport" in (shown := str(one.message))] == []


def test_a_broker_that_is_not_there_is_not_called_unwilling(settings: Settings) -> None:
    """A worker tries again what is not there, and not what refuses it."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        world = secured(settings, {"broker": f"127.0.0.1:{nobody.getsockname()[1]}"})
        error = cause(world, TimeoutError())
    assert isinstance(error, BrokerUnavailableError)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x00\x00\x04abcd", b"\x15\x03"]
)
@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL"])
def test_what_is_no_kafka_is_judged_by_nothing(answer: bytes, protocol: str, settings: Settings) -> None:
    """Whatever answers, or hangs up: no exception, and no cause that was not shown."""
    world = secured(settings, {"security_protocol": protocol})
    with socket.create_server(("127.0.0.1", 0)) as server:
        world = secured(world, {"broker": f"127.0.0.1:{server.getsockname()[1]}"})
        threading.Thread(target=answer_all, args=(server, answer), daemon=True).start()
        assert isinstance(cause(world, TimeoutError()), BrokerUnavailableError)
        server.shutdown(socket.SHUT_RDWR)


def answer_all(server: socket.socket, answer: bytes) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection:
                connection.sendall(answer)
