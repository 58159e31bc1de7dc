"""A rolling restart of all roles under load: is anything lost, and how fresh are slates meanwhile?

    python benchmarks/rolling_restart.py --rate 50 --summary rolling.json

A local Apache Kafka, every role as real processes (two of interests, ranker and serve), a seeded stream of
events (that of `stream-app chaos`: undos, repeats, late and malformed events among them). Once freshness
is steady, a stretch without restarts; then one worker after the other, as Kubernetes rolls the manifests in
`deploy/kubernetes`: in a StatefulSet (interests, serve) SIGTERM, and the next one in its place, with its
volume; in a Deployment the new one first, and SIGTERM to the old one once that is ready. In the end the
oracle of `stream-app chaos` judges every event; the exit status is 1 if one is lost or counted twice, or if
a worker does not end with status 0.

Freshness is from an event's Kafka timestamp to the moment in which a subscriber, which reads committed
records only, has the slate that it caused. Events whose content is not known yet wait on purpose, and are
left out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from rolling_clients import Asker, Subscriber
from rolling_freshness import (
    Cause,
    Figures,
    Seen,
    Step,
    Stretch,
    answers,
    by_role,
    figures,
    freshness,
    problems,
    steady,
    table,
)

from stream_app.chaos.archive import Archive
from stream_app.chaos.archived import Archived
from stream_app.chaos.crew import Crew, Slot, tail, with_port
from stream_app.chaos.feed import Feed
from stream_app.chaos.layouts import origin
from stream_app.chaos.oracle import Verdict, verdict
from stream_app.chaos.workload import Workload
from stream_app.errors import StreamAppError
from stream_app.kafka.admin import create_topics
from stream_app.kafka.broker import LocalBroker, free_port
from stream_app.processes import unwind_on_sigterm
from stream_app.settings import Settings, build

WORKERS = {"content": 1, "interests": 2, "trainer": 1, "ranker": 2, "serve": 2}
"""How many of each role, in the order in which an upgrade goes through them."""
IN_PLACE = ("interests", "serve")
"""Roles that are StatefulSets: each worker has a name and a volume that its successor takes over."""
START_TIMEOUT_S, READY_TIMEOUT_S, SETTLE_TIMEOUT_S = 300.0, 300.0, 120.0
WARM_UP_S, WARM_UP_MOST_S = 10.0, 180.0
"""Length of the stretches that are compared until freshness is steady, and the longest wait for that."""
POLL_S, SETTLE_POLL_S, PROGRESS_S = 0.05, 1.0, 15.0
WHOLE_HISTORY = 1024
"""Interactions that a record holds: more than any user of a run has, as the oracle needs it."""


def settings_for(address: str, standbys: int) -> Settings:
    """The defaults, but for what the oracle needs and for short waits of events on unknown contents."""
    return build(
        {
            "kafka": {"broker": address, "app_id": "rolling"},
            "events": {"retry_delays_s": (0.5, 1.0, 2.0)},
            "interests": {
                "recent": WHOLE_HISTORY,
                "seen": WHOLE_HISTORY,
                "min_mass": 0.0,
                "standby_replicas": standbys,
            },
            "recommendations": {"skip_unchanged": False},
            "ranking": {"threads": 1},
        }
    )


class Roll:
    """One run: the crew, its load, those who watch."""

    def __init__(
        self, args: argparse.Namespace, settings: Settings, archive: Archive, directory: Path
    ) -> None:
        self.steps: list[Step] = []
        self.before = self.during = Stretch(0.0, 0.0)
        self.archive = archive
        self.subscriber = Subscriber(settings)
        self.feed = Feed(settings, Workload(args.seed, time.time_ns() // 1_000_000), args.rate)
        self.crew = Crew(shlex.split(args.worker_command), directory)
        self.asker = Asker(self.crew, args.requests, args.seed)
        self._args, self._settings, self._directory = args, settings, directory
        self._numbers = dict.fromkeys(WORKERS, 0)
        self._told = 0.0

    async def play(self) -> Verdict:
        """All of it; what the oracle finds in the end. Raises StreamAppError when it cannot go on."""
        for role, count in WORKERS.items():
            for _ in range(count):
                self._add(role)
        contents = await asyncio.to_thread(self.feed.publish_contents)
        say(f"{contents} contents published; waiting for {len(self.crew.slots)} workers")
        await self._until(lambda: self.crew.ready, START_TIMEOUT_S, "all workers to be ready")
        say(f"all are ready; {self._args.rate:g} events a second from now on")
        self.subscriber.start()
        self.feed.start()
        await self._warm_up()
        self.asker.start()
        self.before = await self._stretch(self._args.seconds)
        say(f"without restarts: {_line(freshness(self.slates(), [self.before]))}")
        began = time.time()
        for role in self._args.roles:
            for slot in reversed(self.crew.of(role)):  # the highest number first, as StatefulSets do
                await self._restart(slot)
                await self._stretch(self._args.pause)
        self.during = Stretch(began, time.time())
        self.asker.stop()
        return await self._drain()

    def slates(self, delayed: frozenset[Cause] = frozenset()) -> list[Seen]:
        """Those that answer an event."""
        return answers(self.subscriber.seen, delayed)

    def close(self) -> None:
        """End whatever still runs."""
        self.asker.stop()
        self.crew.close()
        self.feed.close()
        self.subscriber.stop()

    # -- the stretches

    async def _warm_up(self) -> None:
        deadline = time.monotonic() + WARM_UP_MOST_S
        earlier, later = Figures(0), Figures(0)
        while not steady(earlier, later):
            if time.monotonic() > deadline:
                raise StreamAppError(
                    f"freshness is not steady after {WARM_UP_MOST_S:.0f} s of --rate {self._args.rate:g}: "
                    f"first {_line(earlier)}, then {_line(later)}; a lower rate may do"
                )
            stretch = await self._stretch(WARM_UP_S)
            earlier, later = later, freshness(self.slates(), [stretch])
            say(f"warm-up: {_line(later)}")

    async def _stretch(self, seconds: float) -> Stretch:
        """Let that much time pass."""
        began = time.time()
        await self._until(lambda: time.time() >= began + seconds, seconds + READY_TIMEOUT_S, "time to pass")
        return Stretch(began, time.time())

    async def _drain(self) -> Verdict:
        await asyncio.to_thread(self.feed.stop)
        say(f"{self.feed.events:,} events sent; waiting until all are settled")
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        owed: str | None = "all"
        while owed is not None and time.monotonic() < deadline:  # else the oracle says what is missing
            await asyncio.sleep(SETTLE_POLL_S)
            self._check()
            await asyncio.to_thread(self.archive.catch_up)
            owed = await asyncio.to_thread(self.archive.unsettled)
        for name, status in (await self.crew.stop()).items():
            if status:
                raise StreamAppError(f"{name} ended with status {status} when all was over")
        await asyncio.to_thread(self.archive.catch_up)
        self.archive.stop()
        self.subscriber.stop()
        return await asyncio.to_thread(verdict, self.archive.archived)

    # -- restarts

    async def _restart(self, slot: Slot) -> None:
        surge = slot.role not in IN_PLACE
        began = time.time()
        stop_s, ready_s, status = await (self._surge(slot) if surge else self._in_place(slot))
        await self._until(
            lambda: self.crew.ready, READY_TIMEOUT_S, f"all to be ready again after {slot.name}"
        )
        stretch = Stretch(began, time.time())
        step = Step(
            name=slot.name,
            role=slot.role,
            surge=surge,
            stop_s=round(stop_s, 2),
            ready_s=round(ready_s, 2),
            status=status,
            stretch=stretch,
            freshness=freshness(self.slates(), [stretch]),
        )
        self.steps.append(step)
        say(
            f"{slot.name}: status {status} after {stop_s:.1f} s, its successor ready after {ready_s:.1f} s; "
            f"{_line(step.freshness)}"
        )

    async def _in_place(self, slot: Slot) -> tuple[float, float, int]:
        """The crew, like a StatefulSet, starts the successor as soon as the old one has ended."""
        old, began = slot.process, time.monotonic()
        status = await self.crew.terminate(slot)
        slot.ready = False  # of the old one
        stopped = time.monotonic()
        await self._until(
            lambda: slot.process is not old and slot.ready, READY_TIMEOUT_S, f"{slot.name} to be ready", slot
        )
        return stopped - began, time.monotonic() - stopped, status

    async def _surge(self, slot: Slot) -> tuple[float, float, int]:
        began = time.monotonic()
        successor = self._add(slot.role)
        await self._until(
            lambda: successor.ready, READY_TIMEOUT_S, f"{successor.name} to be ready", successor
        )
        ready = time.monotonic()
        status = await self.crew.retire(slot)
        return time.monotonic() - ready, ready - began, status

    def _add(self, role: str) -> Slot:
        self._numbers[role] += 1
        name = f"{role}-{self._numbers[role]}"
        settings = with_port(self._settings, free_port(), self._directory / "state" / name)
        serving = msgspec.structs.replace(settings.serving, port=free_port())
        slot = Slot(msgspec.structs.replace(settings, serving=serving), role, name, self._directory, None)
        self.crew.add(slot)
        return slot

    # -- waiting

    async def _until(
        self, there: Callable[[], bool], timeout_s: float, what: str, slot: Slot | None = None
    ) -> None:
        deadline = time.monotonic() + timeout_s
        while not there():
            self._check()
            if time.monotonic() > deadline:
                absent = [s for s in self.crew.slots if s.wanted and not s.ready]
                about = slot or (absent[0] if absent else None)
                raise StreamAppError(
                    f"waited {timeout_s:.0f} s for {what}{tail(about) if about is not None else ''}"
                )
            await asyncio.sleep(POLL_S)

    def _check(self) -> None:
        self.crew.check()
        self.feed.check()
        self.subscriber.check()
        if time.monotonic() - self._told > PROGRESS_S:
            self._told = time.monotonic()
            waiting = [slot.name for slot in self.crew.slots if slot.wanted and not slot.ready]
            say(f"  {self.feed.events:,} events; not ready: {', '.join(waiting) or 'nobody'}")


def delayed(archived: Archived) -> frozenset[Cause]:
    """Events that were put back to be tried again."""
    origins = [origin(copy.headers) for copies in archived.copies.values() for copy in copies.values()]
    return frozenset((found.topic, found.partition, found.offset) for found in origins if found is not None)


def wrongs(found: Verdict) -> dict[str, int]:
    """Whatever the oracle does not like, by name."""
    counts = {name: int(getattr(found, name)) for name in found.wrongs}
    unequal = {} if found.counters_equal else {"account that is not the oracle's": 1}
    unsound = {} if found.sound or counts or unequal else {"user's state is wrong": 1}
    return counts | unequal | unsound


def summary(roll: Roll, found: Verdict, args: argparse.Namespace, load: list[float]) -> dict[str, Any]:
    """Everything, for JSON."""
    late = delayed(roll.archive.archived)
    slates = roll.slates(late)
    for step in roll.steps:
        step.freshness = freshness(slates, [step.stretch])
    return {
        "parameters": vars(args),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": load,
        "events": roll.feed.events,
        "delayed": len(late),
        "freshness": {
            "without restarts": freshness(slates, [roll.before]),
            "the whole roll": freshness(slates, [roll.during]),
            **by_role(slates, roll.steps),
        },
        "steps": roll.steps,
        "roll_s": round(roll.during.ended - roll.during.began, 1),
        "requests": roll.asker.requests,
        "refusals": roll.asker.refusals,
        "answers": figures(roll.asker.seconds),
        "verdict": found,
        "problems": problems(
            wrongs(found), roll.feed.events, found.inputs, roll.steps, dict(roll.crew.failures)
        ),
    }


def report(result: dict[str, Any]) -> str:
    """The same, to be read."""
    found, requests = result["verdict"], result["requests"]
    refusals = ", ".join(f"{count} {what}" for what, count in result["refusals"].items())
    return "\n".join(
        [
            table(result["freshness"], result["steps"]),
            "",
            f"{result['events']:,} events: {found.lost} lost, {found.doubled} doubled, accounts "
            f"{'equal' if found.counters_equal else 'NOT EQUAL'}, {found.slates_wrong} users without their "
            f"slate, {found.committed_ahead} offsets committed ahead, largest error "
            f"{found.max_relative_error:.1e}; {result['delayed']} events were tried again later",
            f"{requests.sent:,} requests for slates: {requests.failed} failed at first"
            f"{f' ({refusals})' if refusals else ''}, {requests.failed_again} also at the other replica, "
            f"{requests.nobody} met no ready replica; {_line(result['answers'])}",
        ]
    )


def _line(found: Figures) -> str:
    return f"p50 {found.p50_ms} ms, p99 {found.p99_ms} ms, at most {found.max_ms} ms ({found.count:,})"


def say(text: str) -> None:
    """One line, now."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


async def play(
    args: argparse.Namespace, settings: Settings, archive: Archive, directory: Path
) -> dict[str, Any]:
    """A run from start to end; its summary."""
    before = os.getloadavg()[0]
    roll = Roll(args, settings, archive, directory)
    try:
        found = await roll.play()
        return summary(roll, found, args, [before, *os.getloadavg()[:2]])
    finally:
        roll.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=50.0, help="events a second (default %(default)s)")
    parser.add_argument("--requests", type=float, default=20.0, help="requests for slates a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the stretch without restarts")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds between two restarts")
    parser.add_argument(
        "--roles",
        nargs="+",
        choices=tuple(WORKERS),
        default=tuple(WORKERS),
        metavar="ROLE",
        help="restart these alone (default: all: %(choices)s)",
    )
    parser.add_argument("--standbys", type=int, default=0, help="interests.standby_replicas")
    parser.add_argument("--seed", type=int, default=1, help="of the events")
    parser.add_argument("--summary", type=Path, help="write everything as JSON")
    parser.add_argument("--logs", type=Path, help="keep the workers' logs in this directory")
    parser.add_argument(
        "--worker-command",
        default=f"{shlex.quote(sys.executable)} -m stream_app",
        help="what stands for `stream-app`: for workers that are broken on purpose",
    )
    args = parser.parse_args()
    unwind_on_sigterm()
    with contextlib.ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="stream-app-rolling-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        if args.logs:
            stack.callback(keep_logs, directory, args.logs)
        say("starting Kafka")
        broker = stack.enter_context(LocalBroker(directory / "broker"))
        settings = settings_for(broker.address, args.standbys)
        create_topics(settings)
        archive = stack.enter_context(Archive(settings))
        result = asyncio.run(play(args, settings, archive, directory))
    if args.summary:
        encoded = msgspec.json.encode(result, enc_hook=str)
        args.summary.write_bytes(msgspec.json.format(encoded) + b"\n")
    print(report(result))
    for problem in result["problems"]:
        print(f"NOT GOOD: {problem}", file=sys.stderr)
    return 1 if result["problems"] else 0


def keep_logs(directory: Path, where: Path) -> None:
    """Copy the workers' logs."""
    where.mkdir(parents=True, exist_ok=True)
    for log in directory.glob("*.log"):
        shutil.copy(log, where)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StreamAppError as error:
        sys.exit(f"rolling_restart: {error}")
