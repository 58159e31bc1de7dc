"""Broken on purpose: the offset is committed in a transaction of its own, after what the batch caused.

A crash between the two leaves the effects without their offset: the batch is applied again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from stream_app.interests import partition as partition_module
from stream_app.kafka.records import Partition
from stream_app.kafka.transactions import Output, TransactionBound, Transactions
from tests.chaos.variants import broken

commit_whole = Transactions.commit


async def commit(
    self: Transactions,
    outputs: Iterable[Output],
    offsets: broken.Offsets = broken.NO_OFFSETS,
    bound: TransactionBound | None = None,
) -> dict[Partition, int]:
    broken.ran()
    ends = await commit_whole(self, outputs)
    await asyncio.sleep(broken.WINDOW_S)
    await commit_whole(self, [], offsets, bound)
    return ends


def break_it() -> None:
    partition_module.goes_on = broken.by_the_group
    Transactions.commit = commit  # type: ignore[method-assign]  # what is broken


if __name__ == "__main__":
    broken.main(break_it)
