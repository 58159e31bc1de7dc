"""How much each part of the suite does: a quick run of at most ten minutes, or a full one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Sizes of one run; every rate is taken ``repeats`` times."""

    repeats: int
    events: int
    """Backlog of the state path."""
    users: int
    """Whom the backlog is spread over."""
    faust_events: int
    """What the idiomatic Faust agent does of the backlog: it would take minutes for all."""
    jit_events: int
    """Events that Kafka Streams handles before anything is measured."""
    contents: tuple[int, ...]
    """Catalogues of freshness and ranking."""
    rates: tuple[int, ...]
    """Events/s offered, one after another."""
    seconds: float
    """Of each rate, and of each ranking."""
    backlog: int
    """Events that are written at once, to be drained."""
    recovered_users: int
    faust_records: int
    """Records that Faust recovers."""
    texts: int


QUICK = Sizes(
    repeats=3,
    events=400_000,
    users=50_000,
    faust_events=20_000,
    jit_events=1_000_000,
    contents=(3_000,),
    rates=(10, 100, 500, 2_000),
    seconds=5.0,
    backlog=5_000,
    recovered_users=100_000,
    faust_records=20_000,
    texts=300,
)

FULL = Sizes(
    repeats=5,
    events=1_200_000,
    users=50_000,
    faust_events=40_000,
    jit_events=1_000_000,
    contents=(3_000, 100_000),
    rates=(10, 100, 500, 2_000),
    seconds=30.0,
    backlog=20_000,
    recovered_users=1_000_000,
    faust_records=100_000,
    texts=2_000,
)
