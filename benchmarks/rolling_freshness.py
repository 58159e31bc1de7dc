"""Freshness in stretches of time, and what is wrong with a rolling restart: arithmetic alone."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

STEADY = 1.5
"""Freshness is steady when one stretch's median is at most this many times the one before it."""

Cause = tuple[str, int, int]
"""Topic, partition and offset of an event."""


class Seen(NamedTuple):
    """A slate as a subscriber saw it. Times in Unix seconds."""

    cause: Cause
    received: float
    """Kafka timestamp of the event that caused it."""
    seen: float
    """When the subscriber, which reads committed records only, had it."""


class Stretch(NamedTuple):
    """From ``began`` to ``ended``, Unix seconds."""

    began: float
    ended: float


class Figures(msgspec.Struct, frozen=True):
    """Of some times in milliseconds; None where there are none."""

    count: int
    p50_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None


class Step(msgspec.Struct, kw_only=True):
    """One worker's restart."""

    name: str
    role: str
    surge: bool
    """Whether the new one was ready before the old one was told to end."""
    stop_s: float
    """From SIGTERM to the end of the process."""
    ready_s: float
    """From the start of the new process until ``/readyz`` says 200."""
    status: int
    """With which the old one ended."""
    stretch: Stretch
    """From the first act until the old one is gone and every worker is ready."""
    freshness: Figures = Figures(0)


class Requests(msgspec.Struct):
    """What became of requests to the serve replicas."""

    sent: int = 0
    failed: int = 0
    """The replica that was asked did not answer with 200."""
    failed_again: int = 0
    """Nor did another one that was ready, or there was none."""
    nobody: int = 0
    """Of these: when they were sent no replica was ready at all."""


def figures(seconds: Iterable[float]) -> Figures:
    """Count, median, 99th percentile and largest."""
    values = 1000.0 * np.fromiter(seconds, np.float64)
    if not len(values):
        return Figures(0)
    p50, p99 = np.quantile(values, (0.5, 0.99))
    return Figures(len(values), *(round(float(value), 1) for value in (p50, p99, values.max())))


def answers(seen: Iterable[Seen], delayed: Container[Cause] = ()) -> list[Seen]:
    """The first slate that names each event; later ones were made anew, with the age of that event.

    ``delayed``: events that were put back to be tried again; they wait on purpose, and are left out.
    """
    first: dict[Cause, Seen] = {}
    for slate in seen:
        if slate.cause not in delayed:
            first.setdefault(slate.cause, slate)
    return list(first.values())


def freshness(slates: Iterable[Seen], stretches: Sequence[Stretch]) -> Figures:
    """Of the events that were under way, from their arrival to their slate, in one of the stretches."""
    return figures(
        slate.seen - slate.received
        for slate in slates
        if any(slate.received < stretch.ended and slate.seen > stretch.began for stretch in stretches)
    )


def steady(earlier: Figures, later: Figures) -> bool:
    """Whether freshness has stopped to fall."""
    if earlier.p50_ms is None or later.p50_ms is None:
        return False
    return earlier.p50_ms <= STEADY * later.p50_ms and later.p50_ms <= STEADY * earlier.p50_ms


def by_role(slates: Sequence[Seen], steps: Sequence[Step]) -> dict[str, Figures]:
    """Freshness while workers of each role were restarted, in the order of the restarts."""
    roles = dict.fromkeys(step.role for step in steps)
    return {role: freshness(slates, [s.stretch for s in steps if s.role == role]) for role in roles}


def problems(
    wrong: Mapping[str, int], events: int, inputs: int, steps: Sequence[Step], failures: Mapping[str, int]
) -> list[str]:
    """What keeps a rolling restart from being good, in words; empty when nothing does.

    ``wrong``: what the oracle counted, by name; ``events`` were acknowledged by the broker, ``inputs``
    found on the topics; ``failures``: workers that ended by themselves, by role.
    """
    found = [f"{count:,} {name.replace('_', ' ')}" for name, count in wrong.items() if count]
    if inputs != events:
        found.append(f"{events:,} events were acknowledged, {inputs:,} were found on the topics")
    found += [f"{s.name} ended with status {s.status} after SIGTERM" for s in steps if s.status]
    found += [f"{count} times a {role} worker failed by itself" for role, count in failures.items() if count]
    return found


def table(freshness_of: Mapping[str, Figures], steps: Sequence[Step]) -> str:
    """Freshness by stretch, then each restart, in Markdown."""
    lines = ["| stretch | slates | p50, ms | p99, ms | max, ms |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {_cells(found)} |" for name, found in freshness_of.items()]
    lines += [
        "",
        "| restarted | how | to stop, s | to be ready, s | all, s | slates | p50, ms | p99, ms | max, ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for step in steps:
        how = "new one first" if step.surge else "in its place"
        whole = step.stretch.ended - step.stretch.began
        lines.append(
            f"| {step.name} | {how} | {step.stop_s:.1f} | {step.ready_s:.1f} | {whole:.1f} | "
            f"{_cells(step.freshness)} |"
        )
    return "\n".join(lines)


def _cells(found: Figures) -> str:
    times = ("–" if ms is None else f"{ms:,.0f}" for ms in (found.p50_ms, found.p99_ms, found.max_ms))
    return " | ".join((f"{found.count:,}", *times))
