"""The workers of a chaos run as processes, and the orchestrator that starts them again when they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import msgspec

from stream_app.chaos.disks import Disk
from stream_app.demo.roles import environment
from stream_app.errors import StreamAppError
from stream_app.settings import ENV_PREFIX, Settings

POLL_S = 0.05
READY_POLL_S = 0.3
ANSWER_TIMEOUT_S = 1.0
RESTART_DELAY_S = 0.3
STOP_TIMEOUT_S = 45.0
"""Longer than a worker gives itself."""
MOST_FAILURES, FAILURE_WINDOW_S = 5, 60.0
LOG_LINES = 20


class Slot:
    """A place for one worker: its role, directory, port and log; the process in it changes."""

    def __init__(self, settings: Settings, role: str, name: str, directory: Path, disk: Disk | None) -> None:
        self.role, self.name, self.disk = role, name, disk
        self.settings = settings
        self.log = directory / f"{name}.log"
        self.wanted = True
        """Whether a process that ends is started again."""
        self.doomed: subprocess.Popen[bytes] | None = None
        """The process that the driver itself ends or has ended last."""
        self.filled: subprocess.Popen[bytes] | None = None
        """The last process whose disk was full."""
        self.ready = False
        """Whether ``/readyz`` said so when last asked."""
        self.fault = asyncio.Lock()
        """Held by the fault that is at this worker."""
        self.process: subprocess.Popen[bytes] | None = None
        self.failures: deque[float] = deque(maxlen=MOST_FAILURES + 1)
        self.tasks: list[asyncio.Task[None]] = []

    def configure(self, section: str, **values: object) -> None:
        """Settings of the next process."""
        changed = msgspec.structs.replace(getattr(self.settings, section), **values)
        self.settings = msgspec.structs.replace(self.settings, **{section: changed})

    @property
    def running(self) -> bool:
        """Whether its process lives, stopped or not."""
        return self.process is not None and self.process.poll() is None

    @property
    def port(self) -> int:
        """Of its status pages."""
        return self.settings.observability.port


class Crew:
    """All workers of a run."""

    def __init__(self, command: Sequence[str], directory: Path) -> None:
        """``command`` starts ``stream-app``; ``directory`` gets the logs."""
        self._command = list(command)
        self.slots: list[Slot] = []
        self.restarts: Counter[str] = Counter()
        """Starts after an end, by role."""
        self.failures: Counter[str] = Counter()
        """Ends with a status other than 0 that were not the driver's own doing, by role."""
        self.standby_replicas = 0
        """Of interests workers that are added."""
        self._inherited = _environment(directory)

    def of(self, role: str) -> list[Slot]:
        """The slots in use of a role."""
        return [slot for slot in self.slots if slot.role == role and slot.wanted]

    def add(self, slot: Slot) -> None:
        """Start a worker in a new slot and look after it from now on."""
        self.slots.append(slot)
        slot.tasks = [asyncio.create_task(self._look_after(slot)), asyncio.create_task(self._ask(slot))]

    def check(self) -> None:
        """Raise what ended the supervision of a worker, e.g. a crash loop."""
        for task in (task for slot in self.slots for task in slot.tasks):
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    @property
    def ready(self) -> bool:
        """Whether every wanted worker serves."""
        return all(slot.ready for slot in self.slots if slot.wanted)

    async def wait_until_ready(self, timeout: float) -> None:  # noqa: ASYNC109 - says what it waited for
        """Raises StreamAppError naming who is not."""
        deadline = time.monotonic() + timeout
        while not self.ready:
            self.check()
            if time.monotonic() > deadline:
                slot = next(slot for slot in self.slots if slot.wanted and not slot.ready)
                raise StreamAppError(f"{slot.name} was not ready after {timeout:.0f} s{tail(slot)}")
            await asyncio.sleep(POLL_S)

    # -- what faults do

    def signal(self, slot: Slot, number: signal.Signals) -> None:
        """Send a signal, if there is a process to get it."""
        if slot.running and slot.process is not None:
            with contextlib.suppress(ProcessLookupError):
                slot.process.send_signal(number)

    async def kill(self, slot: Slot) -> None:
        """SIGKILL, and the process is gone. It is started again at once."""
        slot.doomed = slot.process
        self.signal(slot, signal.SIGKILL)
        await self.gone(slot)

    @contextlib.asynccontextmanager
    async def down(self, slot: Slot) -> AsyncIterator[None]:
        """SIGKILL; inside the block the worker stays away."""
        with self.unwanted(slot):
            await self.kill(slot)
            yield

    @contextlib.contextmanager
    def unwanted(self, slot: Slot) -> Iterator[None]:
        """Inside the block a process that ends is not started again."""
        slot.wanted = False
        try:
            yield
        finally:
            slot.wanted = True

    async def terminate(self, slot: Slot) -> int:
        """SIGTERM; the exit status. Raises StreamAppError when it takes too long."""
        if not slot.running:
            return 0
        process = slot.doomed = slot.process
        self.signal(slot, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while process is not None and process.poll() is None:
            if time.monotonic() > deadline:
                raise StreamAppError(
                    f"{slot.name} did not end within {STOP_TIMEOUT_S:.0f} s of SIGTERM{tail(slot)}"
                )
            await asyncio.sleep(POLL_S)
        return 0 if process is None else process.returncode

    async def gone(self, slot: Slot) -> None:
        """Until its process has ended."""
        if slot.process is not None:
            await _ended(slot.process)
        slot.ready = False

    async def retire(self, slot: Slot) -> int:
        """Take a worker out of the run in order; the exit status."""
        slot.wanted = slot.ready = False
        try:
            return await self.terminate(slot)
        finally:
            self._close(slot)

    async def stop(self) -> dict[str, int]:
        """End all in order; exit statuses by name."""
        used = [slot for slot in self.slots if slot.wanted]
        statuses = await asyncio.gather(*(self.retire(slot) for slot in used))
        return dict(zip((slot.name for slot in used), statuses, strict=True))

    def close(self) -> None:
        """End everything by force; may be called at any time."""
        for slot in self.slots:
            self._close(slot)

    def _close(self, slot: Slot) -> None:
        for task in slot.tasks:
            task.cancel()
        if slot.running and slot.process is not None:
            slot.process.kill()
            slot.process.wait()
        if slot.disk is not None:
            slot.disk.close()
            slot.disk = None

    # -- looking after them

    def _started(self, slot: Slot) -> subprocess.Popen[bytes]:
        command = [*self._command, "worker", slot.role, "--end-with-parent"]
        if slot.disk is not None:
            command = slot.disk.inside(command)
        with slot.log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own command
                command,
                env=self._inherited | environment(slot.settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for the driver, which ends them in order
            )

    async def _look_after(self, slot: Slot) -> None:
        """As an orchestrator would: whatever ends is started again, but not for ever."""
        while True:
            process = slot.process = self._started(slot)
            await _ended(process)
            slot.ready = False
            if process.returncode and process is not slot.doomed:
                self.failures[slot.role] += 1
                self._count_failure(slot)
            await asyncio.sleep(RESTART_DELAY_S)
            while not slot.wanted:  # noqa: ASYNC110 - faults are short, a poll is simple
                await asyncio.sleep(POLL_S)
            # no moment passes until the start: who keeps a worker away may change its settings
            self.restarts[slot.role] += 1

    def _count_failure(self, slot: Slot) -> None:
        slot.failures.append(now := time.monotonic())
        if len(slot.failures) > MOST_FAILURES and now - slot.failures[0] < FAILURE_WINDOW_S:
            raise StreamAppError(f"{slot.name} ended {len(slot.failures)} times in a minute{tail(slot)}")

    async def _ask(self, slot: Slot) -> None:
        while True:
            slot.ready = slot.running and await _answers(slot.port)
            await asyncio.sleep(READY_POLL_S)


async def _ended(process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:  # noqa: ASYNC110 - asyncio's own processes would need its child watcher
        await asyncio.sleep(POLL_S)


def tail(slot: Slot) -> str:
    """The end of a worker's log, for an error message."""
    if not slot.log.exists():
        return ""
    lines = slot.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    return "; its log ends with\n  " + "\n  ".join(lines)


async def _answers(port: int) -> bool:
    """Whether ``/readyz`` says 200."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


def with_port(settings: Settings, port: int, data_dir: Path) -> Settings:
    """A worker's own settings."""
    return msgspec.structs.replace(
        settings,
        observability=msgspec.structs.replace(settings.observability, port=port),
        interests=msgspec.structs.replace(settings.interests, data_dir=str(data_dir)),
    )


def _environment(directory: Path) -> dict[str, str]:
    """What workers inherit: everything but settings; what libraries leave behind goes with the directory."""
    temporary = directory / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    return {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)} | {"TMPDIR": str(temporary)}
