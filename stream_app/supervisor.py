"""All three roles on this machine, for development: one process each, ending together."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from types import FrameType

from stream_app.errors import StreamAppError
from stream_app.settings import ENV_PREFIX, Settings
from stream_app.worker import ROLES, STOP_TIMEOUT_S

log = logging.getLogger(__name__)
POLL_S = 0.2


def run_all(settings: Settings, arguments: list[str]) -> int:
    """Run the roles until a signal asks to end (0), or until one of them fails."""
    ending = False

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal ending
        ending = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    base = settings.observability.port
    workers = {}
    for place, role in enumerate(ROLES):
        port = base + place if base else 0
        environment = {**os.environ, f"{ENV_PREFIX}OBSERVABILITY_PORT": str(port)}
        command = [sys.executable, "-m", "stream_app", *arguments, "worker", role, "--end-with-parent"]
        workers[role] = subprocess.Popen(command, env=environment)  # noqa: S603 - our own command
    try:
        while not ending:
            for role, worker in workers.items():
                if (status := worker.poll()) is not None:
                    raise StreamAppError(f"the {role} worker ended with status {status}")
            time.sleep(POLL_S)
        return 0
    finally:
        for worker in workers.values():
            worker.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S + 5
        for worker in workers.values():
            try:
                worker.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
