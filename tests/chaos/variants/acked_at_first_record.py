"""Broken on purpose: a batch counts as done with its first record, the others follow.

A crash in between leaves an offset behind that has passed inputs whose effects are nowhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from aiokafka.structs import TopicPartition

from stream_app.kafka.transactions import Output, Transactions
from tests.chaos.variants import broken

commit_whole = Transactions.commit


async def commit(
    self: Transactions,
    outputs: Iterable[Output],
    offsets: Mapping[TopicPartition, int],
    *topic_ids: Mapping[str, str],
) -> dict[TopicPartition, int]:
    first, *others = [*outputs] or [None]
    ends = await commit_whole(self, [first] if first is not None else [], offsets, *topic_ids)
    if others:
        await asyncio.sleep(broken.WINDOW_S)
        later = await commit_whole(self, [output for output in others if output is not None], {})
        ends = {tp: max(ends.get(tp, 0), later.get(tp, 0)) for tp in {*ends, *later}}
    return ends


def break_it() -> None:
    Transactions.commit = commit  # type: ignore[method-assign]  # what is broken


if __name__ == "__main__":
    broken.main(break_it)
