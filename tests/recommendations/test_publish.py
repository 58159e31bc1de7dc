"""Publishing on a real broker: keys, transactions, what is left out, tombstones, one owner."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from faust.types import TP
from kafka import KafkaAdminClient
from prometheus_client import REGISTRY

from stream_app.kafka import clients
from stream_app.kafka.clients import read_topic
from stream_app.kafka.fenced import FencedPartition
from stream_app.kafka.marks import Mark
from stream_app.kafka.records import Partition
from stream_app.kafka.shared import Share, SharedTransactions
from stream_app.ranking.ranked import Item, Parts
from stream_app.recommendations.ledger import SlateLedger
from stream_app.recommendations.pipeline import Change
from stream_app.recommendations.publish import SlatePublisher
from stream_app.recommendations.slate import Cause, Slate, decode, rfc3339
from stream_app.settings import Settings
from tests.kafka.offsets import KnownOffsets

pytestmark = pytest.mark.usefixtures("topics")


class Owner:
    """A ranker's view of two partitions."""

    def __init__(self, settings: Settings, claims: dict[TP, tuple[int, Mark]] | None = None) -> None:
        """``claims``: of a group that several owners share."""
        self.rejoins = 0
        self._settings = settings
        self.claims: dict[TP, tuple[int, Mark]] = {} if claims is None else claims
        self._transactions: SharedTransactions
        self._partitions: dict[int, FencedPartition] = {}
        self.ledger = SlateLedger(settings)
        self.publisher: SlatePublisher

    def __getitem__(self, number: int) -> FencedPartition | None:
        """As FencedPartitions has it."""
        partition = self._partitions.get(number)
        return None if partition is None or partition.lost else partition

    async def __aenter__(self) -> Owner:
        offsets = KnownOffsets(0, claims=self.claims)
        writes = [self._settings.topic_name("recommendations")]
        inputs = [Partition(self._settings.topic_name("interests"), number) for number in (0, 1)]
        self._transactions = SharedTransactions(
            self._settings, self._settings.group("ranker"), "slates", writes, lambda: offsets
        )
        await self._transactions.assigned(None)
        for number, source in enumerate(inputs):
            share = Share(self._transactions, (source,))
            partition = FencedPartition(share, source, writes=writes, on_lost=self._rejoin)
            self._partitions[number] = partition
            await partition.open(offsets)
        owned: Any = self
        self.publisher = SlatePublisher(self._settings, owned, self.ledger)
        return self

    async def __aexit__(self, *_: object) -> None:
        for partition in self._partitions.values():
            await partition.close()
        await self._transactions.close()

    def crash_after(self, commits: int) -> None:
        """So many transactions are committed; the next one stays open, as at a crash just before its
        commit."""
        transactions = self._transactions._producer
        assert transactions is not None
        producer = transactions._producer
        producer.commit_transaction = _Crashing(producer.commit_transaction, commits)

    def _rejoin(self) -> None:
        self.rejoins += 1


class _Crashing:
    def __init__(self, commit: Callable[[], Awaitable[None]], commits: int) -> None:
        self._commit, self._left = commit, commits

    async def __call__(self) -> None:
        if not self._left:
            raise asyncio.CancelledError
        self._left -= 1
        await self._commit()


def slate(user: str, *contents: str) -> Slate:
    now = rfc3339(time.time_ns() // 1_000_000)
    items = [Item(c, 1.0, Parts(1.0, 0.0, 0.0, 0.0), []) for c in contents]
    return Slate(user, now, "m", Cause("likes", 0, 1, now, now), "personal", items)


def shown(partition: int, user: str, *contents: str) -> Change:
    return Change(partition, user.encode(), slate(user, *contents))


def withdrawn(partition: int, user: str) -> Change:
    return Change(partition, user.encode(), None)


def run(settings: Settings, *works: Callable[[Owner], Awaitable[None]]) -> None:
    """Each by an owner of its own, one after the other."""
    claims: dict[TP, tuple[int, Mark]] = {}

    async def scenario(work: Callable[[Owner], Awaitable[None]]) -> None:
        async with Owner(settings, claims) as owner:
            await work(owner)

    for work in works:
        asyncio.run(asyncio.wait_for(scenario(work), 60))


def on_topic(settings: Settings) -> dict[str, list[list[str] | None]]:
    """What each user was shown, one after the other; None where it was withdrawn."""
    found: dict[str, list[list[str] | None]] = {}
    for record in read_topic(settings, settings.topic_name("recommendations")):
        contents = None if record.value is None else [i.content_id for i in decode(record.value).items]
        found.setdefault(record.key.decode(), []).append(contents)
    return found


def committed(settings: Settings) -> dict[int, int]:
    admin: KafkaAdminClient = clients.admin_client(settings)
    try:
        group = settings.group("ranker")
        return {tp.partition: m.offset for tp, m in admin.list_group_offsets(group)[group].items()}
    finally:
        admin.close()


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"stream_app_{name}", labels) or 0.0


def test_slates_arrive_with_their_offsets_and_repeats_do_not(settings: Settings) -> None:
    fresh = metric("freshness_seconds_count")
    unchanged = metric("slates_total", result="unchanged")

    async def work(owner: Owner) -> None:
        publish = owner.publisher.publish
        await publish([shown(0, "a", "x", "y"), shown(1, "b", "x")])
        await publish([shown(0, "a", "x", "y"), shown(1, "b", "z")], {0: 5, 1: 7})
        owner.ledger.forget(0)
        await publish([shown(0, "a", "x", "y"), shown(1, "b", "z")], {1: 9})
        await publish([replace(shown(0, "c", "x"), timely=False)])  # its cause is no news

    run(settings, work)
    assert on_topic(settings) == {"a": [["x", "y"], ["x", "y"]], "b": [["x"], ["z"]], "c": [["x"]]}
    assert committed(settings) == {0: 5, 1: 9}
    assert metric("freshness_seconds_count") - fresh == 4
    assert metric("slates_total", result="unchanged") - unchanged == 2


def test_repeats_are_published_when_the_setting_says_so(settings: Settings) -> None:
    always = msgspec.structs.replace(
        settings, recommendations=msgspec.structs.replace(settings.recommendations, skip_unchanged=False)
    )

    async def work(owner: Owner) -> None:
        for _ in range(3):
            await owner.publisher.publish([shown(0, "a", "x")])

    run(always, work)
    assert on_topic(settings) == {"a": [["x"]] * 3}


def test_a_withdrawn_user_gets_a_tombstone_and_may_come_back(settings: Settings) -> None:
    async def work(owner: Owner) -> None:
        await owner.publisher.publish([shown(0, "a", "x")])
        await owner.publisher.publish([withdrawn(0, "a")])
        await owner.publisher.publish([shown(0, "a", "x")])

    run(settings, work)
    assert on_topic(settings) == {"a": [["x"], None, ["x"]]}


@pytest.mark.parametrize("commits", [0, 1])
def test_a_crash_neither_repeats_nor_loses_a_slate(settings: Settings, commits: int) -> None:
    """Whoever goes on at the committed offsets publishes what is missing, and nothing else."""
    news = [(0, 4, shown(0, "a", "new")), (1, 1, shown(1, "b", "new"))]

    async def first(owner: Owner) -> None:
        await owner.publisher.publish([shown(0, "a", "old")], {0: 3})
        owner.crash_after(commits)
        with contextlib.suppress(asyncio.CancelledError):
            await owner.publisher.publish([c for _, _, c in news], {p: end for p, end, _ in news})

    async def second(owner: Owner) -> None:
        done = committed(settings)
        assert done == ({0: 3} if commits == 0 else {0: 4, 1: 1})
        left = [(p, end, change) for p, end, change in news if done.get(p, 0) < end]
        await owner.publisher.publish([c for _, _, c in left], {p: end for p, end, _ in left})

    run(settings, first, second)
    assert on_topic(settings) == {"a": [["old"], ["new"]], "b": [["new"]]}
    assert committed(settings) == {0: 4, 1: 1}


def test_a_ranker_that_was_taken_for_dead_overwrites_nothing(settings: Settings) -> None:
    async def work(zombie: Owner) -> None:
        await zombie.publisher.publish([shown(0, "erased", "x"), shown(1, "a", "old")], {0: 1, 1: 1})
        async with Owner(settings, zombie.claims) as heir:
            await heir.publisher.publish([withdrawn(0, "erased"), shown(1, "a", "new")], {0: 2, 1: 2})
            await zombie.publisher.publish([shown(0, "erased", "y"), shown(1, "a", "older")], {0: 2, 1: 2})
            assert zombie.rejoins == 2
            await zombie.publisher.publish([shown(0, "erased", "z")], {0: 3})  # lost: not even tried
            await heir.publisher.publish([shown(1, "a", "newer")], {1: 3})
            assert heir.rejoins == 0

    run(settings, work)
    assert on_topic(settings) == {"erased": [["x"], None], "a": [["old"], ["new"], ["newer"]]}
    assert committed(settings) == {0: 2, 1: 3}
