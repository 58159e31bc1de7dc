"""A transactional producer: effects and offsets, all or nothing.

The broker lets one owner of a transactional id live: starting a producer raises the id's epoch
(``InitProducerId``), aborts what its predecessor left open, and refuses whatever that predecessor still
sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import aiokafka
from aiokafka.client import CoordinationType
from aiokafka.errors import GroupAuthorizationFailedError, IllegalOperation, KafkaError, ProducerFenced
from aiokafka.structs import OffsetAndMetadata

from stream_app.errors import FencedError, TransactionError
from stream_app.kafka.clock import CLOCK
from stream_app.kafka.connection import aiokafka_options
from stream_app.kafka.coordination import COMMITTED, COMPLETE, LOOK_S, Coordination, Last
from stream_app.kafka.errors import OUT_OF_DATE
from stream_app.kafka.implicit import ImplicitTransactions
from stream_app.kafka.marks import NOBODY, Mark, Membership
from stream_app.kafka.member_offsets import MemberOffsetsHandler
from stream_app.kafka.records import Partition
from stream_app.observability import metrics
from stream_app.settings import Settings

LEAST_BYTES = 1_000_000
"""A transaction may always have so many."""
RECORD_BYTES = 80
"""Of framing and lengths, at most, beside a record's key, value and headers."""

CLOSE_TIMEOUT_S = 5.0

SETTLING_MS = 15_001
"""Transaction timeout of whoever ends what another one has left, by which it is known."""
SETTLING_S = 2.0
"""It takes a tenth of that; then others take it for dead."""
TOGETHER_S = 0.1
"""Within it all who have looked at the same time have become its owners, one after the other: later, one
would abort what another has begun."""


@dataclass(frozen=True, slots=True)
class Output:
    """One record to produce within a transaction."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()

    @property
    def size(self) -> int:
        """Its bytes on the wire, uncompressed; a few more."""
        headers = sum(len(name) + len(value or b"") + 10 for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers + RECORD_BYTES


class TransactionBound:
    """How many bytes one transaction may have, by how long the last ones took.

    One that times out takes its partitions with it, which are opened anew and would do the same again. So
    the bound outlives them, and is raised only as long as twice as many bytes would be quick, too.
    """

    def __init__(self, settings: Settings) -> None:
        self._most = settings.kafka.transaction_max_bytes
        self._least = min(LEAST_BYTES, self._most)
        self._timeout_s = settings.kafka.transaction_timeout_s
        self.bytes = self._most
        """The bound now."""

    def took(self, size: int, seconds: float) -> None:
        """A transaction of ``size`` bytes was committed in so long."""
        if seconds > self._timeout_s / 2:
            self.failed()
        elif size > self.bytes / 2 and seconds < self._timeout_s / 8:
            self.bytes = min(2 * self.bytes, self._most)

    def failed(self) -> None:
        """A transaction came to nothing, for whatever cause."""
        self.bytes = max(self.bytes // 2, self._least)


def split(outputs: Iterable[Output], most: int) -> Iterator[list[Output]]:
    """The outputs in order, in parts of at most ``most`` bytes (or of one record); at least one part."""
    part: list[Output] = []
    size = 0
    for output in outputs:
        if part and size + output.size > most:
            yield part
            part, size = [], 0
        part.append(output)
        size += output.size
    yield part


class Transactions:
    """A transactional producer, and the consumer group whose offsets it commits."""

    def __init__(self, settings: Settings, transactional_id: str, group: str) -> None:
        self._settings, self._id, self._group = settings, transactional_id, group
        self._timeout = settings.kafka.transaction_timeout_s
        self._producer, self._coordination = self._made()
        self._producer._sender._do_txn_offset_commit = self._commit_offsets
        self._implicit = ImplicitTransactions(self._producer)
        self._written: list[Partition] = []
        self._sent_bytes = 0  # of the transaction on its way
        self.member: Membership | None = None
        """In whose name offsets are committed; None: in nobody's."""

    def _made(self, timeout_ms: int | None = None) -> tuple[aiokafka.AIOKafkaProducer, Coordination]:
        producer = aiokafka.AIOKafkaProducer(
            **aiokafka_options(self._settings, self._id),
            transactional_id=self._id,
            transaction_timeout_ms=timeout_ms or int(self._timeout * 1000),
            max_batch_size=self._settings.kafka.max_record_bytes,
            max_request_size=8 * self._settings.kafka.max_record_bytes,
            retry_backoff_ms=20,
        )
        return producer, Coordination(producer, self._id, self._group)

    async def fence(self, writes: Iterable[str | Partition]) -> None:
        """Become the one owner of the transactional id, with nothing of a former owner left open.

        ``writes`` must be all that this id ever writes to, beside offsets of its group: whole topics, or
        partitions. Raises TransactionError.
        """
        try:
            async with asyncio.timeout(self._timeout):
                await self._settle_remains(writes)
                # This raises the epoch once more. A marker of what has just ended which the brokers sent
                # twice, and which comes late, would end the next transaction of the same epoch on some
                # partitions.
                await self._producer.start()
                await self._coordination.renewed()
        except (KafkaError, TimeoutError, IllegalOperation, AssertionError) as error:
            await self.close()
            raise TransactionError(f"cannot initialise the transactional producer: {error!r}") from error

    async def begin(self, writes: Iterable[str]) -> None:
        """Become the owner of an id that nobody has had; it will write to these topics. Raises
        TransactionError."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._producer.start()
                self._written = [tp for topic in writes for tp in await _partitions_of(self._producer, topic)]
                await self._coordination.renewed()
        except (KafkaError, TimeoutError, IllegalOperation, AssertionError) as error:
            await self.close()
            raise TransactionError(f"cannot initialise the transactional producer: {error!r}") from error

    async def fence_out(self, writes: Iterable[str]) -> None:
        """End for good what the owner of this id has open; what it still sends is refused from now on, and
        we are not its owner either. Whoever else does the same at the same time does no harm. Raises
        TransactionError."""
        try:
            async with asyncio.timeout(self._timeout):
                while not await self._settled(writes):
                    pass  # somebody else is at it, and ends what is open
        except (KafkaError, TimeoutError, IllegalOperation, AssertionError) as error:
            raise TransactionError(f"cannot fence {self._id} out: {error!r}") from error
        finally:
            await self.close()

    async def completed(self) -> None:
        """Return once all that was committed stands on its partitions. Raises TransactionError."""
        try:
            async with asyncio.timeout(self._timeout):
                renewed = await self._coordination.renewed()
                with self._coordination.held():
                    # the coordinator takes the group into a transaction when the one before is complete
                    written = self._written if renewed else []
                    await self._settle(self._producer, self._coordination, written, commit=True)
        except (KafkaError, TimeoutError, IllegalOperation, AssertionError) as error:
            raise TransactionError(f"the last transaction is not complete: {error!r}") from error

    async def _settle_remains(self, writes: Iterable[str | Partition], timeout_ms: int | None = None) -> None:
        """Becoming the owner aborts a former transaction that is open. Records of a complete one that has no
        marker (see ``coordination.py``) would share the fate of our first transaction: they are given the
        end that was decided on by an empty transaction that spans all that is ever written.

        Left to chance: a worker that dies between becoming the owner, when the decision is forgotten, and
        the end of that transaction, some milliseconds later.

        With a ``timeout_ms`` of its own others who do the same know: they leave it alone. Of those who begin
        at the same time the last one stays the owner.
        """
        producer, coordination = self._made(timeout_ms)
        try:
            await producer.client.bootstrap()
            if timeout_ms is None:
                last = await coordination.last()
            elif (found := await self._taken_over(coordination, timeout_ms)) is not None:
                last = found
            else:
                return
            await producer.start()
            self._written = [tp for topic in writes for tp in await _partitions_of(producer, topic)]
            await coordination.renewed()
            with coordination.held():
                await self._settle(producer, coordination, self._written, commit=last.state == COMMITTED)
                await coordination.last()  # which waits until it is complete
        finally:
            await _close(producer)

    async def _settled(self, writes: Iterable[str]) -> bool:
        """Whether what an owner has left has its end; False when somebody else has become the owner."""
        try:
            await self._settle_remains(writes, SETTLING_MS)
        except ProducerFenced:
            return False
        return True

    async def _taken_over(self, coordination: Coordination, timeout_ms: int) -> Last | None:
        """Become the owner after the one of the transaction that is returned; None when somebody else has
        given it its end."""
        patience = time.monotonic() + SETTLING_S
        while True:
            looked = time.monotonic()
            last = await coordination.last()
            taken = last.timeout_ms == timeout_ms
            if taken and last.state in COMPLETE:
                return None
            if taken and looked < patience:  # then whoever began it has died
                await asyncio.sleep(LOOK_S)
            elif last.producer_id < 0:  # the broker tells nothing
                return last
            elif time.monotonic() - looked < TOGETHER_S / 2 and await coordination.take_over(timeout_ms):
                await asyncio.sleep(TOGETHER_S)
                return last

    async def _settle(
        self,
        producer: aiokafka.AIOKafkaProducer,
        coordination: Coordination,
        written: Iterable[Partition],
        *,
        commit: bool,
    ) -> None:
        await producer.begin_transaction()
        self._implicit.on = False  # it spans what nothing is written to
        for tp in written:
            producer._txn_manager.maybe_add_partition_to_txn(tp)
        await coordination.add_group()
        await (producer.commit_transaction() if commit else producer.abort_transaction())

    async def partitions(self, topic: str) -> int:
        """How many partitions a topic has, as the broker says. Raises a KafkaError."""
        return len(await self._producer.partitions_for(topic))

    async def commit(
        self,
        outputs: Iterable[Output],
        offsets: Mapping[Partition, tuple[int, Mark]] = MappingProxyType({}),
        bound: TransactionBound | None = None,
    ) -> dict[Partition, int]:
        """Produce ``outputs`` and commit ``offsets`` with their marks in one transaction. How long it took is
        told to ``bound``.

        Returns the end position of each partition written. Raises FencedError when another owner
        has taken over, TransactionError on any other failure; either way nothing took effect, or
        (a lost answer to the commit itself) all of it did: the caller must forget what it holds
        of the partition and read it again. Calls must not overlap.
        """
        marks = {tp: OffsetAndMetadata(offset, mark.encode()) for tp, (offset, mark) in offsets.items()}
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                renewed = await self._coordination.renewed()
                with self._coordination.held():
                    if renewed:  # our last transaction may lack its markers
                        await self._settle(self._producer, self._coordination, self._written, commit=True)
                    ends = await self._commit(outputs, marks)
        except (KafkaError, TimeoutError, IllegalOperation, AssertionError) as error:
            cause = self._cause(error)
            if isinstance(cause, (ProducerFenced, *OUT_OF_DATE)):
                metrics.TRANSACTIONS.labels("fenced").inc()
                raise FencedError("another worker owns this partition now") from error
            metrics.TRANSACTIONS.labels("failed").inc()
            if bound is not None:
                bound.failed()
            raise TransactionError(f"transaction failed: {cause!r}") from error
        metrics.TRANSACTIONS.labels("committed").inc()
        if bound is not None:
            bound.took(self._sent_bytes, time.monotonic() - begun)
        return ends

    def _cause(self, error: BaseException) -> BaseException:
        """What has ended the transaction. Where the broker refuses it between two of our steps, the next
        step only says that there is none."""
        ended = self._producer._txn_manager.wait_for_transaction_end()
        known = ended is not None and ended.done() and not ended.cancelled()
        refusal: BaseException | None = ended.exception() if known else None
        if isinstance(error, KafkaError | TimeoutError):
            return error
        if refusal is None:
            raise error
        return refusal

    async def _commit_offsets(self, offsets: object, group: str) -> None:
        """In aiokafka's place, which commits them in nobody's name."""
        sender = self._producer._sender
        try:
            node = await sender._find_coordinator(CoordinationType.GROUP, group)
        except GroupAuthorizationFailedError as error:
            self._producer._txn_manager.error_transaction(error)
            return
        member, adding = self.member or NOBODY, self._implicit.on
        await MemberOffsetsHandler(sender, offsets, group, member, adding=adding).do(node)

    async def _commit(
        self, outputs: Iterable[Output], marks: Mapping[Partition, OffsetAndMetadata]
    ) -> dict[Partition, int]:
        # 1. begin; 2. everything the batch caused; 3. its offset; 4. commit
        begun = CLOCK.sending()
        await self._producer.begin_transaction()
        self._implicit.on = self._coordination.unannounced
        self._sent_bytes = 0
        futures = await self._send(outputs)
        if futures and marks:
            # a broker that checks whether a producer's transaction spans a partition does one such check at a
            # time, and has the second request tried again, 20 ms later
            await asyncio.wait([future for _, future in futures])
        if marks:
            await self._producer.send_offsets_to_transaction(marks, self._group)
        ends: dict[Partition, int] = {}
        for count, future in futures:
            sent = await future
            tp = Partition(sent.topic, sent.partition)
            ends[tp] = max(ends.get(tp, 0), sent.offset + count)
            CLOCK.acknowledged(begun, sent.timestamp, sent.timestamp_type)
        await self._producer.commit_transaction()
        return ends

    async def _send(
        self, outputs: Iterable[Output]
    ) -> list[tuple[int, asyncio.Future[aiokafka.structs.RecordMetadata]]]:
        """Group outputs into record batches and hand them to the producer, in order."""
        futures = []
        builders: dict[Partition, aiokafka.producer.message_accumulator.BatchBuilder] = {}
        topic, partition = "", -1
        for out in outputs:
            if out.partition != partition or out.topic != topic:  # thousands in a row are of the same
                topic, partition = out.topic, out.partition
                tp = Partition(topic, partition)
                if tp not in builders:
                    builders[tp] = self._producer.create_batch()
                append = builders[tp].append
            record = {"timestamp": None, "key": out.key, "value": out.value, "headers": list(out.headers)}
            if append(**record) is None:
                futures.append(await self._flush(builders[tp], tp))
                builders[tp] = self._producer.create_batch()
                append = builders[tp].append
                # an empty batch takes any record; one that is too large is refused by the broker
                append(**record)
        for tp, builder in builders.items():
            futures.append(await self._flush(builder, tp))
        return futures

    async def _flush(
        self, builder: object, tp: Partition
    ) -> tuple[int, asyncio.Future[aiokafka.structs.RecordMetadata]]:
        count = builder.record_count()  # type: ignore[attr-defined]  # aiokafka is untyped
        self._sent_bytes += builder.size()  # type: ignore[attr-defined]
        future = await self._producer.send_batch(builder, tp.topic, partition=tp.partition)
        # where a transaction fails before it is awaited, its error is the transaction's
        future.add_done_callback(lambda sent: sent.cancelled() or sent.exception())
        return count, future

    async def close(self) -> None:
        """Stop the producer; bounded, an open transaction is left for the next owner to abort."""
        await _close(self._producer)


async def _partitions_of(producer: aiokafka.AIOKafkaProducer, topic: str | Partition) -> list[Partition]:
    if not isinstance(topic, str):
        return [topic]
    return [Partition(topic, p) for p in range(len(await producer.partitions_for(topic)))]


async def _close(producer: aiokafka.AIOKafkaProducer) -> None:
    try:
        await asyncio.wait_for(producer.stop(), CLOSE_TIMEOUT_S)
    except (KafkaError, TimeoutError):
        # the broker is away: what is still to be sent is void, and would be tried for ever
        with contextlib.suppress(KafkaError):
            await producer._sender.close()
        await producer.client.close()
    ended = producer._txn_manager.wait_for_transaction_end()
    if ended is not None and ended.done() and not ended.cancelled():
        ended.exception()  # looked at: whoever was fenced between two steps has its error from the next one
