"""One partition of the interests table: opened by its one owner, fed with batches, closed.

The numbered steps of a batch, and what a crash after each leaves behind:

1. compute: decode, apply to the slab, collect outputs. Crash: nothing happened.
2. one Kafka transaction, with those of the worker's other partitions: changelog, statistics, dead letters,
   retries, the accounts with the position reached, the input's offset. Crash inside: the next owner's fence
   aborts it, the batch is read again.
3. later: one RocksDB WriteBatch of changed users with the changelog position. Crash before:
   recovery reads on from the older position.

A transaction that fails has already changed the slab, so the partition is *lost*: everything held
of it is forgotten, and it is opened anew with the group's next assignment, which is asked for. (Not
at once: only the group coordinator knows whether the partition is still ours, and fencing it
without asking would throw out a rightful new owner.)

Where a partition is read on is part of its state (``Outcomes.positions``). The offsets of the group say
the same to others; where they have expired or were reset, the state's word counts, since what it has
taken must not be taken twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from stream_app.content.index import ContentIndex
from stream_app.errors import FencedError, RebuildUnfinishedError, StateDamagedError, TransactionError
from stream_app.hashing import action_code, model_code
from stream_app.interests.batch import BatchPreparation, PartitionState
from stream_app.interests.erasure import ErasurePreparation, ReceiptWriter
from stream_app.interests.expiry import Expiry
from stream_app.interests.outbox import Computed, Outbox
from stream_app.interests.placement import Placement
from stream_app.interests.positions import goes_on
from stream_app.interests.receipts import Fences, Removed
from stream_app.interests.shaping import shaping, tell
from stream_app.interests.sizing import OutputSize
from stream_app.interests.slab import Slab
from stream_app.interests.standby import finish, resume, store_records
from stream_app.interests.statistics import PartitionStatistics
from stream_app.interests.statistics_record import (
    NOT_ROUTED,
    OUTCOMES_KEY,
    RESERVED,
    ROUTER,
    Outcomes,
    RouterStanding,
    router_key,
)
from stream_app.interests.store import PartitionStore
from stream_app.kafka.changelog import Apply, ChangelogReader
from stream_app.kafka.clock import CLOCK
from stream_app.kafka.errors import KafkaError
from stream_app.kafka.pace import Pace
from stream_app.kafka.records import KeyedRecord, Partition, RecordBatch
from stream_app.kafka.shared import Share
from stream_app.kafka.topic_ids import InputOffsets, Inputs
from stream_app.kafka.transactions import Output
from stream_app.observability import metrics
from stream_app.settings import Settings

if TYPE_CHECKING:  # OpenTelemetry is an extra
    from stream_app.observability.tracing import Passage, Tracing

log = logging.getLogger(__name__)

INLINE_RECORDS = 32
"""Batches up to this size are computed in the event loop: a thread would cost more than they do."""

MOVED_S = 1.0
"""Between two signs of life of what takes long."""

LOOK_S = 0.005
LOOK_TIMEOUT_S = 1.0
"""Looks for a marker, which comes a moment after the commit."""

Lost = Callable[[], None]
Broken = Callable[[BaseException], None]


class InterestPartition:
    """An owned partition. ``handle`` calls do not overlap."""

    def __init__(
        self,
        settings: Settings,
        partition: int,
        share: Share,
        preparation: BatchPreparation,
        *,
        model: str,
        on_lost: Lost,
        on_broken: Broken,
        computing: asyncio.Lock | None = None,
        pace: Pace | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """``share`` of the worker's transactions has the inputs of this partition; ``on_lost`` asks for a new
        assignment; ``on_broken`` stops the worker. Partitions that share ``computing`` compute one batch at a
        time, those that share ``pace`` commit together."""
        interests = settings.interests
        self.partition = partition
        self.lost = False
        """Failed or fenced: batches are dropped until the partition is opened anew."""
        self._settings = settings
        self._preparation = preparation
        self._on_lost = on_lost
        self._on_broken = on_broken
        self._table = Partition(settings.topic_name("interests"), partition)
        self._statistics_topic = settings.topic_name("content-stats")
        self.share = share
        self._slab = Slab.configured(settings, model_code(model))
        self._statistics = PartitionStatistics(
            partition, [action_code(a.name) for a in settings.events.actions], interests.stats_half_lives_h
        )
        self._outcomes = Outcomes()
        self._routers: dict[bytes, RouterStanding] = {}
        self._shaping = shaping(settings, model)
        self._fences = Fences()
        self._expiry = Expiry(settings, partition, Placement(settings))
        self._erasures = ErasurePreparation(settings)
        self._receipts = ReceiptWriter(settings)
        self._state: PartitionState | None = None
        self._inputs: Inputs
        self._broker: InputOffsets
        self._stable = 0  # up to here the changelog is decided
        self._expected: dict[str, int | None] = {}
        self._position = 0
        self._outbox = Outbox(self._commit_together, share.bound, pace or Pace())
        self._size = OutputSize(self._slab.rows.itemsize)
        self._tracing = tracing
        self._busy = asyncio.Lock()
        self._computing = computing or asyncio.Lock()

    # -- opening and closing

    async def open(
        self,
        store: PartitionStore,
        topics: Sequence[str],
        offsets: InputOffsets,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        """Claim, then recover, then learn where to read ``topics`` on: in this order nothing slips in
        between.

        ``moved`` is called as recovery goes on. Raises TransactionError or a KafkaError when the broker
        does not play along.
        """
        begun = time.monotonic()
        await self.share.claim()
        reader = ChangelogReader(self._settings, self._table.topic, self.partition, moved)
        try:
            if not await reader.start(await resume(store, self._settings)):
                log.warning("%s no longer has our position: rebuilding from its start", self._table)
                await finish(store.clear)
            self._position = await reader.read_to_end(store_records(store))
        finally:
            await reader.stop()
        await self._read_whole(self._statistics_topic, self._take_statistics, moved)
        routed = [topic for topic in topics if self._standing(topic).offset != NOT_ROUTED]
        await self._read_whole(self._settings.topic_name("erasure-receipts"), self._take_receipts, moved)
        self._show_fences()
        if self._outcomes.rebuilding:
            raise RebuildUnfinishedError(
                f"a rebuild of partition {self.partition} was begun and did not come to its end: run "
                "`stream-app rebuild` again"
            )
        for topic in routed:
            standing = self._standing(topic)
            self._outcomes.positions[topic] = standing.offset, standing.topic_id
        await self._find_positions(topics, offsets)
        tell(self.partition, self._outcomes.settings, self._shaping)
        self._outcomes.settings = self._shaping
        self._broker, self._stable = offsets, self._position
        state = PartitionState(
            self.partition, self._slab, store, self._statistics, self._fences, self._outcomes
        )
        if routed:
            await self._take_over(state, routed)
        self._state = state
        seconds = time.monotonic() - begun
        metrics.RECOVERY_SECONDS.observe(seconds)
        log.info("partition %d is open, after %.2f s", self.partition, seconds)

    def _standing(self, topic: str) -> RouterStanding:
        return self._routers.get(router_key(topic, self.partition), RouterStanding())

    async def _take_over(self, state: PartitionState, routed: Sequence[str]) -> None:
        """Routers that are fenced out read these inputs: where they stood is the state's from now on."""
        outputs, offsets = [self._preparation.account(state)], {}
        for topic in routed:
            if (at := self._expected[topic]) is not None:
                offsets[Partition(topic, self.partition)] = at
            key = router_key(topic, self.partition)
            given_up = msgspec.structs.replace(self._standing(topic), offset=NOT_ROUTED)
            outputs.append(Output(self._statistics_topic, self.partition, key, msgspec.json.encode(given_up)))
        await self.share.commit(outputs, offsets, self._inputs.ids)

    async def _find_positions(self, topics: Sequence[str], offsets: InputOffsets) -> None:
        """Where each input is read on: as the state says; else the group, else from the beginning."""
        committed = await offsets.committed([Partition(topic, self.partition) for topic in topics])
        there = await offsets.bounds([tp for tp, mark in committed.items() if mark.offset is not None])
        self._inputs = Inputs(offsets, committed)
        self._expected = {tp.topic: None for tp in committed} | {
            tp.topic: goes_on(self._outcomes, tp, committed[tp], bounds) for tp, bounds in there.items()
        }
        put_right = {
            tp: at
            for tp, mark in committed.items()
            if (at := self._expected[tp.topic]) is not None and at != mark.offset
        }
        if put_right:  # others look at the group
            await self.share.commit([], put_right, self._inputs.ids)

    async def _read_whole(self, topic: str, take: Apply, moved: Callable[[], None]) -> None:
        reader = ChangelogReader(self._settings, topic, self.partition, moved)
        try:
            await reader.start(0)
            await reader.read_to_end(take)
        finally:
            await reader.stop()

    async def _take_receipts(self, records: Sequence[KeyedRecord], _position: int) -> None:
        for record in records:
            self._fences.load(record.key, record.value)

    async def _take_statistics(self, records: Sequence[KeyedRecord], _position: int) -> None:
        latest = CLOCK.latest_ms() + int(self._settings.events.max_future_s * 1000)
        for record in records:
            if not record.key.startswith(RESERVED):
                self._statistics.load(record.key, record.value, latest)
            elif record.value is None:
                continue
            elif record.key == OUTCOMES_KEY:
                self._outcomes = msgspec.json.decode(record.value, type=Outcomes)
            elif record.key.startswith(ROUTER):
                self._routers[record.key] = msgspec.json.decode(record.value, type=RouterStanding)

    async def close(self) -> None:
        """Finish what is in flight, write out, leave the store closed and durable."""
        self.share.leave()
        async with self._busy:
            await self.settle()
            state, self._state = self._state, None
            if state is not None:
                try:
                    if await self._decided(LOOK_TIMEOUT_S):
                        await finish(partial(self._write, state, parting=True))
                finally:
                    await finish(state.store.close)
            for gauge in (metrics.SLAB_ROWS, metrics.FENCES, metrics.ERASURES_UNSWEPT):
                gauge.labels(self.partition).set(0)

    async def settle(self) -> None:
        """Wait until all that was computed is committed, or lost."""
        await self._outbox.settle()

    @property
    def inputs(self) -> frozenset[str]:
        """Topics that it was opened with."""
        return frozenset(self._expected)

    @property
    def positions(self) -> dict[Partition, int | None]:
        """The offset that the next batch of each input has to start with; None: no such topic."""
        if self.lost:
            return {}
        return {Partition(topic, self.partition): at for topic, at in self._expected.items()}

    # -- batches

    async def handle(self, batch: RecordBatch) -> None:
        """Apply one batch: returns when it is computed; its transaction is on its way or the next one."""
        first, start = 0, batch.start
        while first < len(batch.records):
            rest = batch.records[first : first + self._slab.capacity]
            count = self._size.fitting(rest, self.share.bound.bytes)
            part = RecordBatch(batch.topic, batch.partition, start, rest[:count])
            await self._handle(part)
            first, start = first + count, part.end

    async def _admit(self, batch: RecordBatch) -> PartitionState | None:
        """The state to apply a batch to; None when it is not to be applied."""
        state = self._state
        if self.lost or state is None or batch.topic not in self._expected:
            return None
        if not await self._same_topic(batch):
            return None
        expected = self._expected[batch.topic]
        if expected is not None and batch.start != expected:
            # A batch that was fetched before a failure or a rebalance: reading goes on elsewhere.
            log.warning("%s[%d]: batch out of sequence", batch.topic, batch.partition)
            self._lose(TransactionError(f"expected offset {expected}, got {batch.start}"))
            return None
        self._expected[batch.topic] = batch.end
        state.outcomes.positions[batch.topic] = batch.end, self._inputs.ids[batch.topic]
        return state

    async def _same_topic(self, batch: RecordBatch) -> bool:
        """Whether the batch is of the topic that the offsets before it are of; if not, we are lost."""
        try:
            if not await self._inputs.same(Partition(batch.topic, self.partition)):
                self._lose(TransactionError(f"{batch.topic} was deleted and created again"))
        except KafkaError as error:
            self._lose(error)
        return not self.lost

    async def _handle(self, batch: RecordBatch) -> None:
        async with self._busy:
            if (state := await self._admit(batch)) is None:
                return
            metrics.BATCH_RECORDS.labels("interests").observe(len(batch.records))
            if self._slab.capacity - np.count_nonzero(self._slab.dirty) < len(batch.records):
                await self._flush(state)
                if self.lost:
                    return
            tracing, traced = self._tracing, None
            if tracing is not None:
                traced = tracing.events(batch.records, self._outbox.passages)
            try:
                # 1. compute, while the previous transaction is on its way
                async with self._computing:
                    if len(batch.records) > INLINE_RECORDS:
                        outputs = await finish(self._preparation.prepare, state, batch.topic, batch.records)
                    else:
                        outputs = self._preparation.prepare(state, batch.topic, batch.records)
            except StateDamagedError as error:
                self._lose(error)  # it is opened anew, and rebuilt
                return
            except BaseException:
                self.lost = True  # the slab may be ahead of the changelog now: never write it out
                raise
            passages: list[Passage] = []
            if traced is not None:
                outputs = traced.computed(outputs, self._table.topic)
                passages = traced.passages
            # 2. one transaction: at once, or together with what else waits for the one on its way
            source = Partition(batch.topic, batch.partition)
            one = Computed(outputs, source, batch.end, passages)
            self._size.were(one.size)
            await self._outbox.put(one)

    async def _commit_together(self, together: Sequence[Computed]) -> bool:
        if self.lost:
            return False
        outputs = [output for one in together for output in one.outputs]
        offsets = {one.source: one.end for one in together}
        await self._commit(outputs, offsets, sum(one.size for one in together))
        for passage in (passage for one in together for passage in one.passages):
            passage.step("transaction")
            passage.end("the transaction failed" if self.lost else "")
        return not self.lost

    async def _commit(
        self, outputs: Sequence[Output], offsets: Mapping[Partition, int], size: int = 0
    ) -> None:
        with metrics.STATE_SECONDS.labels("transaction").time():
            try:
                ends = await self.share.commit(outputs, offsets, self._inputs.ids, size)
            except (FencedError, TransactionError) as error:
                self._lose(error)
                return
            except BaseException as error:
                self.lost = True
                self._on_broken(error)
                raise
        self._position = max(self._position, ends.get(self._table, 0))

    def _lose(self, error: Exception) -> None:
        if not self.lost:
            self.lost = True
            log.warning("partition %d is lost: %s", self.partition, error)
            self._on_lost()

    async def erase(self, batch: RecordBatch) -> None:
        """Erase the users that a batch of requests names; returns when that is committed."""
        async with self._busy:
            if (state := await self._admit(batch)) is None:
                return
            try:
                await self._flush(state)  # then the store has every user, and no row is ahead of it
                if self.lost:
                    return
                now_ms = CLOCK.latest_ms()
                prepare = partial(
                    self._erasures.prepare, self.partition, state.store, self._fences, batch.records, now_ms
                )
                done = await finish(prepare)
                outputs = [*done.outputs, self._preparation.account(state)]
                await self._commit(outputs, {Partition(batch.topic, batch.partition): batch.end})
                if not self.lost:
                    await self._remove(state, list(done.receipts))
                    self._fences.take(done.receipts)
                    metrics.ERASURES.labels("erased").inc(len(done.receipts))
                    metrics.ERASURES.labels("rejected").inc(len(done.rejected))
                    metrics.ERASURES.labels("routed").inc(done.routed)
                    for reason in done.rejected:
                        metrics.DEAD_LETTERS.labels(reason.value).inc()
                    self._show_fences()
            except StateDamagedError as error:
                self._lose(error)
            except BaseException:
                self.lost = True
                raise

    @property
    def unswept(self) -> dict[int, int]:
        """Erased users (key64) whose copies on other topics are still there, and the requests' offsets."""
        return {} if self.lost else self._fences.unswept

    async def swept(
        self,
        copies: Mapping[int, Removed],
        asked: Mapping[int, int],
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        """The copies of these users (key64) are gone: so be what the files still hold, and the receipts
        say so. Users who were asked for again since (``asked``: ``unswept`` then) are swept once more.

        Batches go on meanwhile; ``moved`` is called now and then.
        """
        async with self._busy:
            state = self._state
            if self.lost or state is None:
                return
            await self._flush(state)
            if self.lost:
                return
        await self._purge(state.store.purge, moved)
        async with self._busy:
            if self.lost or self._state is None:
                return
            receipts = self._fences.swept(copies, asked, time.time_ns() // 1_000_000)
            await self._commit(
                [self._receipts.output(self.partition, user, r) for user, r in receipts.items()], {}
            )
            if not self.lost:
                self._fences.receipts.update(receipts)
                self._show_fences()

    async def _purge(self, purge: Callable[[], None], moved: Callable[[], None]) -> None:
        """Rewrite the files, which takes minutes where there are many. Cancelled, it is left alone: it ends
        when the store is closed."""
        purging = asyncio.ensure_future(asyncio.to_thread(purge))
        purging.add_done_callback(lambda done: done.cancelled() or done.exception())
        while not (await asyncio.wait([purging], timeout=MOVED_S))[0]:
            moved()
        purging.result()

    def _show_fences(self) -> None:
        metrics.FENCES.labels(self.partition).set(len(self._fences.receipts))
        metrics.ERASURES_UNSWEPT.labels(self.partition).set(len(self._fences.unswept))

    # -- between batches

    async def flush(self) -> None:
        """3. Write changed users and the position to RocksDB; later, while the broker is away."""
        async with self._busy:
            await self.settle()
            if self._state is not None and await self._decided(0.0):
                await self._write_timed(self._state)

    async def _flush(self, state: PartitionState) -> None:
        """Now, for what comes next needs it; or the partition is lost."""
        await self.settle()  # only what is committed may be written
        if await self._decided_or_lost():
            await self._write_timed(state)

    async def _write_timed(self, state: PartitionState) -> None:
        with metrics.STATE_SECONDS.labels("flush").time():
            await finish(self._write, state)

    async def _decided_or_lost(self) -> bool:
        if not await self._decided(self._settings.kafka.transaction_timeout_s):
            self._lose(TransactionError("what was committed gets no marker"))
        return not self.lost

    async def _decided(self, patience_s: float) -> bool:
        """Whether what was committed is sure to stay, within so long.

        A broker answers a commit before the markers stand on the partitions. Should it be killed in
        between and have forgotten of the commit when it is back, the records are aborted, and their events
        are read again: they must not meet a RocksDB that knows them.
        """
        deadline = time.monotonic() + patience_s
        while not self.lost and self._stable < self._position:
            try:
                async with asyncio.timeout(LOOK_TIMEOUT_S):
                    self._stable = await self._broker.stable_end(self._table)
            except (KafkaError, TimeoutError) as error:
                log.debug("the end of %s is not known: %r", self._table, error)
            if self._stable < self._position:
                if time.monotonic() >= deadline:
                    return False
                await asyncio.sleep(LOOK_S)
        return not self.lost

    def _write(self, state: PartitionState, *, parting: bool = False) -> None:
        """``parting``: also where nothing has changed, the store learns how far and until when it was
        followed."""
        slab = state.slab
        rows = np.flatnonzero(slab.dirty)
        if not (len(rows) or parting):
            return
        written = zip(rows.tolist(), slab.encode(rows), strict=True)
        changed = [(user, value) for row, value in written if (user := slab.users[row]) is not None]
        state.store.write(changed, self._position)
        slab.dirty[rows] = False

    @property
    def stream_time(self) -> int | None:
        """Newest accepted event time, ms; None before the first."""
        return self._statistics.stream_time

    async def expire(self, index: ContentIndex, moved: Callable[[], None] = lambda: None) -> int:
        """Drop users whose mass has faded below ``interests.min_mass``, and faded statistics of
        contents that are no longer indexed; returns how many users. ``moved`` is called
        now and then.

        So are users who live in another partition: what earlier versions made of misplaced events, and
        nobody reads or erases there. ``stream-app rebuild`` counts them where they belong.
        """
        async with self._busy:
            state = self._state
            if self.lost or state is None or state.stream_time is None:
                return 0
            await self._flush(state)
            if self.lost:
                return 0
        lag_s = self._settings.kafka.compaction_lag_h * 3600
        await self._purge(partial(state.store.purge_after, lag_s), moved)
        async with self._busy:
            if self.lost or self._state is None or (now := state.stream_time) is None:
                return 0
            await self._flush(state)
            try:
                expired = await finish(self._expiry.find, state, index, now)
            except StateDamagedError as error:
                self._lose(error)
                return 0
            if self.lost or not expired:
                return 0
            if expired.strays:
                log.warning(
                    "partition %d: %d users live in others and are dropped here: an earlier version took "
                    "their events where they stood",
                    *(self.partition, len(expired.strays)),
                )
                metrics.USERS_MISPLACED.inc(len(expired.strays))
            outputs = [Output(self._table.topic, self.partition, user, None) for user in expired.users]
            outputs += [Output(self._statistics_topic, self.partition, key, None) for key in expired.contents]
            outputs += [self._receipts.output(self.partition, user, None) for user in expired.fences]
            await self._commit(outputs, {})
            if not self.lost:
                await self._remove(state, expired.users)
                for content in expired.contents:
                    state.statistics.forget(content)
                for user in expired.fences:
                    del self._fences.receipts[user]
                self._show_fences()
                metrics.USERS_EXPIRED.inc(len(expired.users))
            return len(expired.users)

    async def _remove(self, state: PartitionState, users: Sequence[bytes]) -> None:
        """From memory and disk, after their tombstones are committed. No row may be dirty."""
        if not await self._decided_or_lost():
            return
        state.slab.release([state.slab.index[user] for user in users if user in state.slab.index])
        removed: list[tuple[bytes, bytes | None]] = [(user, None) for user in users]
        await finish(state.store.write, removed, self._position)
