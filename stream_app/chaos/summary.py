"""A chaos run in figures: what ``--summary FILE`` holds, and what is wrong with it in words."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median

import msgspec

from stream_app.chaos.run import Run
from stream_app.errors import StreamAppError
from stream_app.replay.accounting import read_outcomes


class Recovery(msgspec.Struct):
    """Seconds from the end of a fault until all that stood on the inputs then was accounted for, and
    every worker served."""

    p50: float
    max: float


class Summary(msgspec.Struct, kw_only=True):
    """A run in figures."""

    seed: int
    faults: int
    """Faults that were recovered from."""
    by_kind: dict[str, int]
    events: int
    """Event records that the broker acknowledged."""
    lost: int
    doubled: int
    counters_equal: bool
    recovery_s: Recovery
    recovery_by_kind: dict[str, Recovery]
    restarts: dict[str, int]
    """Starts of a worker after an end, by role."""
    failures: dict[str, int]
    """Ends with an error that the faults brought about, by role."""
    unclean: list[str]
    """Workers that SIGTERM did not end with status 0."""
    full_disk: str
    """How a full disk was made: ``tmpfs`` or ``rlimit``."""
    duration_s: float


async def summarize(run: Run, seed: int, began: float) -> Summary:
    """Let everything settle, hear the oracle, end the workers."""
    deadline = time.monotonic() + 60
    outcomes = await asyncio.to_thread(read_outcomes, run.world.direct)
    while outcomes.retrying and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
        outcomes = await asyncio.to_thread(read_outcomes, run.world.direct)
    statuses = await run.crew.stop()
    by_kind: dict[str, list[float]] = defaultdict(list)
    for done in run.recovered:
        by_kind[done.fault.kind].append(done.seconds)
    return Summary(
        seed=seed,
        faults=len(run.recovered),
        by_kind=dict(Counter(done.fault.kind for done in run.recovered)),
        events=run.feed.events,
        lost=max(0, run.feed.events - outcomes.accounted),
        doubled=max(0, outcomes.accounted - run.feed.events),
        counters_equal=outcomes.accounted == run.feed.events and not outcomes.retrying,
        recovery_s=_recovery([done.seconds for done in run.recovered]),
        recovery_by_kind={kind: _recovery(seconds) for kind, seconds in sorted(by_kind.items())},
        restarts=dict(run.crew.restarts),
        failures=dict(run.crew.failures),
        unclean=run.unclean + [f"{name}: {status}" for name, status in statuses.items() if status],
        full_disk=run.how_full,
        duration_s=round(time.monotonic() - began, 1),
    )


def _recovery(seconds: list[float]) -> Recovery:
    return Recovery(round(median(seconds), 2), round(max(seconds), 2))


def problems(summary: Summary) -> list[str]:
    """What keeps a run from being good, in words; empty when nothing does."""
    found = []
    if summary.lost:
        found.append(f"{summary.lost:,} of {summary.events:,} events are lost")
    if summary.doubled:
        found.append(f"{summary.doubled:,} events are counted twice")
    if not summary.counters_equal:
        found.append("the counters are not equal")
    return found


def describe(summary: Summary) -> str:
    """The summary, one figure a line."""
    rows = [
        (name.replace("_", " "), str(value))
        for name, value in msgspec.structs.asdict(summary).items()
        if not isinstance(value, dict | Recovery)
    ]
    rows += [
        (f"  {kind}", f"{summary.by_kind[kind]} times, recovered in p50 {r.p50:.1f} s, at most {r.max:.1f} s")
        for kind, r in summary.recovery_by_kind.items()
    ]
    return "\n".join(f"{name:<20}{value}" for name, value in rows)


def write(path: Path, summary: Summary) -> None:
    """As JSON. Raises StreamAppError."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(summary)) + b"\n")
    except OSError as error:
        raise StreamAppError(f"--summary {path}: {error.strerror}") from None
