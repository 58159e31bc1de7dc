"""Who waits: one record a user, the newest first, nobody for ever, positions up to what is done."""

from __future__ import annotations

import random
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from aiokafka import ConsumerRecord
from prometheus_client import REGISTRY

from stream_app.kafka.records import RecordBatch
from stream_app.recommendations.slate import COLD_START_USER
from stream_app.recommendations.waiting import MOST_BYTES, Round, Waiting

ALL = 1_000


class One(NamedTuple):
    """A record."""

    user: bytes
    value: bytes | None = b"record"
    time: int | None = None
    """ms; as the offset, unless told"""
    headers: tuple[tuple[str, bytes], ...] = ()


class Feed:
    """Batches of some partitions, and which of them are done."""

    def __init__(self, waiting: Waiting) -> None:
        self.waiting = waiting
        self.ends: dict[int, int] = {}
        self.done: list[tuple[int, int]] = []
        """Partition and end of each"""

    def add(self, *ones: One, partition: int = 0) -> RecordBatch:
        start = self.ends.get(partition, 0)
        records = [
            ConsumerRecord(
                *("interests", partition, at, at if one.time is None else one.time, 0),
                *(one.user, one.value, None, 0, 0, one.headers),
            )
            for at, one in enumerate(ones, start)
        ]
        batch = RecordBatch("interests", partition, start, records)
        self.ends[partition] = batch.end

        async def done(which: tuple[int, int] = (partition, batch.end)) -> None:
            self.done.append(which)

        self.waiting.add(batch, done)
        return batch

    def take(self) -> Round:
        """The next round, whose batches are done."""
        round_ = self.waiting.take()
        for done in round_.dones:
            try:
                done().send(None)  # type: ignore[attr-defined]  # a coroutine that waits for nothing
            except StopIteration:
                continue
        return round_


def named(records: Sequence[ConsumerRecord]) -> list[bytes]:
    return [record.key for record in records]


def test_the_newest_record_of_each_user_counts() -> None:
    feed = Feed(Waiting(ALL, ALL))
    feed.add(One(b"a", b"1"), One(b"b", b"2"), One(b"a", b"3"), partition=3)
    feed.add(One(b"b", b"4"), One(b"c", b"5"), partition=3)
    feed.add(One(b"c", b"6"), partition=1)
    assert len(feed.waiting) == 3
    round_ = feed.take()
    found = {record.key: (record.partition, record.value) for record in round_.users}
    assert found == {b"a": (3, b"3"), b"b": (3, b"4"), b"c": (1, b"6")}
    assert round_.ends == {3: 5, 1: 1}
    assert feed.done == [(3, 3), (3, 5), (1, 1)]
    assert feed.waiting.empty


def test_who_is_now_in_another_partition_holds_up_that_one_alone() -> None:
    feed = Feed(Waiting(ALL, at_once=1))
    feed.add(One(b"a"))
    feed.add(One(b"b"))
    feed.add(One(b"c"), One(b"b"), partition=1)
    assert feed.take().ends == {0: 2}
    assert feed.done == [(0, 1), (0, 2)]
    assert named(feed.take().users) == [b"b"], "and keeps its place"
    round_ = feed.take()
    assert (named(round_.users), round_.ends) == ([b"c"], {1: 2})


def test_who_comes_back_is_who_is_ranked_and_who_goes_is_withdrawn_at_once() -> None:
    feed = Feed(Waiting(ALL, at_once=2))
    feed.add(One(b"back", None), One(b"back"), *(One(b"%d" % n) for n in range(9)), One(b"goes"))
    feed.add(One(b"goes", None), One(b"unknown", None))
    round_ = feed.take()
    assert sorted(named(round_.gone)) == [b"goes", b"unknown"]
    assert named(round_.users) == [b"back", b"8"]
    assert feed.take().gone == []


def test_keys_that_can_be_no_users_are_counted_and_passed_over() -> None:
    def rejected() -> float:
        return REGISTRY.get_sample_value("stream_app_ranker_rejected_total", {"topic": "interests"}) or 0.0

    before, feed = rejected(), Feed(Waiting(ALL, ALL))
    feed.add(One(b""), One(COLD_START_USER), One(b"\x00fences", None))
    assert rejected() - before == 3
    assert (len(feed.waiting), feed.waiting.empty) == (0, False)
    round_ = feed.take()
    assert (round_.records, round_.ends) == ([], {0: 3})
    assert feed.done == [(0, 3)]


def test_half_of_the_places_go_to_the_newest_of_whatever_partition() -> None:
    feed = Feed(Waiting(ALL, at_once=4))
    feed.add(*(One(b"a%d" % n, time=10 * n) for n in range(10)))
    feed.add(*(One(b"b%d" % n, time=10 * n - 1) for n in range(10)), partition=1)
    assert named(feed.take().users) == [b"a0", b"a1", b"a9", b"b9"]
    feed.add(One(b"a3", time=1_000))
    assert named(feed.take().users) == [b"a2", b"a3", b"a8", b"b8"], "a3 had waited as well"
    feed.add(One(b"b5", time=2_000), partition=1)
    assert named(feed.take().users) == [b"a4", b"a5", b"b5", b"a7"]


def test_a_position_is_handed_out_once_nobody_waits_with_a_record_before_it() -> None:
    feed = Feed(Waiting(ALL, at_once=2))
    feed.add(*(One(b"%d" % n) for n in range(4)))
    feed.add(One(b"9"), One(b"1"))
    first = feed.take()
    assert (named(first.users), first.ends) == ([b"0", b"1"], {0: 2})
    assert feed.done == []
    second = feed.take()
    assert (named(second.users), second.ends) == ([b"2", b"9"], {0: 3})
    third = feed.take()
    assert (named(third.users), third.ends) == ([b"3"], {0: 6})
    assert feed.done == [(0, 4), (0, 6)]


def test_a_partition_where_nothing_got_done_commits_nothing() -> None:
    feed = Feed(Waiting(ALL, at_once=1))
    feed.add(One(b"a"), One(b"b"))
    feed.add(One(b"c"), partition=1)
    assert [feed.take().ends for _ in range(3)] == [{0: 1}, {0: 2}, {1: 1}]


def test_under_overload_everybody_waits_once_and_nobody_for_long() -> None:
    """2,000 users, ten times as many records as there are rankings: their slates show what came in the last
    round, and each has one every so many rounds as it takes to rank everybody, twice over."""
    draw, users, at_once = random.Random(1), 2_000, 100
    feed, waits, late = Feed(Waiting(20_000, at_once)), dict[bytes, int](), []
    asked, rankings = dict[bytes, int](), Counter[bytes]()
    newest = dict[bytes, int]()
    for turn in range(200):
        for partition in range(4):
            ones = [One(b"%d" % (4 * draw.randrange(users // 4) + partition), time=turn) for _ in range(250)]
            for one in ones:
                asked.setdefault(one.user, turn)
                newest[one.user] = turn
            feed.add(*ones, partition=partition)
        assert len(feed.waiting) <= users
        assert not feed.waiting.full
        for record in feed.take().users:
            assert record.timestamp == newest[record.key]
            late.append(turn - record.timestamp)
            waits[record.key] = max(waits.get(record.key, 0), turn - asked.pop(record.key))
            rankings[record.key] += 1
    assert sorted(late)[len(late) // 2] == 0, "half of the slates show what has just come"
    assert max(waits.values()) <= 2 * users // at_once
    assert max(199 - since for since in asked.values()) <= 2 * users // at_once
    assert len(rankings) == users


def test_positions_are_those_of_a_model_that_looks_at_every_record() -> None:
    draw = random.Random(2)
    feed = Feed(Waiting(ALL, at_once=3))
    undone: dict[int, dict[int, bytes]] = {p: {} for p in range(3)}  # partition → offset → user
    committed = dict.fromkeys(range(3), 0)
    for _ in range(300):
        for _ in range(draw.randrange(3)):
            partition = draw.randrange(3)
            ones = [One(b"%d" % draw.randrange(40), draw.choice((None, b"r", b"r", b"r"))) for _ in range(5)]
            for other in range(3):  # a newer record in another partition stands for those before it
                for one in ones:
                    undone[other] = {
                        at: user
                        for at, user in undone[other].items()
                        if other == partition or user != one.user
                    }
            start = feed.ends.get(partition, 0)
            undone[partition].update({at: one.user for at, one in enumerate(ones, start)})
            feed.add(*ones, partition=partition)
        round_ = feed.take()
        for record in round_.records:
            standing = undone[record.partition]
            undone[record.partition] = {at: user for at, user in standing.items() if user != record.key}
        committed.update(round_.ends)
        for partition, end in feed.ends.items():
            assert committed[partition] == min(undone[partition], default=end)
        expected = [at for at in feed.done if at[1] > committed[at[0]]]
        assert expected == [], "no batch is done before its users are"
    for partition in range(3):
        ends = [end for p, end in feed.done if p == partition]
        assert ends == sorted(ends)


def test_it_is_full_with_so_many_users_batches_or_bytes() -> None:
    users = Feed(Waiting(8, at_once=2))
    for n in range(4):
        assert not users.waiting.full
        users.add(One(b"%d" % n))
    assert users.waiting.full
    users.take()
    assert not users.waiting.full

    batches = Feed(Waiting(8, at_once=1))
    batches.add(One(b"holds up"), One(b"other"))
    for _ in range(3):
        batches.add(One(b"other"))
    assert batches.waiting.full
    batches.take()
    batches.take()
    assert batches.waiting.empty
    assert not batches.waiting.full

    large = bytes(MOST_BYTES // 4)
    sizes = Feed(Waiting(ALL, at_once=2))
    for n in range(8):  # of one user alone: what it replaces is not kept
        sizes.add(One(b"%d" % (n % 3), large))
        assert not sizes.waiting.full
    sizes.add(One(b"3", large))
    assert sizes.waiting.full
    sizes.add(One(b"3", None))
    assert not sizes.waiting.full


def test_beyond_the_queue_those_are_overdue_who_waited_longest() -> None:
    feed = Feed(Waiting(5, at_once=2))
    feed.add(*(One(b"%d" % n) for n in range(8)), One(b"0"))
    round_ = feed.take()
    assert named(round_.overdue) == [b"0", b"1", b"2"]
    assert round_.overdue[0].offset == 8
    assert named(round_.users) == [b"3", b"7"]
    assert round_.ends == {0: 4}


def test_what_is_replaced_or_taken_is_let_go() -> None:
    feed = Feed(Waiting(ALL, at_once=1))
    seen = [weakref.ref(record) for record in feed.add(One(b"a"), One(b"b"), One(b"a")).records]
    assert [ref() is None for ref in seen] == [True, False, False]
    round_ = feed.take()
    assert named(round_.users) == [b"a"]
    round_.clear()
    assert [ref() is None for ref in seen] == [True, False, True]


def test_a_trace_ends_with_the_slate_that_shows_its_event() -> None:
    trace = (("traceparent", b"00-1-1-01"),)
    feed = Feed(Waiting(ALL, ALL))
    feed.add(One(b"a", b"1", headers=trace), One(b"a", b"2"))
    (record,) = feed.take().users
    assert (record.value, record.offset, record.headers) == (b"2", 1, trace)


def test_how_many_wait_can_be_seen() -> None:
    feed = Feed(Waiting(ALL, at_once=1))
    depths = []
    for step in (lambda: feed.add(One(b"a"), One(b"b"), One(b"a")), feed.take, feed.take):
        step()
        depths.append(REGISTRY.get_sample_value("stream_app_queue_depth", {"queue": "ranking"}))
    assert depths == [2, 1, 0]
