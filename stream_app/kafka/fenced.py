"""Partitions of an input of which their owner keeps no state: what a batch causes, and the batch's
offset, go out in one transaction of the partition's own.

On an assignment a partition is *fenced* (the broker refuses from then on what its former owner still
sends, and aborts what that one left open), and only then is the committed offset asked for: batches are
accepted exactly from there on. A transaction that fails *loses* the partition: its batches are dropped,
since their offsets were not committed, and the group is asked for a new assignment, which opens it anew.
(Not at once: only the group coordinator knows whether the partition is still ours, and fencing it
without asking would throw out a rightful new owner.)

State that is recovered from a changelog needs more than this: see ``interests/partition.py``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from aiokafka.errors import KafkaError

from stream_app.errors import FencedError, TransactionError
from stream_app.kafka.faust.app import RoleApp, consumer_of
from stream_app.kafka.partitions import partition_of
from stream_app.kafka.records import Partition, RecordBatch
from stream_app.kafka.topic_ids import InputOffsets, Inputs
from stream_app.kafka.transactions import Output, PartitionTransactions, TransactionBound, split
from stream_app.settings import Settings

log = logging.getLogger(__name__)

OPEN_RETRY_S = 1.0


class FencedPartition:
    """One owned partition of the input."""

    def __init__(
        self,
        settings: Settings,
        source: Partition,
        name: str,
        *,
        group: str,
        writes: Sequence[str | Partition],
        on_lost: Callable[[], None],
        bound: TransactionBound | None = None,
    ) -> None:
        """``name`` is the transactional id, ``writes`` the topics and partitions that outputs may go to;
        ``on_lost`` asks for a new assignment; ``bound`` outlives this partition."""
        self.lost = False
        """Failed, fenced or closed: nothing is accepted or committed any more."""
        self._source = source
        self._writes = writes
        self._on_lost = on_lost
        self._transactions = PartitionTransactions(settings, name, group)
        self._bound = bound or TransactionBound(settings)
        self._partitions: dict[str, int] = {}
        self._inputs: Inputs
        self._expected: int | None = None
        self.written: dict[Partition, int] = {}
        """Where what was committed here last ends, by output partition"""
        self._busy = asyncio.Lock()

    async def open(self, offsets: InputOffsets) -> None:
        """Fence, then learn where to read on. Raises TransactionError or a KafkaError."""
        await self._transactions.fence(self._writes)
        for topic in self._writes:
            if isinstance(topic, str):
                self._partitions[topic] = await self._transactions.partitions(topic)
        await self._ask(offsets)

    async def _ask(self, offsets: InputOffsets) -> None:
        """The group's offset is where to read on."""
        committed = await offsets.committed([self._source])
        self._inputs = Inputs(offsets, committed)
        self._expected = committed[self._source].offset

    @property
    def position(self) -> int | None:
        """The offset that the next batch has to start with; None: no such topic."""
        return self._expected

    async def begin_at(self, offset: int, outputs: Iterable[Output]) -> None:
        """Read on from ``offset``, whatever was committed before; before the first batch. ``outputs`` say so
        in the same transaction."""
        if await self.commit(outputs, offset):
            self._expected = offset

    def accepts(self, batch: RecordBatch) -> bool:
        """Whether this batch is the next one; any other was fetched before a failure or a rebalance,
        and loses the partition."""
        if self.lost:
            return False
        if self._expected is not None and batch.start != self._expected:
            self._lose(TransactionError(f"expected offset {self._expected}, got {batch.start}"))
            return False
        self._expected = batch.end
        return True

    def output(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        by: bytes | None = None,
    ) -> Output:
        """A record where every client's default partitioner would put the key ``by``, or its own key."""
        place = partition_of((key if by is None else by) or b"", self._partitions[topic])
        return Output(topic, place, key, value, headers)

    async def commit(self, outputs: Iterable[Output], end: int | None = None) -> bool:
        """Produce all outputs and commit ``end``, the input position after them, if given: all or nothing.
        What is more than one transaction may have goes out in several, the last one with the position.

        False when the partition is lost: nothing of it counts, and the input will be read again.
        """
        async with self._busy:
            if self.lost:
                return False
            try:
                if end is not None and not await self._inputs.same(self._source):
                    raise TransactionError(f"{self._source.topic} was deleted and created again")
                parts = list(split(outputs, self._bound.bytes))
                for part in parts[:-1]:
                    await self._transactions.commit(part, {}, self._inputs.ids, self._bound)
                offsets = {} if end is None else {self._source: end}
                self.written = await self._transactions.commit(
                    parts[-1], offsets, self._inputs.ids, self._bound
                )
            except (FencedError, TransactionError, KafkaError) as error:
                self._lose(error)
                return False
            except BaseException:
                self.lost = True  # given up half-way: a transaction is open now
                raise
            return True

    async def close(self) -> None:
        """Finish the transaction on its way and disconnect."""
        async with self._busy:
            self.lost = True
            await self._transactions.close()

    async def settle(self) -> None:
        """Return once no transaction is on its way."""
        async with self._busy:
            pass

    def _lose(self, error: Exception) -> None:
        if not self.lost:
            self.lost = True
            log.warning("%s[%d] is lost: %s", *self._source, error)
            self._on_lost()


class FencedPartitions:
    """The partitions of one input topic that this worker owns; the role's Stage builds on it."""

    def __init__(
        self,
        settings: Settings,
        app: RoleApp,
        topic: str,
        name: str,
        *,
        writes: Sequence[str],
        on_closed: Callable[[int], None] = lambda _partition: None,
    ) -> None:
        """``name`` begins the transactional ids: ``{app_id}-{name}-{partition}``; ``on_closed`` is told of
        each partition that is no longer open."""
        self._settings, self._app = settings, app
        self._topic, self._name, self._writes = topic, name, writes
        self._on_closed = on_closed
        self._open: dict[int, FencedPartition] = {}
        self._bounds: dict[int, TransactionBound] = {}
        self._assigning = asyncio.Lock()  # an assignment given up for a newer one still cleans up

    def __getitem__(self, number: int) -> FencedPartition | None:
        """The partition; None unless it is ours and sound."""
        partition = self._open.get(number)
        return None if partition is None or partition.lost else partition

    @property
    def sound(self) -> set[int]:
        """Numbers of the partitions that are ours and not lost."""
        return {number for number, partition in self._open.items() if not partition.lost}

    async def assign(self, actives: set[int]) -> None:
        """Serve these partitions and no others; those already open and sound stay open."""
        async with self._assigning:
            await self._close({p for p in self._open if p not in actives or self[p] is None})
            await asyncio.gather(*(self._start(p) for p in sorted(actives - self._open.keys())))
            log.info("serving %d partitions", len(actives))

    def positions(self) -> dict[Partition, int | None]:
        """Where the partitions that are ours and sound are read on; None: no such topic."""
        return {Partition(self._topic, number): self._open[number].position for number in self.sound}

    async def settle(self) -> None:
        """Return once no transaction is on its way."""
        await asyncio.gather(*(partition.settle() for partition in self._open.values()))

    async def close(self) -> None:
        """Disconnect; nothing is accepted any more."""
        await self._close(set(self._open))

    def accepts(self, batch: RecordBatch) -> bool:
        """Whether this batch is ours and the next one of its partition; any other is to be dropped."""
        partition = self._open.get(batch.partition)
        return partition is not None and partition.accepts(batch)

    async def _start(self, number: int) -> None:
        while True:
            partition = FencedPartition(
                self._settings,
                Partition(self._topic, number),
                f"{self._settings.kafka.app_id}-{self._name}-{number}",
                group=self._app.conf.id,
                writes=self._writes,
                on_lost=self._rejoin,
                bound=self._bounds.setdefault(number, TransactionBound(self._settings)),
            )
            try:
                await partition.open(consumer_of(self._app))
            except (TransactionError, KafkaError) as error:
                # the broker is away: try again for as long as the partition is ours
                log.warning("partition %d cannot be opened yet: %s", number, error)
                await partition.close()
                await asyncio.sleep(OPEN_RETRY_S)
            except BaseException:
                await partition.close()
                raise
            else:
                self._open[number] = partition
                return

    async def _close(self, numbers: set[int]) -> None:
        closing = asyncio.gather(*(self._open.pop(number).close() for number in numbers))
        for number in numbers:
            self._on_closed(number)
        await asyncio.shield(closing)

    def _rejoin(self) -> None:
        consumer_of(self._app).request_rejoin()
