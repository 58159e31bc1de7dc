"""The four workers as child processes: started, waited for, watched, stopped; none outlives us."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import msgspec

from stream_app.errors import StreamAppError
from stream_app.kafka import guard
from stream_app.secret import Secret
from stream_app.settings import ENV_PREFIX, SECTIONS, Action, Arm, Settings

ROLES = ("interests", "content", "ranker", "trainer")
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.1
LOG_LINES = 15


class Roles:
    """Worker processes of one demo, each with its own port, state directory and log file."""

    def __init__(self, settings: Settings, directory: Path, *, keep: bool) -> None:
        """Starts nothing yet. Unless ``keep``, the directory is deleted even when we are killed."""
        self._settings = settings
        self._directory = directory
        self._keep = keep
        ports = _ports(settings.observability.host, settings.observability.port)
        self.ports = dict(zip(ROLES, ports, strict=True))
        self._guards: dict[str, subprocess.Popen[str]] = {}
        self.pids: dict[str, int] = {}
        """Process id of each worker, once started."""

    def start(self) -> None:
        """Start all workers, without waiting for them."""
        temporary = self._directory / "tmp"  # what libraries leave there goes with the directory
        temporary.mkdir(exist_ok=True)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
        inherited["TMPDIR"] = str(temporary)
        for role in ROLES:
            data_dir = self._directory / "state" / role
            observability = msgspec.structs.replace(self._settings.observability, port=self.ports[role])
            interests = msgspec.structs.replace(self._settings.interests, data_dir=str(data_dir))
            settings = msgspec.structs.replace(
                self._settings, observability=observability, interests=interests
            )
            with self._log(role).open("ab") as log:
                process = subprocess.Popen(  # noqa: S603  # our own command
                    [
                        *(sys.executable, "-I", guard.__file__),
                        "" if self._keep else str(self._directory),
                        *(sys.executable, "-m", "stream_app", "worker", role),
                    ],
                    env=inherited | environment(settings),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    # Ctrl-C on a terminal is for us: we stop the workers before the broker
                    start_new_session=True,
                )
            self._guards[role] = process
            assert process.stdout is not None  # noqa: S101  # for the type checker: it is a pipe
            self.pids[role] = int(process.stdout.readline() or 0)

    def wait_until_ready(self, say: Callable[[str], None]) -> None:
        """Return once each worker answers on ``/readyz``; ``say`` gets a line at each change.

        Raises StreamAppError, with the end of the worker's log, when one ends or takes too long.
        """
        waiting_for = dict.fromkeys(ROLES, "start")
        deadline = time.monotonic() + READY_TIMEOUT_S
        while waiting_for:
            self.check()
            for role in list(waiting_for):
                cause = self._readiness(role)
                if cause is None:
                    del waiting_for[role]
                    say(f"{role} worker is ready (http://{self._host}:{self.ports[role]}/metrics)")
                elif cause != waiting_for[role] and cause != "start":
                    waiting_for[role] = cause
                    say(f"{role} worker waits for {cause}")
            if time.monotonic() > deadline:
                role = next(iter(waiting_for))
                raise self._failure(role, f"was not ready after {READY_TIMEOUT_S:.0f} s")
            time.sleep(POLL_S)

    def check(self) -> None:
        """Raise StreamAppError, with the end of its log, when a worker has ended."""
        for role, process in self._guards.items():
            if process.poll() is not None:
                raise self._failure(role, f"ended with status {process.returncode}")

    def stop(self) -> None:
        """SIGTERM to all, then after a bound SIGKILL. May be called at any time, also twice."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + STOP_TIMEOUT_S
            for role, process in self._guards.items():
                if process.poll() is None and self.pids.get(role):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self.pids[role], how)
            for process in self._guards.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        for process in self._guards.values():
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self._guards.clear()

    @property
    def _host(self) -> str:
        return self._settings.observability.host

    def _log(self, role: str) -> Path:
        return self._directory / f"{role}.log"

    def _readiness(self, role: str) -> str | None:
        """None when ready, else what the worker waits for."""
        try:
            url = f"http://{self._host}:{self.ports[role]}/readyz"
            with urllib.request.urlopen(url, timeout=2.0):
                return None
        except urllib.error.HTTPError as error:
            with contextlib.suppress(ValueError, TypeError):
                return str(json.loads(error.read())["waiting_for"])
            return f"status {error.code}"
        except OSError:
            return "start"  # does not listen yet

    def _failure(self, role: str, what: str) -> StreamAppError:
        lines = self._log(role).read_text(errors="replace").splitlines()[-LOG_LINES:]
        return StreamAppError(
            f"the {role} worker {what}. Its log ends with\n  " + "\n  ".join(lines) + "\n"
            "`stream-app doctor` checks what it needs; --keep keeps the whole log"
        )


def environment(settings: Settings) -> dict[str, str]:
    """The settings as environment variables: a worker started with them has exactly these."""
    return {
        f"{ENV_PREFIX}{section}_{name}".upper(): _text(value)
        for section in SECTIONS
        for name, value in msgspec.structs.asdict(getattr(settings, section)).items()
    }


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    if isinstance(value, Action):
        return f"{value.name}:{value.topic}:{value.weight}"
    if isinstance(value, Arm):
        return f"{value.name}:{value.ranker}:{value.share}"
    if isinstance(value, Secret):
        return value.reveal()  # a child's environment is private; a command line would not be
    return str(value).lower() if isinstance(value, bool) else str(value)


def free_port(host: str, wanted: int) -> int:
    """``wanted`` if nobody listens there, else any."""
    with contextlib.ExitStack() as sockets:
        try:
            return _bound(sockets, host, wanted)
        except OSError:
            return _bound(sockets, host, 0)


def _ports(host: str, first: int) -> list[int]:
    """One free port a role: ``first`` and the ones after it, or any when one of them is taken."""
    wanted = range(first, first + len(ROLES)) if first else (0,) * len(ROLES)
    with contextlib.ExitStack() as sockets:
        try:
            return [_bound(sockets, host, port) for port in wanted]
        except (OSError, OverflowError):
            return [_bound(sockets, host, 0) for _ in ROLES]


def _bound(sockets: contextlib.ExitStack, host: str, port: int) -> int:
    probe = sockets.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
    probe.bind((host, port))
    return int(probe.getsockname()[1])
