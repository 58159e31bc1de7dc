"""What the variants share: they are ``stream-app`` with one thing broken on purpose.

``python -m tests.chaos.variants.NAME worker interests`` is a worker like any other but for that.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from faust.types import TP

from stream_app import cli
from stream_app.interests.statistics_record import Outcomes
from stream_app.kafka.marks import Mark
from stream_app.kafka.records import Partition
from stream_app.kafka.topic_ids import Bounds, CommittedOffset
from stream_app.kafka.transactions import Output, TransactionBound, Transactions

RAN = "VARIANT_RAN"
"""Names a file that is there once something has been done the broken way."""

WINDOW_S = 0.3
"""Pause between two steps that must be one: a fault that hits at random hits there often."""


def by_the_group(_state: Outcomes, _tp: TP, group: CommittedOffset, _there: Bounds) -> int:
    """Where reading goes on without the state's own positions, which make good what some variants break."""
    assert group.offset is not None
    return group.offset


Offsets = Mapping[Partition, tuple[int, Mark]]
NO_OFFSETS: Offsets = MappingProxyType({})

commit_at_once = Transactions.commit


async def commit_slowly(
    self: Transactions,
    outputs: Iterable[Output],
    offsets: Offsets = NO_OFFSETS,
    bound: TransactionBound | None = None,
) -> dict[Partition, int]:
    """So that a worker is stopped with something still to commit."""
    await asyncio.sleep(WINDOW_S)
    return await commit_at_once(self, outputs, offsets, bound)


def ran() -> None:
    """Say that something has just been done the broken way: only then does it prove anything."""
    if path := os.environ.get(RAN):
        Path(path).touch()


def main(break_it: Callable[[], None]) -> None:
    """Run the command line; only workers of the interests role are broken."""
    if "interests" in sys.argv:
        break_it()
    sys.exit(cli.run(sys.argv[1:]))
