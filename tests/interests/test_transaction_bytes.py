"""Transactions are bounded in bytes: a backlog makes progress however little a link carries in their time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import pytest

from stream_app.errors import TransactionError
from stream_app.interests.owners import written_topics
from stream_app.interests.partition import InterestPartition
from stream_app.interests.store import PartitionStore
from stream_app.kafka.marks import Mark
from stream_app.kafka.records import Partition
from stream_app.kafka.shared import Share
from stream_app.kafka.transactions import (
    LEAST_BYTES,
    Output,
    TransactionBound,
    Transactions,
    split,
)
from stream_app.replay.accounting import read_outcomes
from stream_app.settings import Settings
from tests.interests.test_partition import MODEL, Owner, small
from tests.interests.workers import states
from tests.kafka.offsets import KnownOffsets, share_of

BYTES = 65_536
USERS = 400


class Link:
    """Carries transactions up to a size; larger ones time out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.sizes: list[int] = []
        carry = Transactions.commit

        async def commit(
            transactions: Transactions,
            outputs: Iterable[Output],
            offsets: Mapping[Partition, tuple[int, Mark]],
            bound: TransactionBound | None = None,
        ) -> dict[Partition, int]:
            outputs = list(outputs)
            self.sizes.append(sum(output.size for output in outputs))
            if self.sizes[-1] > most:
                assert bound is not None
                bound.failed()
                raise TransactionError("transaction failed: TimeoutError()")
            return await carry(transactions, outputs, offsets, bound)

        monkeypatch.setattr(Transactions, "commit", commit)


def bounded(settings: Settings, most: int) -> Settings:
    settings = small(settings)
    return msgspec.structs.replace(
        settings,
        kafka=msgspec.structs.replace(settings.kafka, transaction_max_bytes=most),
        interests=msgspec.structs.replace(settings.interests, slab_rows=1_000),
    )


class Reopened(Owner):
    """Opens its partition anew whenever it is lost, as the next assignment does."""

    async def through(self, users: list[str]) -> int:
        """Feed the users' events until all are taken; how often it was opened."""
        opened = at = 0
        store = PartitionStore(self.directory)
        self.offsets = KnownOffsets(0)
        source = Partition(self.topic, 0)
        transactions = (
            await share_of(
                self.settings,
                "interests",
                "interests",
                written_topics(self.settings),
                [source],
                lambda: self.offsets,
            )
        ).transactions
        while at < len(users):
            opened += 1
            self.partition = InterestPartition(
                self.settings,
                0,
                Share(transactions, (source,)),
                self.preparation,
                model=MODEL,
                on_lost=self._rejoin,
                on_broken=lambda error: None,
            )
            await self.partition.open(store, [self.topic], self.offsets)
            at = next(iter(self.partition.positions.values())) or 0
            await self.partition.handle(self.batch(at, *users[at:]))
            await self.partition.settle()
            if not self.partition.lost:
                at = len(users)
            if at == len(users):
                await self.partition.close()
            else:
                self.partition.share.leave()
        await transactions.close()
        return opened


def test_a_batch_is_split_before_it_is_computed(
    settings: Settings, topics: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, link = bounded(settings, BYTES), Link(monkeypatch, 1 << 30)
    owner = Reopened(settings, tmp_path / "a")
    users = [f"user-{n}" for n in range(USERS)]
    assert asyncio.run(owner.through(users)) == 1
    assert len(link.sizes) > 2
    assert max(link.sizes) <= 1.5 * BYTES
    assert read_outcomes(settings).applied == USERS
    assert len(states(settings)) == USERS


def test_a_link_that_carries_less_is_learned_and_all_comes_through(
    settings: Settings, topics: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time-out takes the partition with it; what was learned stays."""
    monkeypatch.setattr("stream_app.kafka.transactions.LEAST_BYTES", 8_192)
    settings, link = bounded(settings, 1 << 20), Link(monkeypatch, 40_000)
    owner = Reopened(settings, tmp_path / "a")
    users = [f"user-{n}" for n in range(USERS)]
    opened = asyncio.run(owner.through(users))
    assert 1 < opened < 10
    assert max(link.sizes) > 40_000
    accounts = read_outcomes(settings)
    assert (accounts.applied, accounts.duplicates) == (USERS, 0)
    assert len(states(settings)) == USERS


def test_the_bound_follows_what_transactions_take(settings: Settings) -> None:
    bound = TransactionBound(settings)
    most, timeout = settings.kafka.transaction_max_bytes, settings.kafka.transaction_timeout_s
    bound.failed()
    assert bound.bytes == most // 2
    bound.took(bound.bytes, 0.6 * timeout)  # close to a time-out
    assert bound.bytes == most // 4
    bound.took(bound.bytes, 0.3 * timeout)  # twice as much might be
    assert bound.bytes == most // 4
    bound.took(100, 0.001)  # says nothing of a large one
    assert bound.bytes == most // 4
    bound.took(bound.bytes, 0.01 * timeout)
    assert bound.bytes == most // 2
    for _ in range(40):
        bound.failed()
    assert bound.bytes == LEAST_BYTES
    for _ in range(40):
        bound.took(bound.bytes, 0.0)
    assert bound.bytes == most


def test_outputs_are_split_in_order_and_one_is_never_too_many() -> None:
    outputs = [Output("t", 0, b"%d" % n, bytes(size)) for n, size in enumerate((10, 10, 5_000, 10, 900, 10))]
    parts = list(split(outputs, 1_100))
    assert [output for part in parts for output in part] == outputs
    assert all(sum(o.size for o in part) <= 1_100 or len(part) == 1 for part in parts)
    assert len(parts) == 4
    assert list(split([], 1_000)) == [[]]
