"""Broken on purpose: RocksDB gets what a batch changed before the batch is committed.

A crash in between leaves users on disk that are ahead of the changelog: their events are taken for
repeats when they are read again, and never reach the changelog.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from stream_app.interests.partition import InterestPartition
from stream_app.kafka.records import Partition
from stream_app.kafka.transactions import Output
from tests.chaos.variants import broken

commit_first = InterestPartition._commit


async def commit(
    self: InterestPartition, outputs: Sequence[Output], offsets: Mapping[Partition, int], size: int = 0
) -> None:
    if (state := self._state) is not None and not self.lost:
        broken.ran()
        self._write(state)
        state.store._db.flush()  # RocksDB's own log is off: without this a kill would undo the damage
        await asyncio.sleep(broken.WINDOW_S)
    await commit_first(self, outputs, offsets, size)


def break_it() -> None:
    InterestPartition._commit = commit  # type: ignore[method-assign]  # what is broken


if __name__ == "__main__":
    broken.main(break_it)
