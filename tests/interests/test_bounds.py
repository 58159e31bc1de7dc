"""What the state path holds in memory, filled to its bound and beyond."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from aiokafka import ConsumerRecord

from stream_app.content.index import ContentIndex
from stream_app.content.vectors import ContentVector, encode
from stream_app.interests import contents as module
from stream_app.interests.contents import IndexedContents
from stream_app.interests.statistics import PartitionStatistics
from stream_app.interests.update import Contributions
from stream_app.settings import build
from tests.interests.workers import NOW_MS, unit_vectors

LIKE = 7


def counted(ids: list[bytes], first_ms: int = NOW_MS) -> PartitionStatistics:
    """One engagement with each content, a millisecond apart."""
    statistics = PartitionStatistics(0, [LIKE], [24.0])
    n = len(ids)
    moved = Contributions(
        contents=np.arange(n),
        actions=np.full(n, LIKE, np.uint16),
        times=first_ms + np.arange(n),
        signs=np.ones(n),
    )
    statistics.add(moved, ids)
    return statistics


def test_statistics_beyond_their_capacity_are_given_up_oldest_first() -> None:
    ids = [b"c%d" % n for n in range(100)]
    statistics = counted(ids)
    known = {b"c0", b"c1", b"c50"}
    assert statistics.dispensable(known, 100) == []
    gone = statistics.dispensable(known, 60)
    assert gone == [b"c%d" % n for n in range(2, 42)]  # those in the index stay, however old
    for content in gone:
        statistics.forget(content)
    assert len(statistics.rows) == 60
    assert known <= statistics.rows.keys()


def test_the_newest_statistics_keep_the_stream_time_at_any_bound() -> None:
    statistics = counted([b"c0", b"c1", b"c2"])
    assert statistics.dispensable((), 0) == [b"c0", b"c1"]


def test_a_reader_waits_for_the_batch_in_hand_before_too_much_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_PENDING", 20)
    contents = IndexedContents(ContentIndex(build({"content": {"dimensions": 16, "capacity": 500}}), "m"))
    vectors = unit_vectors(100, 16)
    records = [
        ConsumerRecord(
            "t",
            0,
            n,
            NOW_MS,
            0,
            b"c%d" % n,
            encode(ContentVector("m", "", NOW_MS, NOW_MS, v)),
            None,
            0,
            0,
            (),
        )
        for n, v in enumerate(vectors)
    ]
    computing, done = threading.Event(), threading.Event()

    def batch() -> None:
        with contents.still() as index:
            computing.set()
            assert done.wait(30)
            assert len(index) == 0  # it did not change meanwhile

    async def read() -> None:
        for at in range(0, 100, 10):
            await contents.take(records[at : at + 10])

    async def life() -> None:
        in_hand = asyncio.create_task(asyncio.to_thread(batch))
        await asyncio.to_thread(computing.wait, 30)
        reading = asyncio.create_task(read())
        finished, _ = await asyncio.wait([reading], timeout=0.5)
        assert not finished
        assert len(contents._pending) == 30  # the bound, and the records that passed it
        done.set()
        await asyncio.wait_for(reading, 30)
        await in_hand
        assert len(contents.index) == 100

    asyncio.run(life())
