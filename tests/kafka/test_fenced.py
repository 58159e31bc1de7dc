"""Fenced partitions on real Kafka: the next batch only, one owner, all or nothing."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord
from faust.types import TP
from kafka import KafkaProducer

from stream_app.errors import FencedError
from stream_app.kafka import clients
from stream_app.kafka.fenced import FencedPartition
from stream_app.kafka.marks import Mark, Membership
from stream_app.kafka.once import read_once
from stream_app.kafka.partitions import partition_of
from stream_app.kafka.records import Partition, RecordBatch
from stream_app.kafka.topic_ids import PAUSE_S
from stream_app.kafka.transactions import Output, Transactions
from stream_app.settings import Settings
from tests.kafka.offsets import KnownOffsets, share_of

pytestmark = pytest.mark.usefixtures("topics", "way")


class Owner:
    """Someone who holds a partition of ``content``."""

    def __init__(
        self, settings: Settings, number: int = 0, claims: dict[TP, tuple[int, Mark]] | None = None
    ) -> None:
        self.rejoins = 0
        self.offsets: KnownOffsets
        self.partition: FencedPartition
        self.vectors = settings.topic_name("content-vectors")
        self._source = Partition(settings.topic_name("content"), number)
        self._settings, self._claims = settings, claims

    async def open(self, committed: int | None) -> FencedPartition:
        self.offsets = KnownOffsets(committed, claims=self._claims)
        writes = [self.vectors]
        share = await share_of(
            self._settings, "content", "content", writes, [self._source], lambda: self.offsets
        )
        self.partition = FencedPartition(share, self._source, writes=writes, on_lost=self._rejoin)
        await self.partition.open(self.offsets)
        return self.partition

    async def close(self) -> None:
        await self.partition.close()
        await self.partition.share.transactions.close()

    @property
    def producer(self) -> AIOKafkaProducer:
        transactions = self.partition.share.transactions._producer
        assert transactions is not None
        return transactions._producer

    def batch(self, start: int, *offsets: int) -> RecordBatch:
        topic, partition = self._source
        records = [ConsumerRecord(topic, partition, o, 0, 0, b"k", b"v", None, 0, 0, ()) for o in offsets]
        return RecordBatch(topic, partition, start, records)

    def output(self, key: bytes, value: bytes | None) -> Output:
        return self.partition.output(self.vectors, key, value)

    def _rejoin(self) -> None:
        self.rejoins += 1


def on_topic(settings: Settings) -> list[bytes | None]:
    return [r.value for r in clients.read_topic(settings, settings.topic_name("content-vectors"))]


def test_only_the_next_batch_is_accepted(settings: Settings) -> None:
    async def life() -> None:
        owner = Owner(settings)
        partition = await owner.open(committed=7)
        assert partition.accepts(owner.batch(7, 8, 9))  # 7 was compacted away
        assert partition.accepts(owner.batch(10, 10))
        assert not partition.accepts(owner.batch(12, 12))
        assert partition.lost
        assert owner.rejoins == 1
        assert not partition.accepts(owner.batch(11, 11))
        assert not await partition.commit([owner.output(b"k", b"v")], 12)
        assert owner.rejoins == 1
        await owner.close()

    asyncio.run(life())
    assert on_topic(settings) == []


def test_nothing_of_a_topic_that_was_created_again_is_committed(settings: Settings) -> None:
    async def life() -> None:
        owner = Owner(settings)
        partition = await owner.open(committed=7)
        assert await partition.commit([owner.output(b"k", b"v")], 8)
        owner.offsets.topic = "second"
        await asyncio.sleep(PAUSE_S)  # nobody deletes, creates and fills a topic in no time
        assert not await partition.commit([owner.output(b"k", b"w")], 9)
        assert (partition.lost, owner.rejoins) == (True, 1)
        await owner.close()

    asyncio.run(life())
    assert on_topic(settings) == [b"v"]


def test_without_a_committed_offset_any_first_batch_is_accepted(settings: Settings) -> None:
    async def life() -> None:
        owner = Owner(settings)
        partition = await owner.open(committed=None)
        assert partition.accepts(owner.batch(3, 4))
        assert not partition.accepts(owner.batch(3, 4))
        await owner.close()

    asyncio.run(life())


def test_who_was_fenced_brings_no_deleted_content_back(settings: Settings) -> None:
    async def life() -> None:
        claims: dict[TP, tuple[int, Mark]] = {}
        zombie, heir = Owner(settings, claims=claims), Owner(settings, claims=claims)
        old = await zombie.open(committed=0)
        assert await old.commit([zombie.output(b"k", b"vector")], 1)
        new = await heir.open(committed=1)
        assert await new.commit([heir.output(b"k", None)], 2)
        assert not await old.commit([zombie.output(b"k", b"older vector")], 2)
        assert (old.lost, zombie.rejoins) == (True, 1)
        assert await new.commit([], 3)
        assert (new.lost, heir.rejoins) == (False, 0)
        await zombie.close()
        await heir.close()
        assert not await new.commit([], 4)

    asyncio.run(life())
    assert on_topic(settings) == [b"vector", None]


def test_who_has_lost_its_partitions_without_noticing_throws_nobody_out(settings: Settings) -> None:
    async def life() -> None:
        claims: dict[TP, tuple[int, Mark]] = {}
        zombie, heir = Owner(settings, claims=claims), Owner(settings, claims=claims)
        old = await zombie.open(committed=0)
        new = await heir.open(committed=0)
        await old.share.transactions.assigned(Membership(1, "zombie"))
        zombie.offsets.moved_on = True
        with pytest.raises(FencedError):
            await old.share.claim()
        assert await new.commit([heir.output(b"k", b"v")], 1)
        await zombie.close()
        await heir.close()

    asyncio.run(life())


def test_of_partitions_that_have_gone_to_others_nothing_is_said(settings: Settings) -> None:
    async def life() -> None:
        claims: dict[TP, tuple[int, Mark]] = {}
        former, owner = Owner(settings, claims=claims), Owner(settings, claims=claims)
        given_up = await former.open(committed=0)
        transactions = given_up.share.transactions
        await transactions.release()
        await given_up.close()
        assert all(mark.left for _, mark in claims.values())
        await owner.open(committed=5)
        claimed = dict(claims)
        await transactions.assigned(None)
        await transactions.release()
        assert claims == claimed
        await former.close()
        await owner.close()

    asyncio.run(life())


def test_what_the_group_refuses_does_not_stay_open(settings: Settings) -> None:
    """Nor where the claim is lost, so that no owner comes and ends it."""

    async def life() -> None:
        claims: dict[TP, tuple[int, Mark]] = {}
        zombie = Owner(settings, claims=claims)
        partition = await zombie.open(committed=0)
        transactions = partition.share.transactions
        assert transactions._producer is not None
        transactions._producer.member = Membership(1, "nobody's")
        former = Transactions(settings, transactions.id, settings.group("content"))
        claims.clear()
        assert not await partition.commit([zombie.output(b"k", b"v")], 1)
        await former._producer.client.bootstrap()
        assert (await former._coordination.last()).state == "Ongoing"
        await transactions.assigned(None)
        assert (await former._coordination.last()).state == "CompleteAbort"
        await former.close()
        await zombie.close()

    asyncio.run(life())
    assert on_topic(settings) == []


def test_keys_go_where_the_default_partitioner_puts_them(settings: Settings) -> None:
    keys = [b"key-%d" % n for n in range(20)]
    producer: KafkaProducer
    with clients.producer(settings) as producer:
        for key in keys:
            placed = producer.send(settings.topic_name("content-vectors"), key=key, value=b"v").get(30)
            assert placed.partition == partition_of(key, 2)

    async def life() -> None:
        owner = Owner(settings)
        await owner.open(committed=None)
        assert [owner.output(key, b"v").partition for key in keys] == [partition_of(k, 2) for k in keys]
        await owner.close()

    asyncio.run(life())


def test_reading_once_waits_for_what_is_committed_behind_an_open_transaction(settings: Settings) -> None:
    """Two owners write to one partition; the one that began first commits last."""

    async def life() -> None:
        first, second = Owner(settings, 0), Owner(settings, 1)
        await first.open(None)
        await second.open(None)
        begun, go_on = asyncio.Event(), asyncio.Event()
        commit = first.producer.commit_transaction

        async def late() -> None:
            begun.set()
            await go_on.wait()
            await commit()

        first.producer.commit_transaction = late
        slow = asyncio.create_task(first.partition.commit([first.output(b"k", b"first")]))
        await begun.wait()
        assert await second.partition.commit([second.output(b"k", b"second")])
        found: list[bytes | None] = []

        async def take(records: object) -> None:
            found.extend(record.value for record in records)  # type: ignore[attr-defined]

        reading = asyncio.create_task(read_once(settings, first.vectors, take))
        done, _ = await asyncio.wait([reading], timeout=1.0)
        assert not done, "it must not take the last stable offset for the end"
        go_on.set()
        assert await slow
        assert await asyncio.wait_for(reading, 30) == 2
        assert found == [b"first", b"second"]
        found.clear()
        assert await read_once(settings, first.vectors, take, {1 - partition_of(b"k", 2)}) == 0
        await first.close()
        await second.close()

    asyncio.run(asyncio.wait_for(life(), 60))
