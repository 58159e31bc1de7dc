"""Broken on purpose: a new owner reads the changelog first, and fences the old owner only then.

What the old owner, stopped in the middle of a transaction, still commits in between is missed. The
reading takes as long as that needs: here the old owner always wakes just before it is fenced. The group would
refuse its offsets, so they are committed in nobody's name; and the state's own positions do not count.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stream_app.interests import partition as partition_module
from stream_app.interests.partition import InterestPartition
from stream_app.interests.store import PartitionStore
from stream_app.kafka.records import Partition
from stream_app.kafka.shared import Share
from stream_app.kafka.topic_ids import CommittedOffset, InputOffsets
from stream_app.kafka.transactions import Transactions
from tests.chaos.variants import broken
from tests.kafka.layers import take_away

READ_S = 6.0
"""The reading takes no longer, if nobody commits anything."""
LOOK_S = 0.05

open_fenced = InterestPartition.open
fence_at_once = Share.claim


class FencedLate:
    """Tells the offsets once the partition is fenced, and fences it as late as it can."""

    def __init__(self, offsets: InputOffsets, share: Share) -> None:
        self._broker, self._share = offsets, share
        self.topic_id, self.stable_end, self.bounds = offsets.topic_id, offsets.stable_end, offsets.bounds
        self.offsets, self.claim, self.confirm = offsets.offsets, offsets.claim, offsets.confirm

    async def committed(self, tps: Iterable[Partition]) -> Mapping[Partition, CommittedOffset]:
        tps = list(tps)
        before, begun = await self._broker.committed(tps), time.monotonic()
        while await self._broker.committed(tps) == before and time.monotonic() - begun < READ_S:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        broken.ran()
        await fence_at_once(self._share)
        return await self._broker.committed(tps)


async def open_unfenced(
    self: InterestPartition, store: PartitionStore, topics: Sequence[str], offsets: InputOffsets, *more: Any
) -> None:
    await open_fenced(self, store, topics, FencedLate(offsets, self.share), *more)


async def not_yet(_self: Share) -> None:
    """The place where the fence belongs."""


def break_it() -> None:
    partition_module.goes_on = broken.by_the_group
    InterestPartition.open = open_unfenced  # type: ignore[method-assign]  # what is broken
    Share.claim = not_yet  # type: ignore[method-assign]
    Transactions.commit = broken.commit_slowly  # type: ignore[method-assign]
    take_away("generation")


if __name__ == "__main__":
    broken.main(break_it)
