"""Broken on purpose: a new owner reads the changelog first, and fences the old owner only then.

What the old owner, stopped in the middle of a transaction, still commits in between is missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.structs import TopicPartition

from stream_app.interests.partition import Committed, InterestPartition
from stream_app.interests.store import PartitionStore
from stream_app.kafka.transactions import Output, PartitionTransactions
from tests.chaos.variants import broken

READ_S = 6.0
"""How long the reading seems to take: until after a stopped worker has woken."""

open_fenced = InterestPartition.open
commit_at_once = PartitionTransactions.commit
fence = PartitionTransactions.fence


async def open_unfenced(
    self: InterestPartition, store: PartitionStore, committed: Committed, *more: Any, **named: Any
) -> None:
    async def fence_now(partition: int) -> Mapping[str, int | None]:
        await asyncio.sleep(READ_S)
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


if __name__ == "__main__":
    InterestPartition.open = open_unfenced  # type: ignore[method-assign]  # what is broken
    PartitionTransactions.fence = not_yet  # type: ignore[method-assign]
    PartitionTransactions.commit = commit_slowly  # type: ignore[method-assign]
    broken.main()
