"""Broken on purpose: a new owner reads the changelog first, and fences the old owner only then.

What the old owner, stopped in the middle of a transaction, still commits in between is missed. The
reading takes as long as that needs: here the old owner always wakes just before it is fenced.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiokafka.structs import TopicPartition
from faust.types import TP

from stream_app.interests import partition as partition_module
from stream_app.interests.partition import InterestPartition, writes
from stream_app.interests.store import PartitionStore
from stream_app.kafka.topic_ids import CommittedOffset, InputOffsets
from stream_app.kafka.transactions import Output, Transactions
from tests.chaos.variants import broken

READ_S = 6.0
"""The reading takes no longer, if nobody commits anything."""
LOOK_S = 0.05

open_fenced = InterestPartition.open
commit_at_once = Transactions.commit
fence_at_once = Transactions.fence


class FencedLate:
    """Tells the offsets once the partition is fenced, and fences it as late as it can."""

    def __init__(self, offsets: InputOffsets, partition: InterestPartition) -> None:
        self._offsets, self._partition = offsets, partition
        self.topic_id, self.stable_end = offsets.topic_id, offsets.stable_end
        self.bounds = offsets.bounds

    async def committed(self, tps: Iterable[TP]) -> Mapping[TP, CommittedOffset]:
        tps = list(tps)
        before, begun = await self._offsets.committed(tps), time.monotonic()
        while await self._offsets.committed(tps) == before and time.monotonic() - begun < READ_S:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        partition = self._partition
        await fence_at_once(partition._transactions, writes(partition._settings, partition.partition))
        return await self._offsets.committed(tps)


async def open_unfenced(
    self: InterestPartition, store: PartitionStore, topics: Sequence[str], offsets: InputOffsets, *more: Any
) -> None:
    await open_fenced(self, store, topics, FencedLate(offsets, self), *more)


async def not_yet(_self: Transactions, _writes: object) -> None:
    """The place where the fence belongs."""


async def commit_slowly(
    self: Transactions,
    outputs: Iterable[Output],
    offsets: Mapping[TopicPartition, int],
    *topic_ids: Mapping[str, str],
) -> dict[TopicPartition, int]:
    await asyncio.sleep(broken.WINDOW_S)  # so that a worker is stopped with something still to commit
    return await commit_at_once(self, outputs, offsets, *topic_ids)


def break_it() -> None:
    partition_module.goes_on = broken.by_the_group
    InterestPartition.open = open_unfenced  # type: ignore[method-assign]  # what is broken
    Transactions.fence = not_yet  # type: ignore[method-assign]
    Transactions.commit = commit_slowly  # type: ignore[method-assign]


if __name__ == "__main__":
    broken.main(break_it)
