"""Which fault comes when, and how hard: a pure function of the seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from stream_app.errors import ConfigurationError

KINDS = {
    "kill": "SIGKILL to a worker of any role",
    "term": "SIGTERM to a worker of any role: it ends in order, with status 0, and is started again",
    "zombie": "SIGSTOP to a worker for longer than its session lasts, then SIGCONT",
    "worker_added": "one more interests worker: a rebalance",
    "worker_removed": "an interests worker leaves for good (SIGTERM): a rebalance",
    "broker_killed": "SIGKILL to Kafka, which is started again",
    "broker_frozen": "SIGSTOP to Kafka, then SIGCONT",
    "connections_cut": "a part of all connections between workers and broker is closed, several times",
    "network_hung": "connections between workers and broker stay open but carry nothing",
    "state_deleted": "SIGKILL to an interests worker, its state directory is deleted",
    "state_damaged": "SIGKILL to an interests worker, its newest RocksDB files are cut off somewhere",
    "disk_full": "the state directory of an interests worker has no room left for a while",
    "duplicates": "a burst of events that were sent before",
    "reordered": "a burst of late events in an order of its own",
    "topic_recreated": "an event topic is deleted and created again, and grows past where it was",
    "compacted": "the changelogs roll and compact their segments as fast as Kafka can",
    "standbys": "the interests workers restart one by one with standbys on, or off again",
    "offsets_deleted": "SIGKILL to all interests workers; the broker forgets their group and its offsets",
    "topic_grown": "an event topic gets more partitions than the interests table has",
    "wrong_partition": "a burst of events from a producer with another partitioner (CRC-32)",
    "compressed": "the broker compresses an event topic by gzip, snappy, lz4 or zstd for a while",
    "model_switched": "all workers restart with another text encoder, or with the first one again",
    "future_timestamps": "a burst of events whose Kafka timestamps lie in the year 2191",
}
"""Every kind of fault, and what it does."""

ROLES = ("interests", "interests", "interests", "ranker", "content")
"""Among which a killed worker's role is drawn: most state is with the interests workers."""

SHORTEST_GAP_S, MEAN_GAP_S, LONGEST_GAP_S = 1.0, 4.0, 9.0
SHORTEST_FAULT_S, LONGEST_FAULT_S = 1.0, 4.0


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault. What it hits is given as a number in [0, 1): which of those that are there then."""

    number: int
    """From 1."""
    kind: str
    gap_s: float
    """From the beginning of the fault before."""
    role: str
    """Of the worker that is hit, for kinds that hit one of any role."""
    place: float
    """Which of the possible targets, in [0, 1)."""
    share: float
    """How much of it (connections, bytes, …), in [0, 1)."""
    seconds: float
    """How long, for kinds that last."""


def schedule(seed: int, count: int, kinds: Sequence[str] = tuple(KINDS)) -> tuple[Fault, ...]:
    """``count`` faults, each kind as often as any other (within one). Raises ConfigurationError.

    Workers are added and removed in turn, so that their number stays what it was.
    """
    if unknown := sorted(set(kinds) - KINDS.keys()):
        raise ConfigurationError(f"--kinds {','.join(unknown)}: known are {', '.join(KINDS)}")
    if count < 1 or not kinds:
        raise ConfigurationError("a chaos run needs at least one fault of at least one kind")
    rng = random.Random(seed)  # noqa: S311 - replayable on purpose
    drawn = rng.sample(list(kinds), len(kinds)) * (count // len(kinds) + 1)
    order = rng.sample(drawn[:count], count)
    return tuple(
        Fault(
            number=number,
            kind=kind,
            gap_s=_gap(rng),
            role=rng.choice(ROLES),
            place=rng.random(),
            share=rng.random(),
            seconds=round(rng.uniform(SHORTEST_FAULT_S, LONGEST_FAULT_S), 3),
        )
        for number, kind in enumerate(_in_turn(order), 1)
    )


def _gap(rng: random.Random) -> float:
    return round(min(LONGEST_GAP_S, SHORTEST_GAP_S + rng.expovariate(1 / (MEAN_GAP_S - SHORTEST_GAP_S))), 3)


def _in_turn(order: Sequence[str]) -> list[str]:
    """Additions and removals keep their places together, but alternate, beginning with an addition."""
    turns = ("worker_added", "worker_removed")
    if not set(turns) <= set(order):
        return list(order)
    alternating, result = 0, []
    for kind in order:
        if kind in turns:
            kind = turns[alternating % 2]
            alternating += 1
        result.append(kind)
    return result
