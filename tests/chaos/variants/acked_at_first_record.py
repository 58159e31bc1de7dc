"""Broken on purpose: a batch counts as done with its first record, the others follow.

A crash in between leaves an offset behind that has passed inputs whose effects are nowhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

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
    every = [*outputs]
    others = every[1:]
    ends = await commit_whole(self, every[:1], offsets, bound)
    if others:
        broken.ran()
        await asyncio.sleep(broken.WINDOW_S)
        later = await commit_whole(self, others)
        ends = {tp: max(ends.get(tp, 0), later.get(tp, 0)) for tp in {*ends, *later}}
    return ends


def break_it() -> None:
    Transactions.commit = commit  # type: ignore[method-assign]  # what is broken


if __name__ == "__main__":
    broken.main(break_it)
