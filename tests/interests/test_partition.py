"""One partition's life on real Kafka: what it refuses, and what it never writes to disk."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from aiokafka import ConsumerRecord

from stream_app.content.index import ContentIndex
from stream_app.content.vectors import ContentVector
from stream_app.interests.batch import BatchPreparation
from stream_app.interests.contents import IndexedContents
from stream_app.interests.owners import written_topics
from stream_app.interests.partition import InterestPartition
from stream_app.interests.store import PartitionStore
from stream_app.kafka.marks import Mark
from stream_app.kafka.records import Partition, RecordBatch
from stream_app.kafka.topic_ids import PAUSE_S
from stream_app.replay.accounting import read_outcomes
from stream_app.settings import Settings
from tests.interests.workers import NOW_MS, states, unit_vectors
from tests.kafka.offsets import KnownOffsets, share_of

D = 16
MODEL = "test-model"


def small(settings: Settings) -> Settings:
    content = msgspec.structs.replace(settings.content, dimensions=D, capacity=10)
    interests = msgspec.structs.replace(settings.interests, slab_rows=64)
    kafka = msgspec.structs.replace(settings.kafka, partitions=1)  # everybody lives in partition 0
    return msgspec.structs.replace(settings, kafka=kafka, content=content, interests=interests)


class Owner:
    """A worker's view of partition 0, with one content in its index."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        index = ContentIndex(settings, MODEL)
        index.put(b"c0", ContentVector(MODEL, "", NOW_MS, NOW_MS, unit_vectors(1, D)[0]))
        self.topic = settings.topic_name("likes")
        self.directory = directory
        self.rejoins = 0
        self.settings = settings
        self.preparation = BatchPreparation(settings, IndexedContents(index))
        self.partition: InterestPartition
        self.offsets: KnownOffsets
        self.claims: dict[Partition, tuple[int, Mark]] = {}

    def _rejoin(self) -> None:
        self.rejoins += 1

    async def open(self, committed: int | None) -> None:
        self.offsets = KnownOffsets(committed, claims=self.claims)
        inputs = [self.topic, *map(self.settings.topic_name, ("events-retry", "erasures"))]
        share = await share_of(
            self.settings,
            "interests",
            "interests",
            written_topics(self.settings),
            [Partition(topic, 0) for topic in inputs],
            lambda: self.offsets,
        )
        self.partition = InterestPartition(
            self.settings,
            0,
            share,
            self.preparation,
            model=MODEL,
            on_lost=self._rejoin,
            on_broken=lambda error: None,
        )
        await self.partition.open(PartitionStore(self.directory), inputs, self.offsets)

    async def close(self) -> None:
        await self.partition.close()
        await self.partition.share.transactions.close()

    def batch(self, start: int, *users: str) -> RecordBatch:
        records = [
            ConsumerRecord(
                self.topic, 0, start + n, NOW_MS, 1, user.encode(), value(user, start + n), None, 0, 0, ()
            )
            for n, user in enumerate(users)
        ]
        return RecordBatch(self.topic, 0, start, records)


def value(user: str, number: int) -> bytes:
    event = {"event_id": f"e{number}", "user_id": user, "content_id": "c0", "occurred_at": NOW_MS}
    return json.dumps(event).encode()


def users_on_disk(directory: Path) -> set[bytes]:
    store = PartitionStore(directory)
    try:
        return {user for user, _ in store.scan(b"", 100)}
    finally:
        store.close()


def test_a_batch_out_of_sequence_is_refused_whole(
    settings: Settings, topics: list[str], tmp_path: Path
) -> None:
    settings = small(settings)
    owner = Owner(settings, tmp_path / "a")

    async def life() -> None:
        await owner.open(committed=0)
        await owner.partition.handle(owner.batch(0, "ana"))
        await owner.partition.handle(owner.batch(7, "ben"))  # fetched before a failure: 1 to 6 are missing
        assert owner.partition.lost
        assert owner.rejoins == 1
        await owner.partition.handle(owner.batch(1, "cem"))  # nothing more until it is opened anew
        await owner.close()

    asyncio.run(life())
    assert states(settings).keys() == {b"ana"}
    assert read_outcomes(settings).applied == 1


def test_a_batch_of_another_topic_of_that_name_is_refused_however_well_it_fits(
    settings: Settings, topics: list[str], tmp_path: Path
) -> None:
    settings = small(settings)
    owner = Owner(settings, tmp_path / "a")

    async def life() -> None:
        await owner.open(committed=0)
        await owner.partition.handle(owner.batch(0, "ana"))
        await owner.partition.settle()
        owner.offsets.topic = "second"
        await asyncio.sleep(PAUSE_S)  # nobody deletes, creates and fills a topic in no time
        await owner.partition.handle(owner.batch(1, "ben"))
        assert owner.partition.lost
        assert owner.rejoins == 1
        await owner.close()

    asyncio.run(life())
    assert states(settings).keys() == {b"ana"}


def test_users_whom_an_earlier_version_kept_in_the_wrong_partition_go(
    settings: Settings, topics: list[str], tmp_path: Path
) -> None:
    """Ben lives in partition 1; that was not looked at, and with one partition it is not."""
    owner = Owner(small(settings), tmp_path / "a")

    async def before() -> None:
        await owner.open(committed=0)
        await owner.partition.handle(owner.batch(0, "ana", "ben"))
        await owner.close()

    asyncio.run(before())
    kafka = msgspec.structs.replace(settings.kafka, partitions=2)
    owner = Owner(msgspec.structs.replace(small(settings), kafka=kafka), tmp_path / "a")

    async def after() -> None:
        await owner.open(committed=2)
        assert await owner.partition.expire(ContentIndex(owner.settings, MODEL)) == 1
        await owner.close()

    asyncio.run(after())
    assert states(settings).keys() == {b"ana"}
    assert users_on_disk(tmp_path / "a") == {b"ana"}


@pytest.mark.parametrize("marked", [False, True])
def test_what_has_no_marker_yet_is_not_written_to_disk(
    settings: Settings, topics: list[str], tmp_path: Path, marked: bool
) -> None:
    """A broker that is killed before the marker may forget the commit that it has answered."""
    settings = small(settings)
    owner = Owner(settings, tmp_path / "a")

    async def life() -> None:
        await owner.open(committed=0)
        await owner.partition.handle(owner.batch(0, "ana"))
        await owner.partition.settle()
        decided = owner.offsets.end = owner.partition._position
        await owner.partition.flush()
        await owner.partition.handle(owner.batch(1, "ben"))
        await owner.partition.flush()
        assert owner.partition._position > decided
        assert not owner.partition.lost  # the next flush may find it
        if marked:
            owner.offsets.end = owner.partition._position
        await owner.close()

    asyncio.run(life())
    assert users_on_disk(tmp_path / "a") == ({b"ana", b"ben"} if marked else {b"ana"})
    assert states(settings).keys() == {b"ana", b"ben"}


def test_nothing_more_is_computed_where_room_needs_a_marker_that_does_not_come(
    settings: Settings, topics: list[str], tmp_path: Path
) -> None:
    settings = small(settings)
    settings = msgspec.structs.replace(
        settings,
        interests=msgspec.structs.replace(settings.interests, slab_rows=2),
        kafka=msgspec.structs.replace(settings.kafka, transaction_timeout_s=2.0),
    )
    owner = Owner(settings, tmp_path / "a")

    async def life() -> None:
        await owner.open(committed=0)
        owner.offsets.end = 0
        await owner.partition.handle(owner.batch(0, "ana", "ben"))
        await owner.partition.handle(owner.batch(2, "cem"))
        assert (owner.partition.lost, owner.rejoins) == (True, 1)
        await owner.close()

    asyncio.run(life())
    assert users_on_disk(tmp_path / "a") == set()
    assert states(settings).keys() == {b"ana", b"ben"}


def test_a_steady_stream_is_not_asked_about_batch_by_batch(
    settings: Settings, topics: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small(settings)
    owner = Owner(settings, tmp_path / "a")
    monkeypatch.setattr("stream_app.kafka.topic_ids.PAUSE_S", 3600.0)

    async def life() -> None:
        await owner.open(committed=0)
        for n in range(5):
            await owner.partition.handle(owner.batch(n, "ana"))
        await owner.close()

    asyncio.run(life())
    assert owner.offsets.asked == 1
    assert read_outcomes(settings).applied == 5


def test_what_a_fenced_owner_computed_reaches_neither_kafka_nor_its_disk(
    settings: Settings, topics: list[str], tmp_path: Path
) -> None:
    settings = small(settings)
    old, new = Owner(settings, tmp_path / "old"), Owner(settings, tmp_path / "new")

    async def life() -> None:
        await old.open(committed=0)
        await old.partition.handle(old.batch(0, "ana"))
        await old.partition.settle()
        new.claims = old.claims
        await new.open(committed=1)
        await old.partition.handle(old.batch(1, "zoe"))  # in its slab, then refused by the broker
        await old.partition.flush()
        await old.partition.settle()
        assert old.partition.lost
        await old.close()
        await new.partition.handle(new.batch(1, "ben"))
        await new.close()

    asyncio.run(life())
    found = states(settings)
    assert found.keys() == {b"ana", b"ben"}
    assert users_on_disk(old.directory) <= {b"ana"}
    assert users_on_disk(new.directory) == {b"ana", b"ben"}
    np.testing.assert_allclose(found[b"ben"].vector, unit_vectors(1, D)[0], rtol=1e-6)
    assert read_outcomes(settings).applied == 2
