"""How much each part of the suite does: a quick run of at most ten minutes, or a full one."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any


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
    events=250_000,
    users=50_000,
    faust_events=15_000,
    jit_events=1_000_000,
    contents=(3_000,),
    rates=(10, 100, 500, 2_000),
    seconds=4.0,
    backlog=3_000,
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

HELP = {
    "repeats": "how often each figure is taken",
    "events": "backlog of the state path",
    "users": "users that the backlog is spread over",
    "faust_events": "events of the backlog that the Faust agent does",
    "jit_events": "events that Kafka Streams does before anything is measured",
    "contents": "catalogue sizes of freshness and ranking",
    "rates": "events/s offered",
    "seconds": "of each rate and each ranking",
    "backlog": "events written at once, to be drained",
    "recovered_users": "users whose state is recovered",
    "faust_records": "records that Faust recovers",
    "texts": "texts to encode",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """An option for each size; without it that of the quick or the full run."""
    for field in dataclasses.fields(Sizes):
        quick, full = getattr(QUICK, field.name), getattr(FULL, field.name)
        many = isinstance(quick, tuple)
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=type(quick[0] if many else quick),
            nargs="+" if many else None,
            metavar="N",
            help=f"{HELP[field.name]} (quick {_shown(quick)}, full {_shown(full)})",
        )


def chosen(args: argparse.Namespace) -> Sizes:
    """Those of ``args.quick``, or full ones, with what was given on the command line."""
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(Sizes)}
    changed: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }
    return dataclasses.replace(QUICK if args.quick else FULL, **changed)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
