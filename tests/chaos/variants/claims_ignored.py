"""Broken on purpose: a new owner reads no claims, so that nobody is fenced out.

A worker that was taken for dead goes on with the transaction it was stopped in, and what it knew then
overwrites what the new owner has made since. The group would refuse its offsets, so they are committed in
nobody's name. (That an open transaction is not ended harms nothing by itself: the new owner waits for it.)
"""

from __future__ import annotations

from stream_app.kafka.shared import SharedTransactions
from stream_app.kafka.transactions import Transactions
from tests.chaos.variants import broken
from tests.kafka.layers import take_away


async def nobody(_self: SharedTransactions, _transactional_id: str) -> None:
    broken.ran()


def break_it() -> None:
    SharedTransactions._fence_out = nobody  # type: ignore[method-assign]  # what is broken
    Transactions.commit = broken.commit_slowly  # type: ignore[method-assign]
    take_away("generation")


if __name__ == "__main__":
    broken.main(break_it)
