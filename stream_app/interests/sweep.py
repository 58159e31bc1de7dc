"""Removes what names erased users from the retry topics, ``events-routed``, ``events-dlq`` and ``erasures``.

Kafka deletes only what stands before an offset. Of the topics of copies and of ``erasures`` everything that
has been consumed is garbage and goes; of ``erasures`` in all partitions, since a request may have been
routed. Of ``events-dlq`` the letters of others must stay: chunk by chunk

1. one transaction writes a chunk's other letters anew at the end, unchanged, and commits the chunk's
   end as an offset of a consumer group of its own;
2. then the chunk is deleted.

A crash between the two leaves a chunk twice until the next sweep, which begins by deleting what stands
before the committed offset. The transactional id fences a sweep that another one has overtaken. All
letters move, so that they stay in order.

For the broker a letter that has moved is new, and its retention begins anew. So letters whose own time
(when they were first written) is past the topic's retention are left behind when others move, and
:meth:`CopySweep.expire` looks now and then after those that moved before.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import product

from kafka import errors as kafka_errors

from stream_app.errors import AccessError, BrokerUnavailableError, FencedError, TransactionError
from stream_app.events.dead_letters import written_ms
from stream_app.events.named import users_in
from stream_app.events.times import Clock, wall_clock
from stream_app.hashing import key64
from stream_app.interests.erasure import TOPIC
from stream_app.interests.receipts import Removed
from stream_app.kafka.admin import committed_offset, delete_records, retention_ms, topic_id
from stream_app.kafka.changelog import Apply, ChangelogReader
from stream_app.kafka.errors import KafkaError
from stream_app.kafka.marks import Mark
from stream_app.kafka.records import Partition, Record
from stream_app.kafka.transactions import Output, Transactions
from stream_app.observability import metrics
from stream_app.settings import Settings
from stream_app.topics import FOREVER, copy_topics

LATER = (
    *(AccessError, BrokerUnavailableError, FencedError, TransactionError),
    *(KafkaError, kafka_errors.KafkaError),
)
"""What ends a sweep without harm: the next one takes up where it ended."""

Committed = Mapping[str, int | None]
"""Topic → committed offset in one partition."""


LOOKS = 100
"""So often within the retention letters that have moved are looked at."""


def own_ms(letter: Record) -> int:
    """When a letter was first written, ms: moving it gives it another Kafka timestamp, and a writer whose
    clock was ahead must not keep it for longer."""
    arrived: int = letter.timestamp
    return min(written_ms(letter), arrived)


class CopySweep:
    """Sweeps for all partitions of a worker at once. Calls must not overlap."""

    def __init__(
        self, settings: Settings, moved: Callable[[], None] = lambda: None, now_ms: Clock = wall_clock
    ) -> None:
        """``moved`` is called as a sweep goes on."""
        self._settings, self._moved, self._now_ms = settings, moved, now_ms
        self.topics = copy_topics(settings)
        self._letters_topic = settings.topic_name("events-dlq")
        self._looked_at: dict[int, int] = {}
        self._requests_topic = settings.topic_name(TOPIC)
        self._ends: dict[tuple[str, int, int], int] = {}

    async def sweep(
        self, users: Mapping[int, Collection[int]], committed: Mapping[int, Committed]
    ) -> dict[int, dict[int, Removed]]:
        """Remove the copies of ``users``, by partition of the interests table, as key64; ``committed`` of
        all partitions.

        Returns whose copies are gone, and how many there were. Who still has a copy waiting is left for a
        later sweep: when it is due it is refused, and is garbage then. Raises one of LATER.
        """
        retries = {p: await self._retries(p, set(of), committed[p]) for p, of in users.items()}
        letters = await self._letters(set().union(*retries.values()))
        done: dict[int, dict[int, Removed]] = {}
        for p, counts in retries.items():
            done[p] = {
                user: Removed(retries=count, dead_letters=letters[user]) for user, count in counts.items()
            }
            for topic, user in product(self.topics, counts):
                self._ends.pop((topic, p, user), None)
        for p, offsets in committed.items():
            await self._delete(self._requests_topic, p, offsets.get(self._requests_topic) or 0)
        return done

    async def _retries(self, p: int, users: set[int], committed: Committed) -> dict[int, int]:
        """Delete the consumed part of the topics of copies; who has no copy left there, and their number."""
        waiting: set[int] = set()
        counts: Counter[int] = Counter()
        for topic in self.topics:
            consumed = committed.get(topic) or 0
            gone, wait = await self._copies_on(topic, p, users, consumed)
            waiting |= wait
            counts += gone
            if gone:
                await self._delete(topic, p, consumed)
                metrics.ERASED_COPIES.labels(topic).inc(gone.total())
        return {user: counts[user] for user in users - waiting}

    async def _copies_on(
        self, topic: str, p: int, users: set[int], consumed: int
    ) -> tuple[Counter[int], set[int]]:
        """Copies before ``consumed``, by user, and who still has one to be tried."""
        found: list[tuple[int, int]] = []

        async def look(records: Sequence[Record], _position: int) -> None:
            found.extend((r.offset, user) for r in records for user in _named_in(r) & users)

        end = await self._read_all(topic, p, look)
        # only what was there when the user was first looked for: what comes later is of the time after
        ends = {user: self._ends.setdefault((topic, p, user), end) for user in users}
        waiting = {user for offset, user in found if consumed <= offset < ends[user]}
        return Counter(user for offset, user in found if offset < consumed), waiting

    async def expire(self, partitions: Iterable[int]) -> None:
        """Remove letters of these partitions of ``events-dlq`` that have moved and are past their own time.

        What never moved is the broker's to remove. A partition is looked at a hundred times within the
        retention, so none outlives it by more than a hundredth. Raises one of LATER.
        """
        now_ms, retention = self._now_ms(), await self._retention_ms()
        due = [p for p in partitions if self._looked_at.get(p, 0) <= now_ms - retention // LOOKS]
        if retention == FOREVER or not due:
            return
        group = await self._group()
        for p in due:
            if await asyncio.to_thread(committed_offset, self._settings, group, self._letters_topic, p):
                await self._expire(p, group, now_ms - retention)
            self._looked_at[p] = now_ms

    async def _expire(self, p: int, group: str, before_ms: int) -> None:
        kept, first, behind = False, 0, False

        async def look(records: Sequence[Record], _position: int) -> None:
            nonlocal kept, first, behind
            for record in records:
                if own_ms(record) >= before_ms:
                    kept = True
                elif kept:
                    behind = True
                else:
                    first = int(record.offset) + 1

        await self._read_all(self._letters_topic, p, look)
        if behind:  # younger ones were written while the others moved, and stand before them
            await self._rewrite(p, group, set(), before_ms)
        else:
            await self._delete(self._letters_topic, p, first)

    async def _group(self) -> str:
        """The group whose offsets say how far a partition has moved. Offsets of a topic that has been
        deleted say nothing of one that was created since."""
        topic = await asyncio.to_thread(topic_id, self._settings, self._letters_topic)
        return f"{self._settings.group('letters')}-{topic}"

    async def _retention_ms(self) -> int:
        return await asyncio.to_thread(retention_ms, self._settings, self._letters_topic)

    async def _letters(self, users: set[int]) -> Counter[int]:
        """Rewrite each partition of ``events-dlq`` that has letters of these users; how many it were."""
        counts: Counter[int] = Counter()
        if not users:
            return counts
        group, retention = await self._group(), await self._retention_ms()
        before_ms = 0 if retention == FOREVER else self._now_ms() - retention
        for p in range(self._settings.kafka.shared_partitions):
            await self._delete_done(p, group)
            found: Counter[int] = Counter()

            async def look(records: Sequence[Record], _position: int, found: Counter[int] = found) -> None:
                found.update(user for r in records for user in _named_in(r) & users)

            await self._read_all(self._letters_topic, p, look)
            if found:
                await self._rewrite(p, group, users, before_ms)
                metrics.ERASED_COPIES.labels(self._letters_topic).inc(found.total())
                counts += found
        return counts

    async def _rewrite(self, p: int, group: str, users: set[int], before_ms: int) -> None:
        """Write a partition's letters anew, but those of ``users`` and those from before ``before_ms``."""
        topic = self._letters_topic
        transactions = Transactions(self._settings, f"{self._settings.kafka.app_id}-letters-{p}", group)
        await transactions.fence([Partition(topic, p)])
        try:
            await self._delete_done(p, group)  # a rival may have got on before it was fenced

            async def move(records: Sequence[Record], position: int) -> None:
                kept = [
                    Output(topic, p, r.key, r.value, r.headers)
                    for r in records
                    if own_ms(r) >= before_ms and not _named_in(r) & users
                ]
                await transactions.commit(kept, {Partition(topic, p): (position, Mark())})
                await self._delete(topic, p, position)

            await self._read_all(topic, p, move)
        finally:
            await transactions.close()

    async def _delete_done(self, p: int, group: str) -> None:
        """Delete the chunk that a sweep wrote anew and did not come to delete."""
        done = await asyncio.to_thread(committed_offset, self._settings, group, self._letters_topic, p)
        await self._delete(self._letters_topic, p, done)

    async def _read_all(self, topic: str, p: int, apply: Apply) -> int:
        """Everything up to the end as it is now; returns the position there."""
        reader = ChangelogReader(self._settings, topic, p, self._moved, partial=True)
        try:
            await reader.start(0)
            return await reader.read_to_end(apply)
        finally:
            await reader.stop()

    async def _delete(self, topic: str, p: int, before: int) -> None:
        if before > 0:
            await asyncio.to_thread(partial(delete_records, self._settings, {(topic, p): before}))


def _named_in(record: Record) -> set[int]:
    """key64 of the users that a copy's key and value name."""
    return {key64(user) for user in users_in(record)}
