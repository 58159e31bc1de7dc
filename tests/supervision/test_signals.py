"""SIGTERM at any moment of a worker's life."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import msgspec
import pytest

from stream_app.__main__ import _command
from stream_app.processes import SAME_REQUEST_S
from stream_app.settings import Settings
from tests.supervision.test_worker_ends import faulty, send_events, world  # noqa: F401 - a fixture

MOMENTS = ["stream_app.cli", "msgspec", "stream_app.commands.worker", "faust", "stream_app.interests.app"]


@pytest.mark.parametrize("module", MOMENTS)
def test_sigterm_while_the_worker_imports_ends_it_cleanly(
    settings: Settings, topics: list[str], tmp_path: Path, module: str
) -> None:
    with faulty(settings, f"import:{module}", tmp_path) as worker:
        assert worker.end() == 0
        log = worker.log.read_text()
        assert log.endswith("stream-app: SIGTERM during the start: ended\n")
        assert "Traceback" not in log


def test_sigterm_while_the_broker_is_waited_for_ends_it_at_once(settings: Settings, tmp_path: Path) -> None:
    away = msgspec.structs.replace(
        settings, kafka=msgspec.structs.replace(settings.kafka, broker="127.0.0.1:9")
    )
    with faulty(away, "end_flush", tmp_path) as worker:
        worker.wait_for("trying again")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.end() == 0
        assert "Traceback" not in worker.log.read_text()


def test_sigterm_of_a_worker_that_serves_is_a_clean_end(world: Settings, tmp_path: Path) -> None:  # noqa: F811
    with faulty(world, "end_flush", tmp_path) as worker:
        worker.wait_until_ready()
        send_events(world)
        for _ in range(2):  # to the whole group and by the parent: one request that comes twice
            worker.process.send_signal(signal.SIGTERM)
        assert worker.end() == 0


def test_a_second_sigterm_ends_a_worker_at_once(world: Settings, tmp_path: Path) -> None:  # noqa: F811
    with faulty(world, "hang_agent", tmp_path) as worker:
        worker.wait_until_ready()
        worker.process.send_signal(signal.SIGUSR1)
        send_events(world)
        worker.wait_for("an agent hangs")
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("stopping: what is in hand")
        time.sleep(SAME_REQUEST_S + 0.2)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.end() == 128 + signal.SIGTERM
        assert "a second SIGTERM" in worker.log.read_text()


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["worker", "interests"], "worker"),
        (["--config", "worker", "show", "ana"], "show"),
        (["--log-level=debug", "worker", "all"], "worker"),
        (["show", "worker"], "show"),
        ([], None),
    ],
)
def test_only_the_worker_command_ends_by_itself(arguments: list[str], command: str | None) -> None:
    assert _command(arguments) == command
