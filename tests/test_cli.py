"""The command line as a person meets it: help, versions, exit statuses, one line for an error."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from stream_app import cli
from stream_app.kafka.admin import create_topics
from stream_app.settings import Settings
from stream_app.topics import declare

NOBODY = "127.0.0.1:1"


def stream_app(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(  # our own command
        [sys.executable, "-m", "stream_app", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def configuration(settings: Settings, path: Path) -> Path:
    """A file that points the command at this test's topics."""
    kafka = settings.kafka
    path.write_text(
        f'[kafka]\nbroker = "{kafka.broker}"\n'
        f'app_id = "{kafka.app_id}"\ntopic_prefix = "{kafka.topic_prefix}"\n'
        f"partitions = {kafka.partitions}\nshared_partitions = {kafka.shared_partitions}\n"
    )
    return path


def test_help_names_every_command_without_loading_torch() -> None:
    script = "import sys; from stream_app.cli import build_parser; build_parser(summaries=True).print_help()"
    done = subprocess.run(  # our own interpreter
        [sys.executable, "-c", f"{script}; assert 'torch' not in sys.modules"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    listed = [
        line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ") and line.split()
    ]
    assert set(cli.COMMANDS) <= set(listed)
    assert "not available" not in done.stdout


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: stream-app {command}")
    assert "--config FILE" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["replay-all"], "invalid choice: 'replay-all'"),
        (["topics", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["--log-level", "loud", "topics"], "invalid choice: 'loud'"),
    ],
)
def test_a_wrong_command_line_is_exit_status_2(
    arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_without_a_command_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 2
    assert "COMMAND" in capsys.readouterr().err


def test_version() -> None:
    done = stream_app("--version")
    assert (done.returncode, done.stdout) == (0, "stream-app 0.1.0\n")


def test_a_configuration_error_names_setting_value_and_what_is_allowed() -> None:
    done = stream_app("topics", STREAM_APP_KAFKA_PARTITIONS="0")
    assert done.returncode == 2
    assert done.stderr == "stream-app: [configuration] kafka.partitions = '0': expected `int` >= 1\n"


def test_no_broker_is_one_line_with_the_address() -> None:
    done = stream_app("topics", STREAM_APP_BROKER=NOBODY)
    assert done.returncode == 1
    assert done.stderr.startswith(f"stream-app: [broker_unavailable] no Kafka broker answers at {NOBODY}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("place", ["before", "after"])
def test_global_options_stand_before_or_after_the_command(place: str, tmp_path: Path) -> None:
    option = ["--config", str(tmp_path / "none.toml")]
    done = stream_app(*([*option, "topics"] if place == "before" else ["topics", *option]))
    assert done.returncode == 2
    assert "none.toml: No such file or directory" in done.stderr


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, ""),
        (ModuleNotFoundError("no", name="torch._C"), 1, "this needs torch._C: install stream-app[gpu]"),
    ],
)
def test_what_ends_a_command_early(
    error: BaseException,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr("stream_app.commands.topics.run", fail)
    assert cli.run(["topics"]) == status
    assert message in capsys.readouterr().err


def test_a_reader_that_has_enough_is_not_an_error(
    settings: Settings, topics: list[str], tmp_path: Path
) -> None:
    path = configuration(settings, tmp_path / "c.toml")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(  # our own command
        [sys.executable, "-m", "stream_app", "topics", "--config", str(path)],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_topics_are_listed_created_and_checked(settings: Settings, tmp_path: Path) -> None:
    path = str(configuration(settings, tmp_path / "c.toml"))
    number = len(declare(settings))
    before = stream_app("topics", "--config", path)
    assert before.returncode == 1
    assert before.stdout.count(" missing") == before.stderr.count("stream-app topics --create") == number

    created = stream_app("topics", "--create", "--config", path)
    assert (created.returncode, created.stderr) == (0, "")
    assert created.stdout.count(" created") == number

    after = stream_app("topics", "--json", "--config", path)
    assert after.returncode == 0
    rows = {row["name"]: row for row in json.loads(after.stdout)}
    assert rows[settings.topic_name("interests")] == {
        "name": settings.topic_name("interests"),
        "key": "user_id",
        "value": "interest record",
        "partitions": 2,
        "cleanup": "compact",
        "retention_ms": -1,
        "exists": True,
        "partitions_found": 2,
        "problem": None,
    }


def test_topics_that_cannot_work_together_are_exit_status_2(settings: Settings, tmp_path: Path) -> None:
    path = str(configuration(settings, tmp_path / "c.toml"))
    create_topics(settings)
    done = stream_app("topics", "--config", path, STREAM_APP_KAFKA_PARTITIONS="4")
    assert done.returncode == 2
    assert "[topic_mismatch]" in done.stderr
    assert "set kafka.partitions = 2" in done.stderr


def test_the_broker_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    directory = tmp_path / "kept"
    for how, created in ((signal.SIGINT, True), (signal.SIGTERM, False)):
        running = subprocess.Popen(  # our own command
            [sys.executable, "-m", "stream_app", "broker", "--port", "0", "--directory", str(directory)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert running.stdout is not None
        with running.stdout:
            address = running.stdout.readline().strip()
            done = stream_app("topics", "--create", STREAM_APP_BROKER=address)
            assert (done.returncode, " created" in done.stdout) == (0, created)
            running.send_signal(how)
            assert running.wait(30) == 0
        host, port = address.split(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=5)
