"""What one batch of records causes: the pure middle of the state path, between Kafka and Kafka.

:func:`prepare` decodes, looks up, applies to the slab and returns every record to be produced; it
does no Kafka I/O and may run in a thread. Steps are timed in ``stream_app_state_seconds``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_app.events.dead_letters import Origin, dead_letter, origin_of, records_in, retry
from stream_app.events.decode import DecodedBatch, EventDecoder
from stream_app.events.named import users_in
from stream_app.events.reasons import Reason
from stream_app.events.times import Clock, wall_clock
from stream_app.hashing import action_code, key64
from stream_app.interests import update
from stream_app.interests.contents import IndexedContents
from stream_app.interests.placement import Placement
from stream_app.interests.receipts import Fences
from stream_app.interests.record import APPLIED, STATE
from stream_app.interests.slab import Slab
from stream_app.interests.statistics import PartitionStatistics
from stream_app.interests.statistics_record import OUTCOMES_KEY, Outcomes
from stream_app.interests.store import PartitionStore
from stream_app.interests.update import GONE, REPEATED, TAKEN, Columns
from stream_app.kafka.records import Record, emptied
from stream_app.kafka.transactions import RECORD_BYTES, Output
from stream_app.kafka.unreadable import UnreadableRange
from stream_app.observability import metrics
from stream_app.settings import Settings
from stream_app.topics import DAY_MS, is_copy_topic, is_retry_topic, retry_topics


@dataclass(slots=True)
class PartitionState:
    """Everything in memory that belongs to one partition."""

    partition: int
    slab: Slab
    store: PartitionStore
    statistics: PartitionStatistics
    fences: Fences = field(default_factory=Fences)
    outcomes: Outcomes = field(default_factory=Outcomes)
    batches: int = 0
    """Batches applied so far: the clock of the slab's eviction."""

    @property
    def stream_time(self) -> int | None:
        """Newest accepted event time, ms."""
        return self.statistics.stream_time


class BatchPreparation:
    """Turns record batches into state changes and outputs, for all partitions of a worker."""

    def __init__(self, settings: Settings, contents: IndexedContents, now_ms: Clock = wall_clock) -> None:
        """``now_ms``: no event time is taken that is later by more than ``events.max_future_s``."""
        events, interests = settings.events, settings.interests
        self._decoder = EventDecoder(settings)
        self._contents = contents
        self._now_ms = now_ms
        self._names = [action.name for action in events.actions]
        self._codes = np.array([action_code(name) for name in self._names], np.uint16)
        self._weights = np.array([action.weight for action in events.actions], np.float32)
        self._topic_action = {settings.topic_name(a.topic): a.name for a in events.actions}
        self._delays_ms = [int(1000 * s) for s in events.retry_delays_s]
        self._half_life_ms = interests.half_life_days * DAY_MS
        self._placement = Placement(settings)
        self._retry_topics = retry_topics(settings)
        self._max_bytes = settings.kafka.max_record_bytes - RECORD_BYTES
        self._dlq_topic = settings.topic_name("events-dlq")
        self._dlq_partitions = settings.kafka.shared_partitions
        self._table_topic = settings.topic_name("interests")
        self._stats_topic = settings.topic_name("content-stats")

    def prepare(self, state: PartitionState, topic: str, records: Sequence[Record]) -> list[Output]:
        """Apply the records to ``state`` and return all that has to be produced with their offset."""
        state.batches += 1
        fates = _Fates(self, state, topic, records)
        with self._contents.still() as index:
            with _timed("decode"):
                batch = self._decoder.decode(
                    records, topic, state.partition, state.stream_time, self._now_ms()
                )
                for bad in batch.rejected:
                    fates.reject(bad.index, bad.reason, bad.detail)
                away = self._away(state, batch, fates)
                refused = state.fences.refused(batch.users, batch.times) & ~away
                for at in np.flatnonzero(refused).tolist():
                    fates.erased(int(batch.source[at]))
                done = away | refused
            with _timed("load"):
                rows_of_contents = self._contents.rows(batch.contents)
                # what takes something back needs its original, which the user's record has, and no content
                ready = (rows_of_contents >= 0) | batch.undo
                known = np.flatnonzero(ready & ~done).astype(np.int64, copy=False)
                for at in np.flatnonzero(~ready & ~done).tolist():
                    fates.later(int(batch.source[at]), Reason.UNKNOWN_CONTENT)
                users = batch.users
                if len(known) < len(users):
                    users = [users[at] for at in known.tolist()]
                rows = self._rows(state, users)
                waiting = self._foreign(state.slab, rows)
                for at in known[waiting].tolist():
                    fates.later(int(batch.source[at]), Reason.UNKNOWN_CONTENT)
                known, rows = known[~waiting], rows[~waiting]
                self._rebase(state.slab, rows)
            with _timed("apply"):
                columns = self._columns(state, batch, known, rows, rows_of_contents[known], fates)
                change = update.apply(state.slab, columns, self._contents.vectors, self._half_life_ms)
                fates.settle(batch, known, change.outcomes)
                metrics.UNDO_RESIDUES.inc(change.residues)
            with _timed("statistics"):
                statistics = state.statistics.add(change.contributions, index.names)
        with _timed("encode"):
            outputs = self._outputs(state, change.changed, statistics)
        self._drop_empty(state, rows)
        return [*outputs, *fates.outputs, self.account(state)]

    def account(self, state: PartitionState) -> Output:
        """The record that goes with every committed offset: the accounts, and the positions reached."""
        value = msgspec.json.encode(state.outcomes)
        return Output(self._stats_topic, state.partition, OUTCOMES_KEY, value)

    # -- steps

    def _away(self, state: PartitionState, batch: DecodedBatch, fates: _Fates) -> NDArray[np.bool_]:
        """[E], which events are of users who live elsewhere: they are routed there. Whoever has a row in the
        slab lives here."""
        away = np.zeros(len(batch.users), np.bool_)
        places = self._placement.places(batch.users, state.slab.index)
        places = {user: place for user, place in places.items() if place != state.partition}
        if places:
            for at, user in enumerate(batch.users):
                if (place := places.get(user)) is not None:
                    away[at] = True
                    fates.route(int(batch.source[at]), user, place)
        return away

    def _rows(self, state: PartitionState, users: list[bytes]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Slab rows of these users, loaded from RocksDB where they are missing."""
        slab = state.slab
        missing = list(dict.fromkeys(user for user in users if user not in slab.index))
        if missing:
            self._make_room(state, len(missing), users)
            for user, value in zip(missing, state.store.get(missing), strict=True):
                slab.add(user, value)
        rows = slab.of(users)
        slab.touched[rows] = state.batches
        return rows

    def _foreign(
        self, slab: Slab, rows: np.ndarray[tuple[int], np.dtype[np.int64]]
    ) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Sum those of the rows that were summed under another encoder from what their records still tell,
        in today's vectors; True for each that has to wait until these are there."""
        foreign = (slab.models(rows) != slab.model) & (slab.header["total"][rows] > 0)
        for row in np.unique(rows[foreign]).tolist():
            if self._contents.coverage.complete or self._all_indexed(slab, row):
                one = np.array([row], np.int64)
                update.renew(slab, one, self._contents.vectors, self._half_life_ms, partial=True)
                slab.header["model"][row] = slab.model
        waiting: np.ndarray[tuple[int], np.dtype[np.bool_]] = foreign & (slab.models(rows) != slab.model)
        return waiting

    def _all_indexed(self, slab: Slab, row: int) -> bool:
        """Whether every content that stands in the row's sum has its vector."""
        ring = slab.interactions[row]
        keys = ring["content"][ring["state"] & STATE == APPLIED].tolist()
        return all(self._contents.index.row_of_key(key) is not None for key in keys)

    def _rebase(self, slab: Slab, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        """Bring those that were summed under another half-life, by this encoder, over to ours."""
        hours = slab.header["half_life_h"][rows]
        other = (hours != 0) & (hours != np.float32(self._half_life_ms / update.HOUR_MS))
        if other.any():
            other &= slab.models(rows) == slab.model
            update.rebase(slab, np.unique(rows[other]), self._contents.vectors, self._half_life_ms)

    def _make_room(self, state: PartitionState, count: int, users: list[bytes]) -> None:
        slab = state.slab
        slab.touched[[row for user in set(users) if (row := slab.index.get(user)) is not None]] = (
            state.batches
        )
        short = count - slab.free
        if short > 0:
            # a little more than needed, so that not every batch has to look for victims
            slab.release(slab.evictable(short + slab.capacity // 16, state.batches).tolist())
        if slab.free < count:
            raise AssertionError("the slab is full of rows that have not been written yet")

    def _columns(
        self,
        state: PartitionState,
        batch: DecodedBatch,
        at: np.ndarray[tuple[int], np.dtype[np.int64]],
        rows: np.ndarray[tuple[int], np.dtype[np.int64]],
        contents: np.ndarray[tuple[int], np.dtype[np.int64]],
        fates: _Fates,
    ) -> Columns:
        actions = batch.actions[at]
        partitions, offsets = fates.arrivals(batch.source[at])
        return Columns(
            rows=rows,
            contents=contents,
            keys=self._keys(batch, at, contents),
            events=batch.events[at],
            times=batch.times[at],
            received=batch.received[at],
            partitions=partitions,
            offsets=offsets,
            weights=self._weights[actions],
            actions=self._codes[actions],
            undo=batch.undo[at],
            named=batch.named[at],
        )

    def _keys(
        self,
        batch: DecodedBatch,
        at: np.ndarray[tuple[int], np.dtype[np.int64]],
        contents: np.ndarray[tuple[int], np.dtype[np.int64]],
    ) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """key64 of the events' contents, whether they are indexed or not."""
        keys = self._contents.index.keys[contents]
        for i in np.flatnonzero(contents < 0).tolist():
            keys[i] = key64(batch.contents[at[i]])
        return keys

    def _outputs(
        self,
        state: PartitionState,
        changed: np.ndarray[tuple[int], np.dtype[np.int64]],
        statistics: list[tuple[bytes, bytes]],
    ) -> list[Output]:
        slab, p = state.slab, state.partition
        slab.dirty[changed] = True
        values = slab.encode(changed)
        metrics.USERS_TOUCHED.inc(len(values))
        metrics.CHANGELOG_BYTES.inc(sum(map(len, values)))
        metrics.SLAB_ROWS.labels(p).set(len(slab))
        users = slab.users
        outputs = [
            Output(self._table_topic, p, users[row], value)
            for row, value in zip(changed.tolist(), values, strict=True)
        ]
        outputs += [Output(self._stats_topic, p, content, value) for content, value in statistics]
        return outputs

    def _drop_empty(self, state: PartitionState, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        """Reading creates no state: users of whom nothing was recorded have no row."""
        empty = np.unique(rows[state.slab.header["total"][rows] == 0])
        state.slab.release(empty.tolist())


class _Fates:
    """What becomes of each record of a batch that is not simply applied; keeps the accounts."""

    def __init__(
        self, path: BatchPreparation, state: PartitionState, topic: str, records: Sequence[Record]
    ) -> None:
        self._path, self._state, self._topic, self._records = path, state, topic, records
        self._copied = is_copy_topic(topic)
        self.outputs: list[Output] = []
        if is_retry_topic(topic):  # what others put there (attempt 0) was never counted as waiting
            state.outcomes.retrying -= sum(
                records_in(record)
                for i, record in enumerate(records)
                if self._origin(i).attempt > 0 or isinstance(record, UnreadableRange)
            )

    def reject(self, index: int, reason: Reason, detail: str) -> None:
        """A record that is no event: a dead letter, of whoever it names in that user's partition."""
        placement = self._path._placement
        user = placement.owner(self._records[index])
        place = None if user is None else placement.places([user])[user]
        if user is None or place is None or place == self._state.partition:
            self.dead_letter(index, reason, detail)
        else:
            self.route(index, user, place)

    def route(self, index: int, user: bytes, partition: int) -> None:
        """A copy for the partition where the user lives."""
        origin, now = self._origin(index), self._path._now_ms()
        self.outputs.append(self._path._placement.copy(self._records[index], origin, user, partition, now))
        self._state.outcomes.routed += 1
        self._count(origin, "routed", 1)

    def dead_letter(self, index: int, reason: Reason, detail: str) -> None:
        record, origin = self._records[index], self._origin(index)
        # what is malformed has no time of its own; what is too old is older than any fence
        time_ms = 0 if reason is Reason.TOO_OLD else origin.timestamp
        if any(self._state.fences.covers(user, time_ms) for user in users_in(record)):
            self.erased(index)
        else:
            self._dead_letter(record, origin, reason, detail)

    def erased(self, index: int) -> None:
        """A dead letter without anything of the record but where it was."""
        record = self._records[index]
        empty = emptied(record)
        self._dead_letter(empty, self._origin(index), Reason.ERASED, "of the time before the user's erasure")

    def _dead_letter(self, record: Record, origin: Origin, reason: Reason, detail: str) -> None:
        now = self._path._now_ms()
        key, value, headers = dead_letter(record, origin, reason, detail, now, self._path._max_bytes)
        partition = (self._state.partition + origin.offset) % self._path._dlq_partitions
        self.outputs.append(Output(self._path._dlq_topic, partition, key, value, tuple(headers)))
        count = records_in(record)
        self._state.outcomes.dead_lettered += count
        metrics.DEAD_LETTERS.labels(reason.value).inc(count)
        self._count(origin, "dead_lettered", count)

    def later(self, index: int, reason: Reason) -> None:
        """Try again after a delay; after the last try, a dead letter."""
        record, origin = self._records[index], self._origin(index)
        delays = self._path._delays_ms
        if origin.attempt >= len(delays):
            self.dead_letter(index, reason, f"still so after {origin.attempt} tries")
            return
        now = self._path._now_ms()
        key, value, headers = retry(record, origin, now + delays[origin.attempt], now, self._path._max_bytes)
        topic = self._path._retry_topics[origin.attempt + 1]
        self.outputs.append(Output(topic, self._state.partition, key, value, tuple(headers)))
        self._state.outcomes.retrying += 1
        self._count(origin, "retrying", 1)

    def settle(
        self,
        batch: DecodedBatch,
        at: np.ndarray[tuple[int], np.dtype[np.int64]],
        outcomes: np.ndarray[tuple[int], np.dtype[np.uint8]],
    ) -> None:
        """Account for the events that reached the state."""
        actions = batch.actions[at]
        for outcome, name in ((TAKEN, "applied"), (REPEATED, "duplicate")):
            here = np.bincount(actions[outcomes == outcome], minlength=len(self._path._names))
            for action, count in enumerate(here.tolist()):
                if count:
                    metrics.EVENTS.labels(self._path._names[action], name).inc(count)
            if outcome == TAKEN:
                self._state.outcomes.applied += int(here.sum())
            else:
                self._state.outcomes.duplicates += int(here.sum())
        for i in np.flatnonzero(outcomes == GONE).tolist():
            self.later(int(batch.source[at[i]]), Reason.UNDO_TARGET_GONE)

    def arrivals(
        self, source: np.ndarray[tuple[int], np.dtype[np.int64]]
    ) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.int64]]]:
        """Partitions and offsets of the records' first arrivals."""
        if self._copied:
            origins = [self._origin(i) for i in source.tolist()]
            return (
                np.array([origin.partition for origin in origins], np.int64),
                np.array([origin.offset for origin in origins], np.int64),
            )
        offsets = np.array([record.offset for record in self._records], np.int64)
        return np.full(len(source), self._state.partition, np.int64), offsets[source]

    def _origin(self, index: int) -> Origin:
        return origin_of(self._records[index], self._topic, self._state.partition)

    def _count(self, origin: Origin, outcome: str, count: int) -> None:
        action = self._path._topic_action.get(origin.topic, "unknown")
        metrics.EVENTS.labels(action, outcome).inc(count)


@contextmanager
def _timed(step: str) -> Iterator[None]:
    with metrics.STATE_SECONDS.labels(step).time():
        yield
