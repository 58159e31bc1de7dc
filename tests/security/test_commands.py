"""Whole commands as processes: who is not let in ends with one message, soon, and shows no secret."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream_app import supervisor
from stream_app.commands.doctor import check_broker
from stream_app.demo.roles import ROLES, Roles, environment
from stream_app.errors import StreamAppError
from stream_app.secret import Secret
from stream_app.settings import Settings
from tests.security.conftest import PASSWORD, SecuredBroker, secured

WRONG = "not the password of anybody"
BOUND_S = 120
"""Of a whole command on a busy machine; what it is to catch is one that tries for ever."""
COMMANDS = {
    "worker": ["--log-level", "debug", "worker", "interests"],
    "topics": ["topics", "--create"],
    "tail": ["tail", "--limit", "1"],
}


def run(settings: Settings, *commands: list[str]) -> list[tuple[int, str, str]]:
    """Status, stdout, stderr of each; they run side by side."""
    variables = os.environ | environment(settings)
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "stream_app", *command], env=variables, stdout=pipe, stderr=pipe, text=True
        )
        for command in commands
    ]
    try:
        ended = []
        for process in processes:
            out, err = process.communicate(timeout=BOUND_S)
            ended.append((process.returncode, out, err))
        return ended
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize("fault", ["password", "authority"])
def test_who_is_not_let_in_ends(fault: str, settings: Settings, secured_broker: SecuredBroker) -> None:
    options: dict[str, Any] = {"sasl_mechanism": "SCRAM-SHA-256"}
    if fault == "password":
        options["sasl_password"] = Secret(WRONG)
        message = "refuses the user 'alice' (SCRAM-SHA-256)"
    else:
        options["ssl_ca_file"] = secured_broker.certificates.other_authority
        message = "(unable to get local issuer certificate)"
    world = secured(settings, secured_broker.connection("USERS", **options))
    ended = dict(zip(COMMANDS, run(world, *COMMANDS.values()), strict=True))
    for command, (status, out, err) in ended.items():
        assert status == 1, (command, err)
        assert err.splitlines()[-1].startswith("stream-app: [access] "), (command, err)
        assert message in err.splitlines()[-1], (command, err)
        assert "Traceback" not in out + err, (command, err)
        assert WRONG not in out + err
        assert PASSWORD not in out + err


def test_doctor_shows_what_is_wrong(settings: Settings, secured_broker: SecuredBroker) -> None:
    (finding,) = check_broker(secured(settings, secured_broker.connection("STRANGER")))
    assert finding.state == "fault"
    assert finding.detail.endswith(" is not for 127.0.0.1")
    assert finding.advice.startswith("set kafka.broker to a name that it has")
    missing = secured_broker.connection("USERS", ssl_ca_file="no/such.pem")
    (finding,) = check_broker(secured(settings, missing))
    assert finding.detail == "kafka.ssl_ca_file = 'no/such.pem': No such file or directory"
    assert finding.advice == "name a file that this user can read"


def test_doctor_shows_how_the_connection_is_secured(
    settings: Settings, secured_broker: SecuredBroker
) -> None:
    findings = list(check_broker(secured(settings, secured_broker.connection("USERS"))))
    shown = {finding.check: finding.detail for finding in findings}
    authority = secured_broker.certificates.authority
    assert shown["connection"] == f"SASL_SSL, trusting {authority}, PLAIN as alice, password ***"
    assert PASSWORD not in msgspec.json.encode(findings).decode()


class Recorded:
    """Stands in for subprocess.Popen: what it was asked to start; it has ended already."""

    calls: list[tuple[list[str], dict[str, str]]]
    stdin = stdout = None

    def __init__(self, command: list[str], *, env: dict[str, str], **_: object) -> None:
        self.calls.append((command, env))

    def poll(self) -> int:
        return 1

    wait = terminate = kill = lambda self, *_: None


def test_workers_get_the_password_by_their_environment_only(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = msgspec.structs.replace(
        settings.kafka,
        security_protocol="SASL_SSL",
        sasl_username="alice",
        sasl_password=Secret(PASSWORD),
    )
    world = msgspec.structs.replace(settings, kafka=kafka)
    for name, value in environment(world).items():
        monkeypatch.setenv(name, value)
    Recorded.calls = []
    monkeypatch.setattr(supervisor.subprocess, "Popen", Recorded)
    with pytest.raises(StreamAppError) as error:
        supervisor.run_all(world, [])
    assert PASSWORD not in str(error.value)
    with pytest.raises(AssertionError):  # its guard says nothing
        Roles(world, tmp_path, keep=False).start()
    assert len(Recorded.calls) == len(ROLES) + 1, "each role's worker, and the demo's first"
    for command, variables in Recorded.calls:
        assert PASSWORD not in " ".join(command)
        assert variables["STREAM_APP_KAFKA_SASL_PASSWORD"] == PASSWORD
