"""A chaos run from start to end: world, workers, workload, faults, recoveries, verdict."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stream_app.chaos.archive import Archive
from stream_app.chaos.crew import Crew, Slot, with_port
from stream_app.chaos.disks import TMPFS, disk
from stream_app.chaos.faults import Faults
from stream_app.chaos.feed import Feed
from stream_app.chaos.positions import Positions
from stream_app.chaos.schedule import Fault
from stream_app.chaos.workload import Workload
from stream_app.chaos.world import World
from stream_app.errors import StreamAppError
from stream_app.kafka.broker import free_port
from stream_app.settings import Settings

START_TIMEOUT_S = 300.0
RECOVERY_TIMEOUT_S = 240.0
MOST_OPEN = 5
"""Faults that may be under way or recovered from at a time."""
POLL_S = 0.1
SETTLE_TIMEOUT_S, SETTLE_POLL_S = 60.0, 0.5
SECONDS_A_FAULT = 4.5
FLUSH_RATE = 3_000.0
"""Events a second once all faults are over and some of the events are still to be sent."""

Say = Callable[[str], None]


@dataclass
class Recovered:
    """A fault that is over and recovered from."""

    fault: Fault
    target: str
    seconds: float


@dataclass
class Run:
    """One run's parts, and what happened so far."""

    world: World
    archive: Archive
    directory: Path
    faults: Sequence[Fault]
    events: int
    command: Sequence[str]
    workers: int
    say: Say
    recovered: list[Recovered] = field(default_factory=list)
    crew: Crew = field(init=False)
    feed: Feed = field(init=False)
    positions: Positions = field(init=False)
    unclean: list[str] = field(default_factory=list)
    how_full: str = TMPFS
    _numbers: int = 0

    async def play(self, seed: int) -> None:
        """Everything up to the point where the workers have nothing left to do; they still run.

        Raises StreamAppError when the run cannot go on.
        """
        rate = max(20.0, self.events / (len(self.faults) * SECONDS_A_FAULT))
        self.feed = Feed(self.world.direct, Workload(seed, time.time_ns() // 1_000_000), rate)
        self.crew = Crew(self.command, self.directory)
        for _ in range(self.workers):
            self._add_interests()
        for role in ("ranker", "content"):
            self.crew.add(Slot(self._settings(role), role, role, self.directory, None))
        count = await asyncio.to_thread(self.feed.publish_contents)
        self.say(f"{count} contents published; waiting for the workers")
        await self.crew.wait_until_ready(START_TIMEOUT_S)
        self.say(f"{len(self.crew.slots)} workers are ready; {rate:.0f} events a second from now on")
        self.feed.start()
        self.positions = Positions(self.world)
        with self.positions as positions:
            await self._all_faults(positions)
            self.feed.rate = FLUSH_RATE
            while self.feed.events < self.events:
                self._check()
                await asyncio.sleep(POLL_S)
            await asyncio.to_thread(self.feed.stop)
            await self._recovery(positions)
            await self._settled()

    async def _settled(self) -> None:
        """Until nothing waits to be tried again and every user has the slate that is due, or for so long
        that the oracle may say what is missing."""
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while time.monotonic() < deadline:
            self._check()
            await asyncio.to_thread(self.archive.catch_up)
            if await asyncio.to_thread(self.archive.unsettled) is None:
                return
            await asyncio.sleep(SETTLE_POLL_S)

    def close(self) -> None:
        """End whatever still runs."""
        if hasattr(self, "crew"):
            self.crew.close()
        if hasattr(self, "feed"):
            self.feed.close()

    # -- faults

    async def _all_faults(self, positions: Positions) -> None:
        acting = Faults(self.world, self.crew, self.feed, positions, self.archive, self._add_interests)
        self.unclean = acting.unclean
        open_faults: set[asyncio.Task[None]] = set()
        try:
            for fault in self.faults:
                due = time.monotonic() + fault.gap_s
                while time.monotonic() < due or len(open_faults) >= MOST_OPEN:
                    self._check()
                    await _first_of(open_faults, POLL_S)
                    open_faults = _unfinished(open_faults)
                open_faults.add(asyncio.create_task(self._one(acting, fault, positions)))
            while open_faults:
                self._check()
                await _first_of(open_faults, POLL_S)
                open_faults = _unfinished(open_faults)
        finally:
            for task in open_faults:
                task.cancel()
            await asyncio.gather(*open_faults, return_exceptions=True)

    async def _one(self, acting: Faults, fault: Fault, positions: Positions) -> None:
        target = await acting.run(fault)
        seconds = await self._recovery(positions)
        self.recovered.append(Recovered(fault, target, seconds))
        done = f"{len(self.recovered)}/{len(self.faults)}"
        self.say(f"{done:>9}  #{fault.number:<4}{fault.kind:<16}{target:<32}{seconds:6.1f} s")

    async def _recovery(self, positions: Positions) -> float:
        """Seconds until what stands on the inputs now is accounted for, and all workers serve."""
        began = time.monotonic()
        target = None
        while target is None or not (self.crew.ready and positions.reached(target)):
            await asyncio.sleep(POLL_S)
            target = positions.target(began) if target is None else target
            if time.monotonic() - began > RECOVERY_TIMEOUT_S:
                absent = [slot.name for slot in self.crew.slots if slot.wanted and not slot.ready]
                raise StreamAppError(
                    f"not recovered after {RECOVERY_TIMEOUT_S:.0f} s: "
                    + (f"{', '.join(absent)} not ready" if absent else "there are events that nobody takes")
                )
        return time.monotonic() - began

    def _check(self) -> None:
        self.crew.check()
        for thread in (self.feed, self.archive, self.positions):
            thread.check()

    # -- workers

    def _add_interests(self) -> Slot:
        self._numbers += 1
        name = f"interests-{self._numbers}"
        its_disk = disk(self.directory / "state" / name)
        self.how_full = its_disk.how
        slot = Slot(self._settings(name), "interests", name, self.directory, its_disk)
        slot.configure("interests", standby_replicas=self.crew.standby_replicas)
        self.crew.add(slot)
        return slot

    def _settings(self, name: str) -> Settings:
        return with_port(self.world.proxied, free_port(), self.directory / "state" / name)


async def _first_of(tasks: set[asyncio.Task[None]], timeout: float) -> None:  # noqa: ASYNC109
    if tasks:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    else:
        await asyncio.sleep(timeout)


def _unfinished(tasks: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Those still under way. Raises what ended one of the others."""
    for task in tasks:
        if task.done() and not task.cancelled():
            task.result()
    return {task for task in tasks if not task.done()}
