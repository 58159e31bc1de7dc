"""Broken on purpose: a new owner reads and works first, and fences the old owner only then.

What the old owner, stopped in the middle of a transaction, commits in between is not in what was read, and
overwrites what was made since. The group would refuse its offsets, so they are committed in nobody's name.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from stream_app.errors import FencedError, TransactionError
from stream_app.kafka.errors import KafkaError
from stream_app.kafka.shared import Share
from stream_app.kafka.transactions import Transactions
from tests.chaos.variants import broken
from tests.kafka.layers import take_away

LATE_S = 6.0
"""Longer than a worker that was taken for dead goes on sleeping."""

claim_at_once = Share.claim
_later: set[asyncio.Task[None]] = set()


async def claim_late(self: Share) -> None:
    self.transactions._keep(self.transactions._shares | {self})  # nothing is committed without a claim
    task = asyncio.create_task(_claim(self))
    _later.add(task)
    task.add_done_callback(_later.discard)


async def _claim(share: Share) -> None:
    await asyncio.sleep(LATE_S)
    broken.ran()
    with suppress(FencedError, TransactionError, KafkaError):  # it is not ours any more
        if not share.left:
            await claim_at_once(share)


def break_it() -> None:
    Share.claim = claim_late  # type: ignore[method-assign]  # what is broken
    Transactions.commit = broken.commit_slowly  # type: ignore[method-assign]
    take_away("generation")


if __name__ == "__main__":
    broken.main(break_it)
