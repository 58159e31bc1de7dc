"""The four roles that make slates, on this machine, for development: one process each, ending together."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from stream_app.errors import StreamAppError
from stream_app.processes import end_on_signals
from stream_app.settings import ENV_PREFIX, Settings
from stream_app.worker import EXIT_S, PIPELINE, STOP_TIMEOUT_S

POLL_S = 0.2


def run_all(settings: Settings, arguments: list[str]) -> int:
    """Run the roles until a signal asks to end (0), or until one of them fails."""
    ending = False

    def end() -> None:
        nonlocal ending
        ending = True

    end_on_signals(end)
    base = settings.observability.port
    workers = {}
    for place, role in enumerate(PIPELINE):
        port = base + place if base else 0
        environment = {**os.environ, f"{ENV_PREFIX}OBSERVABILITY_PORT": str(port)}
        command = [sys.executable, "-m", "stream_app", *arguments, "worker", role]
        workers[role] = subprocess.Popen(  # noqa: S603 - our own command
            [*command, "--end-with-parent", str(os.getpid())],
            env=environment,
            start_new_session=True,  # Ctrl-C on a terminal is for us, and passed on once
        )
    try:
        while not ending:
            for role, worker in workers.items():
                if (status := worker.poll()) is not None and not ending:
                    raise StreamAppError(
                        f"the {role} worker ended with status {status}: its last line says why"
                    )
            time.sleep(POLL_S)
        return 0
    finally:
        for worker in workers.values():
            worker.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S + EXIT_S + 5
        for worker in workers.values():
            try:
                worker.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
