"""What one batch of records causes: the pure middle of the state path, between Kafka and Kafka.

:func:`prepare` decodes, looks up, applies to the slab and returns every record to be produced; it
does no Kafka I/O and may run in a thread. Steps are timed in ``stream_app_state_seconds``.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import numpy as np
from aiokafka import ConsumerRecord

from stream_app.events.dead_letters import Origin, Record, dead_letter, origin_of, retry
from stream_app.events.decode import DecodedBatch, EventDecoder
from stream_app.events.reasons import Reason
from stream_app.hashing import action_code
from stream_app.interests import update
from stream_app.interests.contents import IndexedContents
from stream_app.interests.receipts import Fences
from stream_app.interests.record import APPLIED
from stream_app.interests.slab import Slab
from stream_app.interests.statistics import PartitionStatistics
from stream_app.interests.statistics_record import OUTCOMES_KEY, Outcomes
from stream_app.interests.store import PartitionStore
from stream_app.interests.update import GONE, REPEATED, TAKEN, Columns
from stream_app.kafka.transactions import Output
from stream_app.observability import metrics
from stream_app.settings import Settings
from stream_app.topics import DAY_MS


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

    def __init__(
        self, settings: Settings, contents: IndexedContents, now_ms: Callable[[], int] | None = None
    ) -> None:
        events, interests = settings.events, settings.interests
        self._decoder = EventDecoder(settings)
        self._contents = contents
        self._now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)
        self._names = [action.name for action in events.actions]
        self._codes = np.array([action_code(name) for name in self._names], np.uint16)
        self._weights = np.array([action.weight for action in events.actions], np.float32)
        self._topic_action = {settings.topic_name(a.topic): a.name for a in events.actions}
        self._delays_ms = [int(1000 * s) for s in events.retry_delays_s]
        self._half_life_ms = interests.half_life_days * DAY_MS
        self._retry_topic = settings.topic_name("events-retry")
        self._dlq_topic = settings.topic_name("events-dlq")
        self._dlq_partitions = settings.kafka.shared_partitions
        self._table_topic = settings.topic_name("interests")
        self._stats_topic = settings.topic_name("content-stats")

    def prepare(self, state: PartitionState, topic: str, records: Sequence[ConsumerRecord]) -> list[Output]:
        """Apply the records to ``state`` and return all that has to be produced with their offset."""
        state.batches += 1
        before = msgspec.structs.replace(state.outcomes)
        fates = _Fates(self, state, topic, records)
        with self._contents.still() as index:
            with _timed("decode"):
                batch = self._decoder.decode(records, topic, state.partition, state.stream_time)
                for bad in batch.rejected:
                    fates.dead_letter(bad.index, bad.reason, bad.detail)
                refused = state.fences.refused(batch.users, batch.times)
                for at in np.flatnonzero(refused).tolist():
                    fates.erased(int(batch.source[at]))
            with _timed("load"):
                rows_of_contents = self._contents.rows(batch.contents)
                known = np.flatnonzero((rows_of_contents >= 0) & ~refused).astype(np.int64, copy=False)
                for at in np.flatnonzero((rows_of_contents < 0) & ~refused).tolist():
                    fates.later(int(batch.source[at]), Reason.UNKNOWN_CONTENT)
                users = [batch.users[at] for at in known.tolist()]
                rows = self._rows(state, users)
                waiting = self._foreign(state.slab, rows)
                for at in known[waiting].tolist():
                    fates.later(int(batch.source[at]), Reason.UNKNOWN_CONTENT)
                known, rows = known[~waiting], rows[~waiting]
            with _timed("apply"):
                columns = self._columns(state, batch, known, rows, rows_of_contents[known], fates)
                change = update.apply(state.slab, columns, self._contents.vectors, self._half_life_ms)
                fates.settle(batch, known, change.outcomes)
            with _timed("statistics"):
                statistics = state.statistics.add(change.contributions, index.names)
        with _timed("encode"):
            outputs = self._outputs(state, change.changed, statistics)
        self._drop_empty(state, rows)
        outputs += fates.outputs
        if state.outcomes != before:
            value = msgspec.json.encode(state.outcomes)
            outputs.append(Output(self._stats_topic, state.partition, OUTCOMES_KEY, value))
        return outputs

    # -- steps

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
        keys = ring["content"][ring["state"] == APPLIED].tolist()
        return all(self._contents.index.row_of_key(key) is not None for key in keys)

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
        return Columns(
            rows=rows,
            contents=contents,
            keys=self._contents.index.keys[contents],
            events=batch.events[at],
            times=batch.times[at],
            received=batch.received[at],
            partitions=np.full(len(at), state.partition, np.int64),
            offsets=fates.offsets(batch.source[at]),
            weights=self._weights[actions],
            actions=self._codes[actions],
            undo=batch.undo[at],
            named=batch.named[at],
        )

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
        self, path: BatchPreparation, state: PartitionState, topic: str, records: Sequence[ConsumerRecord]
    ) -> None:
        self._path, self._state, self._topic, self._records = path, state, topic, records
        self._retried = topic == path._retry_topic
        self.outputs: list[Output] = []
        if self._retried:  # what others put there (attempt 0) was never counted as waiting
            state.outcomes.retrying -= sum(self._origin(i).attempt > 0 for i in range(len(records)))

    def dead_letter(self, index: int, reason: Reason, detail: str) -> None:
        record, origin = self._records[index], self._origin(index)
        # what is malformed has no time of its own; what is too old is older than any fence
        time_ms = 0 if reason is Reason.TOO_OLD else origin.timestamp
        if self._state.fences.covers(record.key, time_ms):
            self.erased(index)
        else:
            self._dead_letter(record, origin, reason, detail)

    def erased(self, index: int) -> None:
        """A dead letter without anything of the record but where it was."""
        record = self._records[index]
        empty = dataclasses.replace(record, key=None, value=None, headers=())
        self._dead_letter(empty, self._origin(index), Reason.ERASED, "of the time before the user's erasure")

    def _dead_letter(self, record: Record, origin: Origin, reason: Reason, detail: str) -> None:
        now = self._path._now_ms()
        key, value, headers = dead_letter(record, origin, reason, detail, now)
        partition = (self._state.partition + origin.offset) % self._path._dlq_partitions
        self.outputs.append(Output(self._path._dlq_topic, partition, key, value, tuple(headers)))
        self._state.outcomes.dead_lettered += 1
        metrics.DEAD_LETTERS.labels(reason.value).inc()
        self._count(origin, "dead_lettered", 1)

    def later(self, index: int, reason: Reason) -> None:
        """Try again after a delay; after the last try, a dead letter."""
        record, origin = self._records[index], self._origin(index)
        delays = self._path._delays_ms
        if origin.attempt >= len(delays):
            self.dead_letter(index, reason, f"still so after {origin.attempt} tries")
            return
        now = self._path._now_ms()
        key, value, headers = retry(record, origin, now + delays[origin.attempt], now)
        self.outputs.append(
            Output(self._path._retry_topic, self._state.partition, key, value, tuple(headers))
        )
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

    def offsets(
        self, source: np.ndarray[tuple[int], np.dtype[np.int64]]
    ) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Offsets of the records' first arrivals."""
        if self._retried:
            return np.array([self._origin(i).offset for i in source.tolist()], np.int64)
        records = self._records
        return np.fromiter((records[i].offset for i in source.tolist()), np.int64, len(source))

    def _origin(self, index: int) -> Origin:
        return origin_of(self._records[index], self._topic, self._state.partition)

    def _count(self, origin: Origin, outcome: str, count: int) -> None:
        action = self._path._topic_action.get(origin.topic, "unknown")
        metrics.EVENTS.labels(action, outcome).inc(count)


@contextmanager
def _timed(step: str) -> Iterator[None]:
    with metrics.STATE_SECONDS.labels(step).time():
        yield
