"""Broken on purpose: a worker says that it has left its partitions while a transaction is still on its way.

Nobody fences it then, and what it commits late overwrites what the new owner has made since: here it is
always so late that the new owner has begun. The group would refuse its offsets, so they are committed in
nobody's name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from stream_app.interests.app import InterestsWorker
from stream_app.kafka.records import Partition
from stream_app.kafka.shared import SharedTransactions
from stream_app.kafka.transactions import Output, TransactionBound, Transactions
from tests.chaos.variants import broken
from tests.kafka.layers import take_away

WINDOW_S = 0.6
"""So long that every partition has something on its way when it is given up."""
LATE_S = 6.0
"""The new owner has begun by then."""

release_completed = SharedTransactions.release


class Worker:
    """How far this worker has got."""

    left = False
    """It has given up its partitions, and nothing was committed since."""


async def release_at_once(self: SharedTransactions) -> None:
    if self._running is None or self._running.done():
        await release_completed(self)
        return
    self.releases += 1
    Worker.left = True
    marks = {
        tp: (at, mark._replace(left=True)) for share in self._shares for tp, (at, mark) in share.marks.items()
    }
    await self._say(marks, self._member)


async def commit_late(
    self: Transactions,
    outputs: Iterable[Output],
    offsets: broken.Offsets = broken.NO_OFFSETS,
    bound: TransactionBound | None = None,
) -> dict[Partition, int]:
    await asyncio.sleep(WINDOW_S)
    if Worker.left:
        Worker.left = False
        broken.ran()
        await asyncio.sleep(LATE_S)
    return await broken.commit_at_once(self, outputs, offsets, bound)


async def settle(self: InterestsWorker) -> None:
    await self._transactions.release()


def break_it() -> None:
    InterestsWorker.settle = settle  # type: ignore[method-assign]  # what is broken
    SharedTransactions.release = release_at_once  # type: ignore[method-assign]
    Transactions.commit = commit_late  # type: ignore[method-assign]
    take_away("generation")


if __name__ == "__main__":
    broken.main(break_it)
