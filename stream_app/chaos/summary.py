"""A chaos run in figures: what ``--summary FILE`` holds, and what is wrong with it in words."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median

import msgspec

from stream_app.chaos.oracle import TOLERANCE, verdict
from stream_app.chaos.run import Run
from stream_app.errors import StreamAppError


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
    """Of these, by the oracle: nowhere."""
    doubled: int
    """Of these, by the oracle: in two places; or effects without an event."""
    counters_equal: bool
    """The product's own accounts are the oracle's."""
    max_relative_error: float
    """Largest of all users' vectors and masses."""
    committed_ahead: int
    """Offsets that were committed before what they vouch for stood on the topics."""
    users: int
    slates: int
    inputs: int
    """Event records that the oracle found on the topics."""
    accounts: dict[str, int]
    """What became of the events."""
    wrong: dict[str, int]
    """Whatever else the oracle found, by name."""
    differences: list[str]
    """The first of each kind, in words."""
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
    """End the workers in order and hear the oracle."""
    statuses = await run.crew.stop()
    await asyncio.to_thread(run.archive.catch_up)
    run.archive.stop()
    found = await asyncio.to_thread(verdict, run.archive.archived)
    by_kind: dict[str, list[float]] = defaultdict(list)
    for done in run.recovered:
        by_kind[done.fault.kind].append(done.seconds)
    return Summary(
        seed=seed,
        faults=len(run.recovered),
        by_kind=dict(Counter(done.fault.kind for done in run.recovered)),
        events=run.feed.events,
        lost=found.lost,
        doubled=found.doubled,
        counters_equal=found.counters_equal,
        max_relative_error=found.max_relative_error,
        committed_ahead=found.committed_ahead,
        inputs=found.inputs,
        users=found.users,
        slates=found.slates,
        accounts=found.accounts,
        wrong={name: getattr(found, name) for name in found.wrongs if name not in Summary.__struct_fields__},
        differences=found.differences,
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
    found = [
        f"{count:,} {what}"
        for count, what in (
            (summary.lost, f"of {summary.events:,} events are lost"),
            (summary.doubled, "events are counted twice"),
            (summary.committed_ahead, "offsets were committed too early"),
            *((count, name.replace("_", " ")) for name, count in summary.wrong.items()),
        )
        if count
    ]
    if not summary.counters_equal:
        found.append("the product's accounts are not those of the oracle")
    if summary.max_relative_error > TOLERANCE:
        found.append(f"a user's state is wrong by {summary.max_relative_error:.2g}, relative")
    if summary.unclean:
        found.append(f"SIGTERM did not end these with status 0: {', '.join(summary.unclean)}")
    if summary.inputs != summary.events:
        found.append(
            f"{summary.events:,} events were acknowledged, {summary.inputs:,} were found on the topics"
        )
    return found


def describe(summary: Summary) -> str:
    """The summary, one figure a line."""
    rows = [
        (name.replace("_", " "), str(value))
        for name, value in msgspec.structs.asdict(summary).items()
        if name not in ("by_kind", "recovery_s", "recovery_by_kind", "differences")
    ]
    rows += [
        (f"  {kind}", f"{summary.by_kind[kind]} times, recovered in p50 {r.p50:.1f} s, at most {r.max:.1f} s")
        for kind, r in summary.recovery_by_kind.items()
    ]
    return "\n".join([*(f"{name:<20}{value}" for name, value in rows), *summary.differences])


def write(path: Path, summary: Summary) -> None:
    """As JSON. Raises StreamAppError."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(summary)) + b"\n")
    except OSError as error:
        raise StreamAppError(f"--summary {path}: {error.strerror}") from None
