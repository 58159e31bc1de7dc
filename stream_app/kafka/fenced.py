"""Partitions of an input of which their owner keeps no state: what a batch causes, and the batch's
offset, go out in one transaction, with those of the worker's other partitions (see ``shared.py``).

On an assignment a partition is *claimed* (nothing that a former owner still sends for it counts), and only
then is the committed offset asked for: batches are accepted exactly from there on. A transaction that fails
*loses* the partition: its batches are dropped, since their offsets were not committed, and the group is asked
for a new assignment, which opens it anew. (Not at once: only the group coordinator knows whether the
partition is still ours, and fencing it without asking would throw out a rightful new owner.)

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
from stream_app.kafka.shared import Share, SharedTransactions, begun
from stream_app.kafka.topic_ids import InputOffsets, Inputs
from stream_app.kafka.transactions import Output, split
from stream_app.settings import Settings

log = logging.getLogger(__name__)

OPEN_RETRY_S = 1.0


class FencedPartition:
    """One owned partition of the input."""

    def __init__(
        self, share: Share, source: Partition, *, writes: Sequence[str], on_lost: Callable[[], None]
    ) -> None:
        """``share`` of the worker's transactions has ``source`` for its input; ``writes`` are topics that
        outputs may go to; ``on_lost`` asks for a new assignment."""
        self.lost = False
        """Failed, fenced or closed: nothing is accepted or committed any more."""
        self.share = share
        self._source = source
        self._writes = writes
        self._on_lost = on_lost
        self._partitions: dict[str, int] = {}
        self._inputs: Inputs
        self._expected: int | None = None
        self.written: dict[Partition, int] = {}
        """Where what was committed here last ends, by output partition"""
        self._busy = asyncio.Lock()

    async def open(self, offsets: InputOffsets) -> None:
        """Claim, then learn where to read on. Raises FencedError, TransactionError or a KafkaError."""
        await self.share.claim()
        for topic in self._writes:
            self._partitions[topic] = await self.share.transactions.partitions(topic)
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
                parts = list(split(outputs, self.share.bound.bytes))
                for part in parts[:-1]:
                    await self.share.commit(part, {}, self._inputs.ids)
                offsets = {} if end is None else {self._source: end}
                self.written = await self.share.commit(parts[-1], offsets, self._inputs.ids)
            except (FencedError, TransactionError, KafkaError) as error:
                self._lose(error)
                return False
            except BaseException:
                self.lost = True  # given up half-way: a transaction is open now
                raise
            return True

    async def close(self) -> None:
        """Finish the transaction on its way."""
        self.share.leave()
        async with self._busy:
            self.lost = True

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
        """``name`` begins the transactional ids; ``on_closed`` is told of each partition that is no longer
        open."""
        self._app, self._topic, self._writes = app, topic, writes
        self._earlier = f"{settings.kafka.app_id}-{name}"
        self._on_closed = on_closed
        self._transactions = SharedTransactions(settings, app.conf.id, name, writes, lambda: consumer_of(app))
        self._open: dict[int, FencedPartition] = {}
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
        member, since = self._app.membership(), self._transactions.releases
        async with self._assigning:
            await self._close({p for p in self._open if p not in actives or self[p] is None})
            kept = {partition.share: number for number, partition in self._open.items()}
            strange = await begun(self._transactions, member, kept, since)
            await self._close({kept[share] for share in strange})
            await asyncio.gather(*(self._start(p) for p in sorted(actives - self._open.keys())))
            log.info("serving %d partitions", len(actives))

    def positions(self) -> dict[Partition, int | None]:
        """Where the partitions that are ours and sound are read on; None: no such topic."""
        return {Partition(self._topic, number): self._open[number].position for number in self.sound}

    async def settle(self) -> None:
        """Before an assignment is given up: finish what is on its way, and say so."""
        await asyncio.gather(*(partition.settle() for partition in self._open.values()))
        await self._transactions.release()

    async def close(self) -> None:
        """Disconnect; nothing is accepted any more."""
        await self._transactions.release()
        await self._close(set(self._open))
        await self._transactions.close()

    def accepts(self, batch: RecordBatch) -> bool:
        """Whether this batch is ours and the next one of its partition; any other is to be dropped."""
        partition = self._open.get(batch.partition)
        return partition is not None and partition.accepts(batch)

    async def _start(self, number: int) -> None:
        while True:
            source = Partition(self._topic, number)
            share = Share(self._transactions, (source,), (f"{self._earlier}-{number}",))
            partition = FencedPartition(share, source, writes=self._writes, on_lost=self._rejoin)
            try:
                await partition.open(consumer_of(self._app))
            except (FencedError, TransactionError, KafkaError) as error:
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
