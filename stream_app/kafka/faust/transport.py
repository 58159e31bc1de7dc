"""The record-batch transport: one Faust message per fetched partition batch.

Faust's cost is per message (two tasks, an event, sensors, an ack). So for the topics named in
``app.batch_topics`` a whole fetched batch is one message: its value is a :class:`RecordBatch`, its
offset the last record's. Acks, gaps, commits, rebalances, pausing and back-pressure remain Faust's
own code; other topics are untouched. ``tests/kafka/test_faust_contract.py`` pins each Faust and
aiokafka internal that is relied on here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiokafka
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    InconsistentGroupProtocolError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    NotCoordinatorForGroupError,
    for_code,
)
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.group import HeartbeatRequest
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from mode import Service

from stream_app.errors import FencedError
from stream_app.kafka.clock import CLOCK
from stream_app.kafka.errors import OUT_OF_DATE
from stream_app.kafka.fetched import FetchedRecords
from stream_app.kafka.marks import NOBODY, Mark, Membership, decode_mark
from stream_app.kafka.positions import positions
from stream_app.kafka.records import Partition, RecordBatch
from stream_app.kafka.stable_end import stable_end
from stream_app.kafka.topic_ids import PAUSE_S, Bounds, CommittedOffset, same_topic, topic_ids
from stream_app.observability import metrics

log = logging.getLogger(__name__)

FAUST_LOG = logging.getLogger("faust")
"""Faust's services log under their class's module: ours would fill our own log with their lines."""

IDLE_SLEEP_S = 0.002
"""Pause when every partition is back-pressured. Faust sleeps 1 s there, which showed as gaps in
throughput of up to a second whenever all streams were full."""


RETRY_S = 0.05
"""Until a group's coordinator that moves or loads is asked again."""

IN_CIRCLES = 5
"""So many failures at one offset, for long enough, are no passing trouble."""


class _ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]  # untyped base
    logger = FAUST_LOG

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        # Faust offers no setting for these. Retries and the changelog are transactional topics;
        # and a partition that was just drained waits for the fetch in flight, so Faust's 1.5 s
        # would be added to the latency of the next event.
        consumer._isolation_level = "read_committed"
        consumer._fetch_max_wait_ms = self.app.fetch_max_wait_ms
        consumer._check_crcs = self.app.batch_max_bytes
        return consumer

    def _stopped_set(self) -> None:
        # A worker that crashes ends this thread by itself, at times before it is told to stop: then its
        # loop is closed, and nobody waits there.
        try:
            super()._stopped_set()
        except RuntimeError:
            self._stopped.set()

    def request_rejoin(self) -> None:
        """Ask the group for a new assignment (thread-safe)."""
        coordinator = self._ensure_consumer()._coordinator
        self.thread_loop.call_soon_threadsafe(coordinator.request_rejoin)

    async def beginning(self, tp: TP) -> int:
        """The first offset that there is."""
        return (await self._beginnings([tp]))[tp]

    async def seek_all(self, offsets: Mapping[TP, int]) -> None:
        """Seek to these offsets."""
        for tp, offset in offsets.items():
            self._ensure_consumer().seek(driver.TopicPartition(*tp), offset)

    async def seek_to_start(self, tps: list[TP]) -> dict[TP, int]:
        """Seek to the first offset that there is of each; these offsets."""
        beginnings = await self._beginnings(tps)
        await self.seek_all(beginnings)
        return beginnings

    async def _beginnings(self, tps: list[TP]) -> dict[TP, int]:
        if not tps:
            return {}
        found = await self._ensure_consumer().beginning_offsets([driver.TopicPartition(*tp) for tp in tps])
        return {TP(*tp): int(offset) for tp, offset in found.items()}

    async def topic_ids(self, tps: list[Partition]) -> dict[Partition, str | None]:
        """The ids of these partitions' topics now."""
        return await topic_ids(self._ensure_consumer()._client, tps)

    async def stable_end(self, tp: Partition) -> int:
        """Where the decided part of a partition ends."""
        return await stable_end(self._ensure_consumer()._client, tp)

    async def committed(self, tps: list[Partition]) -> dict[Partition, CommittedOffset]:
        """Where the group reads on, as the broker has it now, of the topics that there are now.

        Where nothing is committed it is the first offset that there is: whoever waited for *any* offset
        would take what comes after a batch that was dropped.
        """
        coordinator = self._ensure_consumer()._coordinator
        ids = await self.topic_ids(tps)
        # all in one request: aiokafka's own call takes one each
        found = await coordinator.fetch_committed_offsets(
            [driver.TopicPartition(tp.topic, tp.partition) for tp in tps]
        )
        there = await self.bounds([tp for tp in tps if ids[tp] is not None])
        marks: dict[Partition, CommittedOffset] = {}
        for tp in tps:
            topic, mark = ids[tp], found.get(driver.TopicPartition(*tp))
            if topic is None:
                marks[tp] = CommittedOffset(None, None)
                continue
            # an offset without an id is one that was not committed here; where topics have none, one that
            # is shorter is another one
            beside = decode_mark(mark.metadata if mark is not None else "")
            known = mark is not None and mark.offset >= 0 and same_topic(beside.topic_id, topic)
            known = known and (topic or mark.offset <= there[tp].end)
            marks[tp] = (
                CommittedOffset(int(mark.offset), topic, beside)
                if known
                else CommittedOffset(there[tp].first, topic)
            )
        return marks

    async def claim(self, marks: Mapping[Partition, tuple[int, Mark]], member: Membership | None) -> None:
        """Commit these offsets and marks as this member of this generation."""
        coordinator = self._ensure_consumer()._coordinator
        by_topic: dict[str, list[tuple[int, int, str]]] = {}
        for tp, (offset, mark) in marks.items():
            by_topic.setdefault(tp.topic, []).append((tp.partition, offset, mark.encode()))
        request = OffsetCommitRequest(
            coordinator.group_id,
            *(member or NOBODY),
            OffsetCommitRequest.DEFAULT_RETENTION_TIME,
            list(by_topic.items()),
        )
        await self._as_member(request, lambda answer: {c for _, tps in answer.topics for _, c in tps})

    async def confirm(self, member: Membership) -> None:
        """Raise FencedError when the group has moved on from this member's assignment."""
        group = self._ensure_consumer()._coordinator.group_id
        await self._as_member(HeartbeatRequest(group, *member), lambda answer: {answer.error_code})

    async def _as_member(self, request: Any, codes: Callable[[Any], set[int]]) -> None:
        """Send what the group's coordinator takes from members alone, until it is taken or refused; who
        asked does not wait any longer than that."""
        coordinator = self._ensure_consumer()._coordinator
        deadline = time.monotonic() + self.app.patience_s
        while time.monotonic() < deadline:
            await coordinator.ensure_coordinator_known()
            try:
                for code in codes(await coordinator._send_req(request)) - {0}:
                    raise for_code(code)(coordinator.group_id)
            except (NotCoordinatorForGroupError, GroupCoordinatorNotAvailableError):
                coordinator.coordinator_dead()
            except OUT_OF_DATE as error:
                raise FencedError(f"the group has moved on: {error!r}") from error
            except KafkaError as error:
                if not error.retriable:
                    raise
            else:
                return
            await asyncio.sleep(RETRY_S)
        raise KafkaTimeoutError(f"the coordinator of {coordinator.group_id} does not take it")

    def member_id(self) -> str:
        """Ours in the group; empty while we are in none."""
        return str(self._ensure_consumer()._coordinator.member_id)

    async def bounds(self, tps: list[Partition]) -> dict[Partition, Bounds]:
        """Where these partitions begin, and where their decided part ends."""
        if not tps:
            return {}
        consumer, asked = self._ensure_consumer(), [driver.TopicPartition(*tp) for tp in tps]
        firsts, ends = await asyncio.gather(consumer.beginning_offsets(asked), consumer.end_offsets(asked))
        return {Partition(*tp): Bounds(int(firsts[tp]), int(ends[tp])) for tp in asked}

    def ended_parts(self) -> Iterator[str]:
        """Names of what has ended of this thread and of aiokafka's tasks in it."""
        if self._thread is None or not self._thread.is_alive():
            yield "Faust's consumer thread"
            return
        if not all(runs(worker, "_method_queue_do_work") for worker in self.method_queue._workers):
            yield "the method queue of Faust's consumer thread"
        consumer = self._consumer
        if consumer is None or consumer._coordinator is None:
            return
        if consumer._fetcher._fetch_task.done():
            yield "aiokafka's fetcher"
        if consumer._client._sync_task.done():
            yield "aiokafka's update of metadata"
        if consumer._coordinator._coordination_task.done():
            yield "aiokafka's group coordination"
        # aiokafka hands an error to the next call of its getmany and waits for it; Faust never calls that
        if (error := consumer._coordinator._pending_exception) is not None:
            refused = isinstance(error, InconsistentGroupProtocolError)
            why = "the group's members have other settings that shape the state" if refused else repr(error)
            yield f"aiokafka's group coordination ({why})"


@dataclass(slots=True)
class _Opened:
    """A partition's committed offsets as it was opened last, and since when they are the same."""

    offsets: dict[Partition, CommittedOffset]
    first: float
    rejoins: int
    again: int = 0


@dataclass(slots=True)
class _Held:
    """Records of one partition that wait until they are due, and when each is, ms of the broker's time."""

    records: FetchedRecords
    due: list[int]


class BatchConsumer(driver.Consumer):  # type: ignore[misc]  # untyped base
    """Faust's aiokafka consumer, delivering record batches for ``app.batch_topics``."""

    logger = FAUST_LOG

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._next_start: dict[TP, int] = {}
        self._held: dict[TP, _Held] = {}
        self._rejoins = 0
        self._opened: dict[tuple[Partition, ...], _Opened] = {}
        self._asking = asyncio.Lock()
        self._ids: dict[Partition, str | None] = {}
        self._asked = 0.0
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # -- fetching

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:  # noqa: ASYNC109 - Faust's name
        records, active = await self._wait_next_records(min(timeout, self._until_due()))
        if records is None or self.should_stop:
            return
        if not self.flow_active:
            try:
                await self.perform_seek()
            except KafkaError as error:  # the assignment moves on: its recovery seeks before streams flow
                log.info("seek given up: %r", error)
            return
        generation = self.app.consumer_generation_id
        wanted = {TP(*tp): fetched for tp, fetched in records.items() if fetched and self._wanted(tp, active)}
        batches = {tp: fetched for tp, fetched in wanted.items() if tp.topic in self.app.batch_topics}
        plain = {tp: fetched for tp, fetched in wanted.items() if tp not in batches}
        for fetched in batches.values():
            CLOCK.seen(fetched[-1].timestamp, fetched[-1].timestamp_type)
        for tp, fetched in self._due(batches).items():
            if not self.flow_active or generation != self.app.consumer_generation_id:
                return
            yield tp, await self._batch_message(tp, fetched)
        for tp, record in self.scheduler.iterate(plain):
            if not self.flow_active or generation != self.app.consumer_generation_id:
                return
            yield tp, self._to_message(tp, record)

    def _wanted(self, tp: TP, active: set[TP] | None) -> bool:
        return active is None or tp in active or tp in self._buffered_partitions

    def _due(self, fetched: Mapping[TP, FetchedRecords]) -> dict[TP, FetchedRecords]:
        """What may be handed on now. Of delayed topics that is what is due; the rest is held here, where it
        holds nobody up: in a stream it would fill its queue, and Faust's fetch loop waits for a full one."""
        delays = self.app.delays
        due = {tp: records for tp, records in fetched.items() if tp.topic not in delays}
        now_ms = CLOCK.now_ms()
        for tp in self._held.keys() | {tp for tp in fetched if tp.topic in delays}:
            held, more = self._held.pop(tp, None), fetched.get(tp)
            if held is None or (more is not None and more.start != held.records.end):
                held = None  # what was held is not what comes before it: it is read again
            if more is not None:
                before = _Held(FetchedRecords(more.start, []), []) if held is None else held
                held = _Held(
                    FetchedRecords(before.records.start, [*before.records, *more]),
                    before.due + [delays[tp.topic](record, now_ms) for record in more],
                )
            assert held is not None  # noqa: S101  # for the type checker: tp is in one of the two
            count = next((n for n, at in enumerate(held.due) if at > now_ms), len(held.due))
            start, records = held.records.start, held.records
            if count:
                due[tp] = FetchedRecords(start, records[:count])
                start = due[tp].end
            if count < len(records):
                self._held[tp] = _Held(FetchedRecords(start, records[count:]), held.due[count:])
                self.on_buffer_full(tp)  # no more of it is fetched
            else:
                self.on_buffer_drop(tp)
        return due

    def _until_due(self) -> float:
        """Seconds until the first record that is held becomes due; infinite when none is."""
        first = min((held.due[0] for held in self._held.values()), default=math.inf)
        return max(IDLE_SLEEP_S, (first - CLOCK.now_ms()) / 1000)

    async def _batch_message(self, tp: TP, fetched: FetchedRecords) -> ConsumerMessage:
        start, last, before = fetched.start, fetched[-1], self._next_start.get(tp)
        if before is not None and before < start:
            beginning: int = await self._thread.call_thread(self._thread.beginning, tp)
            if start <= beginning:
                log.warning("%s[%d]: %d offsets have left the topic unread", *tp, start - before)
                metrics.RECORDS_EXPIRED.labels(tp.topic).inc(start - before)
                start = before  # nothing is left between them
        self._next_start[tp] = fetched.end
        message = self._to_message(tp, last)
        message.value = RecordBatch(tp.topic, tp.partition, start, fetched)
        message.key = None
        # The offsets before the last one are Faust's gap: committed once the last one is acked.
        # Faust's own gap would include the current offset, and is skipped for a first message.
        # A gap counts as done once anything after it is acked: batches must be acked in order, as
        # agents with a concurrency of 1 do.
        if start < last.offset:
            await self._add_gap(tp, start, int(last.offset) - 1)
        self._read_offset[tp] = int(last.offset) - 1 if last.offset else None
        self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
        return message

    async def _wait_next_records(self, timeout: float) -> tuple[Any, set[TP] | None]:  # noqa: ASYNC109
        if self.flow_active and not self.app.client_only and not self._get_active_partitions():
            await self.sleep(IDLE_SLEEP_S)
            return {}, set()
        result: tuple[Any, set[TP] | None] = await super()._wait_next_records(timeout)
        return result

    # -- positions

    async def perform_seek(self) -> None:
        """Seek to where the owner of the partitions reads on; else to the committed offsets, or where there
        are none to the beginning. Batches start there.

        The offset of a transaction shows a moment after its commit, so that what is committed as one asks
        may be behind what its owner has done. And Faust leaves partitions without an offset where they are:
        what had been fetched, and dropped because the streams did not flow yet, would be skipped.
        """
        self._held.clear()
        await super().perform_seek()
        assignment = self.assignment()
        owned = {} if self.app.owner is None else self.app.owner.positions()
        known = {TP(*tp): at for tp, at in owned.items() if tp in assignment}
        ahead = {tp: at for tp, at in known.items() if at is not None}
        await self._thread.call_thread(self._thread.seek_all, ahead)
        self._read_offset.update(known)
        fresh = [
            tp for tp in assignment if tp.topic in self.app.batch_topics and not self._read_offset.get(tp)
        ]
        if fresh:
            self._read_offset.update(await self._thread.call_thread(self._thread.seek_to_start, fresh))
        self._next_start = {tp: offset for tp, offset in self._read_offset.items() if offset is not None}

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        for tp in revoked:
            self._next_start.pop(tp, None)
            self._held.pop(tp, None)
        await super().on_partitions_revoked(revoked)

    # -- committing

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        """Commit what is Faust's to commit: transactional topics commit in their transactions."""
        ours = {tp: o for tp, o in offsets.items() if tp.topic in self.app.transactional_topics}
        self._committed_offset.update(ours)
        theirs = {tp: o for tp, o in offsets.items() if tp not in ours}
        if not theirs:
            return bool(ours)
        committed: bool = await super()._commit_offsets(theirs, start_new_transaction)
        return committed

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's own watch stays out: it only logs, takes a partition whose offsets go with transactions
        for one that is never committed, and says so every few seconds from the fifth minute on."""

    # -- for the roles

    def request_rejoin(self) -> None:
        """Ask the group for a new assignment: how a partition that failed is opened anew."""
        self._rejoins += 1
        self._thread.request_rejoin()

    async def topic_id(self, tp: Partition) -> str | None:
        """The id of a partition's topic, as its leader has known it within PAUSE_S / 2; None while there is
        none."""
        async with self._asking:  # whoever waits here finds the answer
            if tp not in self._ids or time.monotonic() - self._asked >= PAUSE_S / 2:
                asked = time.monotonic()
                all_ = {tp} | {other for other in self.assignment() if other.topic in self.app.batch_topics}
                self._ids = await self._thread.call_thread(self._thread.topic_ids, list(all_))
                self._asked = asked
            return self._ids[tp]

    async def bounds(self, tps: Iterable[Partition]) -> dict[Partition, Bounds]:
        """Where these partitions begin, and where their decided part ends."""
        found: dict[Partition, Bounds] = await self._thread.call_thread(self._thread.bounds, list(tps))
        return found

    async def stable_end(self, tp: Partition) -> int:
        """Where the decided part of a partition ends: every transaction before it has its marker."""
        end: int = await self._thread.call_thread(self._thread.stable_end, tp)
        return end

    async def committed(self, tps: Iterable[Partition]) -> dict[Partition, CommittedOffset]:
        """Committed offsets as the broker has them now, of the topics that there are now, for whoever opens
        these partitions."""
        offsets = await self.offsets(tps)
        self._note_opened(tuple(sorted(offsets)), offsets)
        return offsets

    async def offsets(self, tps: Iterable[Partition]) -> dict[Partition, CommittedOffset]:
        """The same for whoever only wants to know."""
        found: dict[Partition, CommittedOffset] = await self._ask(self._thread.committed, list(tps))
        return found

    async def claim(self, marks: Mapping[Partition, tuple[int, Mark]], member: Membership | None) -> None:
        """Commit offsets and marks. Raises FencedError when the group has moved on since, a KafkaError."""
        await self._ask(self._thread.claim, marks, member)

    async def _ask(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call into the consumer's thread. Where the thread ends meanwhile, what it had begun is cancelled
        there: that is not us. Where it has ended its loop is closed."""
        try:
            return await self._thread.call_thread(call, *args)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
        except RuntimeError:
            if not self.thread_loop.is_closed():
                raise
        raise KafkaConnectionError("the consumer has ended")

    async def confirm(self, member: Membership | None) -> None:
        """Ask the group whether this is the present assignment. Raises FencedError when it has moved on, a
        KafkaError."""
        if member is not None:
            await self._ask(self._thread.confirm, member)

    def _note_opened(self, tps: tuple[Partition, ...], offsets: dict[Partition, CommittedOffset]) -> None:
        # whoever has claimed them: that may be another producer of ours each time
        offsets = {tp: found._replace(mark=None) for tp, found in offsets.items()}
        before = self._opened.get(tps)
        if before is None or before.offsets != offsets:
            self._opened[tps] = _Opened(offsets, time.monotonic(), self._rejoins)
        elif before.rejoins < self._rejoins:
            before.again, before.rejoins = before.again + 1, self._rejoins

    # -- for supervision: nothing here waits for the thread

    def positions(self) -> dict[Partition, int]:
        """Where each assigned partition of the app's own topics is read on."""
        inner = self._thread._consumer
        return {} if inner is None else positions(inner, self.app.batch_topics)

    def in_hand(self) -> set[TP]:
        """Partitions of which something has been handed to a stream, and not yet acked or committed."""
        unacked = {message.tp for message in list(self._unacked_messages) if not message.acked}
        return unacked | {tp for tp, acked in list(self._acked.items()) if acked}

    def membership(self, generation: int) -> Membership:
        """Ours in the group; another generation than the group's is refused there."""
        return Membership(generation, self._thread.member_id())

    def holds(self, tp: TP) -> bool:
        """Whether records of this partition are held until they are due."""
        return tp in self._held

    def in_circles(self, seconds: float) -> Iterator[str]:
        """Partitions that fail and are opened anew, always at the same offset, for so long."""
        now = time.monotonic()
        for tps, opened in self._opened.items():
            if opened.again >= IN_CIRCLES and now - opened.first > seconds:
                yield (
                    f"partition {tps[0].partition} was opened {opened.again} times more at the same offset"
                )

    @property
    def thread_loop(self) -> asyncio.AbstractEventLoop:
        """The loop of the thread in which aiokafka's consumer lives."""
        loop: asyncio.AbstractEventLoop = self._thread.thread_loop
        return loop

    def call_in_thread(self, call: Callable[[], None]) -> None:
        """Run ``call`` in the thread's loop as soon as it turns."""
        with contextlib.suppress(RuntimeError):  # closed: an ended part
            self.thread_loop.call_soon_threadsafe(call)

    def ended_parts(self) -> Iterator[str]:
        """Names of what has ended although the consumer has not been stopped."""
        yield from self._thread.ended_parts()
        if not runs(self, "_commit_handler"):
            yield "Faust's commit handler"
        if not all(runs(worker, "_method_queue_do_work") for worker in self._method_queue._workers):
            yield "the method queue of Faust's consumer"


def runs(service: Service, task: str) -> bool:
    """Whether a service's task of this name has not ended."""
    return any(not future.done() and future.__wrapped__.__name__ == task for future in list(service._futures))


class BatchTransport(driver.Transport):  # type: ignore[misc]  # untyped base
    """Faust's aiokafka transport with the batch consumer."""

    Consumer = BatchConsumer
