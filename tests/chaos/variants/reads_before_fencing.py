"""Broken on purpose: a new owner reads the changelog first, and fences the old owner only then.

What the old owner, stopped in the middle of a transaction, still commits in between is missed. The
reading takes as long as that needs: here the old owner always wakes just before it is fenced.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.structs import TopicPartition

from stream_app.interests.partition import Committed, InterestPartition
from stream_app.interests.store import PartitionStore
from stream_app.kafka.transactions import Output, PartitionTransactions
from tests.chaos.variants import broken

READ_S = 6.0
"""The reading takes no longer, if nobody commits anything."""
LOOK_S = 0.05

open_fenced = InterestPartition.open
commit_at_once = PartitionTransactions.commit
fence = PartitionTransactions.fence


async def open_unfenced(
    self: InterestPartition, store: PartitionStore, committed: Committed, *more: Any, **named: Any
) -> None:
    async def fence_now(partition: int) -> Mapping[str, int | None]:
        before, begun = await committed(partition), time.monotonic()
        while await committed(partition) == before and time.monotonic() - begun < READ_S:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        await fence(self._transactions)
        return await committed(partition)

    await open_fenced(self, store, fence_now, *more, **named)


async def not_yet(_: PartitionTransactions) -> None:
    """The place where the fence belongs."""


async def commit_slowly(
    self: PartitionTransactions, outputs: Iterable[Output], offsets: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    await asyncio.sleep(broken.WINDOW_S)  # so that a worker is stopped with something still to commit
    return await commit_at_once(self, outputs, offsets)


def break_it() -> None:
    InterestPartition.open = open_unfenced  # type: ignore[method-assign]  # what is broken
    PartitionTransactions.fence = not_yet  # type: ignore[method-assign]
    PartitionTransactions.commit = commit_slowly  # type: ignore[method-assign]


if __name__ == "__main__":
    broken.main(break_it)
