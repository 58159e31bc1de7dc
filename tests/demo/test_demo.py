"""The demo from start to end, as a person runs it: a subprocess on a Kafka of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stream_app.settings import ENV_PREFIX

COMMAND = [sys.executable, "-m", "stream_app", "demo"]
TIMEOUT_S = 240.0


def environment(temporary: Path) -> dict[str, str]:
    """Nothing of ours is set; temporary files go where the test can count them; ports are free ones."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
    return inherited | {"TMPDIR": str(temporary), f"{ENV_PREFIX}OBSERVABILITY_PORT": "0"}


def running(temporary: Path) -> list[str]:
    """Command lines of processes that use files under this directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "cmdline").read_text() + (entry / "environ").read_text(errors="replace")
            except OSError:
                continue  # ended meanwhile, or somebody else's
            if str(temporary) in text and int(entry.name) != os.getpid():
                found.append(text.replace("\0", " "))
    return found


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="looks for processes in /proc"
)


@needs_proc
def test_every_event_is_accounted_for_and_every_active_user_has_a_slate(tmp_path: Path) -> None:
    temporary, summary = tmp_path / "temporary", tmp_path / "summary.json"
    temporary.mkdir()
    done = subprocess.run(  # our own command
        [*COMMAND, "--seconds", "6", "--rate", "25", "--users", "30", "--summary", str(summary)],
        env=environment(temporary),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    account = json.loads(summary.read_text())
    outcomes = ("applied", "duplicates", "dead_lettered", "retrying")
    assert account["produced"] == sum(account[name] for name in outcomes)
    assert 100 <= account["produced"] <= 200
    assert account["applied"] > 0.9 * account["produced"]
    assert account["users_with_slate"] == account["active_users"] > 20
    assert account["slates"] >= account["active_users"]
    assert 0 < account["freshness_ms"]["p50"] <= account["freshness_ms"]["p99"]
    assert "engaged with (newest last)" in done.stdout
    assert "and now gets" in done.stdout
    assert list(temporary.iterdir()) == []
    assert running(temporary) == []


@needs_proc
@pytest.mark.parametrize(
    ("how", "after"),
    [
        (signal.SIGTERM, "interests worker is ready"),
        (signal.SIGINT, "starting the four workers"),
        (signal.SIGKILL, "interests worker"),
    ],
)
def test_nothing_is_left_when_it_is_ended_early(tmp_path: Path, how: signal.Signals, after: str) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    demo = subprocess.Popen(  # our own command
        [*COMMAND, "--seconds", "600"],
        env=environment(temporary),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watchdog = threading.Timer(TIMEOUT_S, demo.kill)
    watchdog.start()
    try:
        assert demo.stdout is not None
        lines = iter(demo.stdout.readline, "")
        assert any(after in line for line in lines)
        demo.send_signal(how)
        output, _ = demo.communicate(timeout=TIMEOUT_S)
    finally:
        watchdog.cancel()
        demo.kill()
        demo.wait()
    assert "Traceback" not in output
    assert demo.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[how]
    ended = threading.Event()
    for _ in range(100):  # after SIGKILL the guards clean up on their own
        if not running(temporary) and not list(temporary.iterdir()):
            break
        ended.wait(0.1)
    assert running(temporary) == []
    assert list(temporary.iterdir()) == []
