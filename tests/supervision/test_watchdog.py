"""The watchdog alone: a loop that stands still, an end that does not come, a process that was stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from stream_app.errors import StalledError

BEGIN = """
import asyncio, ctypes, os, sys, threading, time
from stream_app.observability.watchdog import Watchdog
from stream_app.settings import build

watchdog = Watchdog(build({"observability": {"stall_timeout_s": %s}}))
watchdog.start()

async def turn(times):
    for _ in range(times):
        watchdog.beat()
        await asyncio.sleep(0.05)
"""


def run(then: str, timeout_s: float = 1.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BEGIN % timeout_s + then], capture_output=True, text=True, timeout=60
    )


def test_a_loop_that_turns_is_left_alone() -> None:
    ended = run("asyncio.run(turn(60)); sys.exit(7)")
    assert ended.returncode == 7, ended.stderr


def test_a_loop_that_stands_still_ends_the_process_and_shows_where() -> None:
    ended = run("async def hang(): time.sleep(1000)\nasyncio.run(hang())")
    assert ended.returncode == StalledError.exit_status
    assert "[stalled] the event loop has stood still for" in ended.stderr
    assert "in hang" in ended.stderr


def test_a_call_that_holds_the_interpreter_ends_the_process_as_well() -> None:
    ended = run("ctypes.PyDLL(None).sleep(1000)", timeout_s=0.6)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr


def test_an_end_that_does_not_come_is_made() -> None:
    """By a thread that the interpreter would wait for: Faust's consumer runs in one."""
    ended = run(
        "threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "watchdog.end_within(1.0)\nasyncio.run(turn(5))"
    )
    assert ended.returncode == StalledError.exit_status
    assert "did not come to rest within 1 s" in ended.stderr


def test_an_end_in_time_keeps_its_status() -> None:
    ended = run("watchdog.end_within(20.0)\nasyncio.run(turn(40))\nsys.exit(5)", timeout_s=0.5)
    assert ended.returncode == 5, ended.stderr


# in small steps, or the time stopped would count as slept
BUSY = "async def busy():\n    for _ in range(150): time.sleep(0.01)\n"


@pytest.mark.parametrize("deadline", ["", "watchdog.end_within(3.0)\n"])
def test_time_in_which_the_process_was_stopped_does_not_count(deadline: str) -> None:
    """Neither for the loop, which does not turn meanwhile, nor for the end: either may take three seconds."""
    code = BEGIN % 3.0 + BUSY + deadline + "print('go', flush=True)\nasyncio.run(busy())\nsys.exit(5)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(4.5)  # what is measured is that this time does not count
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 5, errors
