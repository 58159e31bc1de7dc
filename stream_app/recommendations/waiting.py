"""Users who wait to be ranked, each with the newest record alone.

However many records arrive while others are ranked, a user waits once and is ranked by what is known then:
more load means more records a ranking, not later slates. Where more users wait than are ranked at a time,
half of the places go to those who have waited longest, so that nobody is passed over for ever, and half to
those whose records are the newest, so that who has just acted does not queue behind all others.

So users are done in another order than their records came in. An input position is handed out once nobody
waits with a record before it: everybody there has been ranked by that record or by a newer one. After a
crash those are ranked again who were ahead of it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import islice
from operator import attrgetter
from typing import cast

from stream_app.kafka.records import KeyedRecord, Record, RecordBatch, headed
from stream_app.observability import metrics

MOST_BYTES = 64 * 2**20
"""Of records that wait: 20,000 users' or so by default. More wait where they are large, one batch's."""

Done = Callable[[], Awaitable[object]]


@dataclass(slots=True)
class Round:
    """Whoever is ranked together, one record a user."""

    gone: list[KeyedRecord] = field(default_factory=list)
    """Tombstones"""
    overdue: list[KeyedRecord] = field(default_factory=list)
    """For whom there is no room: who waited longest"""
    users: list[KeyedRecord] = field(default_factory=list)
    """The others, as many as are ranked at a time"""
    ends: dict[int, int] = field(default_factory=dict)
    """Partition → input position, once this round and those before it are published"""
    dones: list[Done] = field(default_factory=list)
    """Of batches before these positions"""

    @property
    def records(self) -> list[KeyedRecord]:
        """Everybody's."""
        return [*self.gone, *self.overdue, *self.users]

    def clear(self) -> None:
        """Let go of everything."""
        for held in (self.gone, self.overdue, self.users, self.dones):
            held.clear()


@dataclass(slots=True)
class _Input:
    """One partition, as far as it has been read and not done."""

    position: int
    """Handed out last"""
    firsts: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    """user → offset of the first record that the user waits for, ascending"""
    batches: deque[tuple[int, Done]] = field(default_factory=deque)
    """End and ``done`` of each, ascending"""


class Waiting:
    """At most as many users as given, and one batch's; one thread uses it."""

    def __init__(self, queue_users: int, at_once: int, most_bytes: int = MOST_BYTES) -> None:
        """``queue_users`` is ``ranking.queue_users``: beyond it those who waited longest are overdue. It is
        full with half of them, so that with one batch more (8 MiB by default) there are fewer than that: a
        backlog alone makes nobody overdue. ``at_once`` users make up a round."""
        self._queue_users, self._most_bytes = queue_users, most_bytes
        self._most = max(queue_users // 2, 1)
        self._at_once = at_once
        self._records: OrderedDict[bytes, KeyedRecord] = OrderedDict()  # who has waited longest comes first
        self._gone: set[bytes] = set()
        self._inputs: dict[int, _Input] = {}
        self._bytes = 0
        self._batches = 0

    def __len__(self) -> int:
        """Users."""
        return len(self._records)

    @property
    def empty(self) -> bool:
        """Whether every batch has been handed on."""
        return not self._inputs

    @property
    def enough(self) -> bool:
        """Whether there are users for a whole round."""
        return len(self._records) >= self._at_once

    @property
    def full(self) -> bool:
        """Whether nothing may be added."""
        return max(len(self._records), self._batches) >= self._most or self._bytes >= self._most_bytes

    def add(self, batch: RecordBatch, done: Done) -> None:
        """Let the batch's users wait. The batch itself is not kept.

        Keys that can be no user's (empty, or beginning with the zero byte of reserved keys) are counted and
        skipped.
        """
        source = self._inputs.setdefault(batch.partition, _Input(batch.start))
        for record in batch.records:
            if not (user := record.key) or user.startswith(b"\x00"):
                metrics.RANKER_REJECTED.labels("interests").inc()
            else:
                self._put(user, record, source)
        source.batches.append((batch.end, done))
        self._batches += 1
        self._told()

    def take(self) -> Round:
        """The next round: all who have gone and all who are overdue, and so many of the others."""
        gone = [self._pop(user) for user in list(self._gone)]
        overdue = self._popped(islice(self._records, max(len(self._records) - self._queue_users, 0)))
        users = self._popped(islice(self._records, self._at_once - self._at_once // 2))
        # by time, since whatever partition was read last is no newer than the others
        newest = nlargest(self._at_once // 2, self._records.values(), key=attrgetter("timestamp"))
        users += self._popped(record.key for record in newest)
        round_ = Round(gone, overdue, users)
        for number in list(self._inputs):
            self._advance(number, round_)
        self._told()
        return round_

    def _put(self, user: bytes, record: Record, source: _Input) -> None:
        before = self._records.get(user)
        if before is not None:
            self._bytes -= _size(before)
            if before.partition != record.partition:  # the user waits there now, and holds nothing up here
                del self._inputs[before.partition].firsts[user]
            if not record.headers:
                record = headed(record, before.headers)  # an event's trace ends with a slate that shows it
        source.firsts.setdefault(user, record.offset)
        self._records[user] = cast(KeyedRecord, record)
        self._bytes += _size(record)
        (self._gone.add if record.value is None else self._gone.discard)(user)

    def _popped(self, users: Iterable[bytes]) -> list[KeyedRecord]:
        return [self._pop(user) for user in list(users)]

    def _pop(self, user: bytes) -> KeyedRecord:
        record = self._records.pop(user)
        del self._inputs[record.partition].firsts[user]
        self._bytes -= _size(record)
        self._gone.discard(user)
        return record

    def _advance(self, number: int, round_: Round) -> None:
        """Hand out how far a partition is done with this round."""
        source = self._inputs[number]
        end = next(iter(source.firsts.values()), source.batches[-1][0])
        if end == source.position:
            return
        source.position = round_.ends[number] = end
        while source.batches and source.batches[0][0] <= end:
            round_.dones.append(source.batches.popleft()[1])
            self._batches -= 1
        if not source.batches:
            del self._inputs[number]

    def _told(self) -> None:
        metrics.QUEUE_DEPTH.labels("ranking").set(len(self._records))


def _size(record: Record) -> int:
    return len(record.key or b"") + len(record.value or b"")
