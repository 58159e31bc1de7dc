"""One transactional producer for all partitions that a worker owns.

A transaction costs the same whether it spans one partition or many, so what several partitions want to
commit at the same time goes out in one. Who may write for a partition is settled by claims, see ``marks.py``:

- A transactional id belongs to one producer of one process, and is never used again.
- Before anything is written for a partition, whoever has an unfinished claim on one of its inputs is fenced
  out: what it has open is aborted, what it still sends is refused. Then the claim is ours; the group's
  coordinator takes it only from the present owner.
- Before partitions are given up, the last transaction is completed, the claims say so, and nothing is
  written until the next assignment is known: in a rebalance of workers that live nobody is fenced.
- Every transaction commits an offset in the name of the assignment. So it is refused once the group has moved
  on, also where a claim was lost together with the group's offsets.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import uuid4

from stream_app.errors import FencedError, TransactionError
from stream_app.kafka.errors import KafkaError
from stream_app.kafka.marks import Mark, Membership
from stream_app.kafka.records import Partition
from stream_app.kafka.topic_ids import CommittedOffset, GroupOffsets
from stream_app.kafka.transactions import Output, TransactionBound, Transactions
from stream_app.settings import Settings

log = logging.getLogger(__name__)

RETRY_S = 1.0


@dataclass(slots=True, eq=False)
class Share:
    """What one partition has of its worker's transactions."""

    transactions: SharedTransactions
    inputs: tuple[Partition, ...]
    """Partitions of topics whose offsets it commits."""
    earlier: tuple[str, ...] = ()
    """Transactional ids of those who may write for it without a claim: workers of an earlier version."""
    marks: dict[Partition, tuple[int, Mark]] = field(default_factory=dict)
    """The offsets as they are committed, with our claims."""
    left: bool = False

    @property
    def bound(self) -> TransactionBound:
        """Of one transaction."""
        return self.transactions.bound

    async def claim(self) -> None:
        """Become the one who writes for the partition: nothing that others have written for it is open.

        Raises FencedError when it is not ours any more, TransactionError, a KafkaError.
        """
        await self.transactions.claim([self])

    async def commit(
        self,
        outputs: Sequence[Output],
        offsets: Mapping[Partition, int],
        topic_ids: Mapping[str, str],
        size: int = 0,
    ) -> dict[Partition, int]:
        """Produce and commit, together with what others want to commit now; calls must not overlap. ``size``:
        bytes of the outputs, about; 0: to be counted.

        Returns the end of each partition written, by others as well. Raises as ``Transactions.commit``;
        the caller must forget what it holds of the partition then.
        """
        marks = {tp: (offset, Mark(topic_ids.get(tp.topic, ""))) for tp, offset in offsets.items()}
        return await self.transactions.commit(self, outputs, marks, size or sum(o.size for o in outputs))

    def leave(self) -> None:
        """Its partition is being closed. Between two assignments what waits to be committed is given up."""
        self.left = True
        self.transactions.give_up(self)


@dataclass(slots=True)
class _Asked:
    share: Share
    outputs: Sequence[Output]
    marks: Mapping[Partition, tuple[int, Mark]]
    size: int
    ends: asyncio.Future[dict[Partition, int]]


class SharedTransactions:
    """Of one worker."""

    def __init__(
        self,
        settings: Settings,
        group: str,
        name: str,
        writes: Sequence[str],
        offsets: Callable[[], GroupOffsets],
    ) -> None:
        """``name`` begins the transactional ids: ``{app_id}-{name}-{random}``; ``writes`` are the topics that
        workers of the group write to; ``offsets`` gives the group's, once there is an assignment."""
        self._settings, self._group, self._writes, self._offsets = settings, group, writes, offsets
        self._app = f"{settings.kafka.app_id}-"  # whatever else stands in a claim is none
        self._prefix = f"{self._app}{name}-"
        self._timeout = settings.kafka.transaction_timeout_s
        self.bound = TransactionBound(settings)
        """Of one transaction; it outlives partitions and producers."""
        self.id = ""
        """The transactional id of the present producer"""
        self._ours: set[str] = set()  # ids of this process
        self._producer: Transactions | None = None
        self._member: Membership | None = None
        self.releases = 0
        """How often an assignment was given up"""
        self._shares: set[Share] = set()
        self._fenced: dict[str, asyncio.Task[None]] = {}
        self._asked: deque[_Asked] = deque()
        self._suspects: set[Partition] = set()  # of transactions that failed: they go alone
        self._running: asyncio.Task[None] | None = None
        self._open = asyncio.Event()
        self._in_work = asyncio.Lock()

    # -- assignments come and go

    async def assigned(
        self, member: Membership | None, kept: Collection[Share] = (), since: int | None = None
    ) -> set[Share]:
        """Begin an assignment, in which the partitions of ``kept`` stay with us; those of them that somebody
        else has had in between are returned. It came when so many had been given up (``since``; None: now).

        Raises TransactionError, a KafkaError, FencedError when it was given up meanwhile.
        """
        async with self._in_work:
            if since is not None and since != self.releases:
                raise FencedError("this assignment was given up before it was begun")
            self._member = member
            # ids of earlier versions are used again
            self._fenced = {one: task for one, task in self._fenced.items() if not task.done()}
            await self._sound_producer()
            found = await self._committed(kept)
            strange = {
                share
                for share in kept
                if any(mark is None or mark.owner not in self._ours for mark in _marks(share, found))
            }
            ours = set(kept) - strange
            await self._claim(ours)
            self._keep(ours)
            self._open.set()
        return strange

    async def release(self) -> None:
        """Give the assignment up: complete what is on its way, and say so. Until there is another one
        nothing is committed."""
        self.releases += 1
        async with self._in_work:
            if not self._open.is_set():
                return
            self._open.clear()
            if self._producer is None:
                return
            try:
                await self._producer.completed()
                # as they stand, and not as we remember them: a topic may have been created again meanwhile
                found = await self._committed(self._shares)
                marks = {
                    tp: (at.offset or 0, at.mark._replace(left=True))
                    for tp, at in found.items()
                    if at.mark is not None and at.mark.owner in self._ours
                }
                await self._say(marks, self._member)
            except (FencedError, TransactionError, KafkaError) as error:
                log.info("partitions are given up without a word, their next owner fences us: %s", error)
                await self._fail_producer()  # else what is not complete could be taken for it

    async def close(self) -> None:
        """Disconnect; nothing is committed any more."""
        async with self._in_work:
            self._open.clear()
            self._keep(set())
            await self._fail_producer()
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    async def partitions(self, topic: str) -> int:
        """How many partitions a topic has, as the broker says. Raises TransactionError, a KafkaError."""
        if self._producer is None:
            raise TransactionError("there is no assignment")
        return await self._producer.partitions(topic)

    async def _sound_producer(self) -> Transactions:
        if self._producer is None:
            if self.id:  # it failed, and may have left something open that holds up every reader
                await self._fence_out(self.id)
            transactional_id = self._prefix + uuid4().hex
            producer = Transactions(self._settings, transactional_id, self._group)
            try:
                await producer.begin(self._writes)
            except BaseException:
                await producer.close()
                raise
            self.id = transactional_id
            self._ours.add(self.id)
            self._producer = producer
        self._producer.member = self._member
        return self._producer

    async def _fail_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.close()

    # -- claims

    async def claim(self, shares: Collection[Share]) -> None:
        """See :meth:`Share.claim`."""
        async with self._in_work:
            if not self._open.is_set():
                raise TransactionError("there is no assignment")
            await self._sound_producer()
            await self._claim(shares)

    async def _claim(self, shares: Collection[Share]) -> None:
        found = await self._committed(shares)
        former = {
            one
            for share in shares
            for mark in _marks(share, found)
            if mark is not None and not mark.left
            for one in ((mark.owner,) if mark.owner.startswith(self._app) else share.earlier)
        } - {self.id}
        if former:
            await self._confirm()  # who has lost them without having noticed throws nobody out
            await asyncio.gather(*(self._fence_out(one) for one in sorted(former)))
            found = await self._committed(shares)  # where they stood, now that it is decided
        for share in shares:
            share.marks = {
                tp: (found[tp].offset or 0, Mark(found[tp].topic_id or "", self.id))
                for tp in share.inputs
                if found[tp].offset is not None
            }
        marks = {tp: mark for share in shares for tp, mark in share.marks.items()}
        await self._say(marks, self._member)
        ours = {tp for share in shares for tp in share.inputs}
        self._keep({share for share in self._shares if ours.isdisjoint(share.inputs)} | set(shares))

    async def _say(self, marks: Mapping[Partition, tuple[int, Mark]], member: Membership | None) -> None:
        if marks:
            try:
                async with asyncio.timeout(self._timeout):
                    await self._offsets().claim(marks, member)
            except TimeoutError:
                raise TransactionError("the group's coordinator takes no claim") from None

    async def _confirm(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._offsets().confirm(self._member)
        except TimeoutError:
            raise TransactionError("the group's coordinator does not answer") from None

    async def _committed(self, shares: Iterable[Share]) -> Mapping[Partition, CommittedOffset]:
        tps = [tp for share in shares for tp in share.inputs]
        if not tps:
            return {}
        try:
            async with asyncio.timeout(self._timeout):
                return await self._offsets().offsets(tps)
        except TimeoutError:
            raise TransactionError("the group's coordinator tells no offsets") from None

    async def _fence_out(self, transactional_id: str) -> None:
        """Once for all partitions that it had."""
        fencing = self._fenced.get(transactional_id)
        if fencing is None or (fencing.done() and (fencing.cancelled() or fencing.exception())):
            former = Transactions(self._settings, transactional_id, self._group)
            fencing = asyncio.create_task(former.fence_out(self._writes))
            self._fenced[transactional_id] = fencing
        await asyncio.shield(fencing)

    # -- transactions

    async def commit(
        self,
        share: Share,
        outputs: Sequence[Output],
        marks: Mapping[Partition, tuple[int, Mark]],
        size: int,
    ) -> dict[Partition, int]:
        """See :meth:`Share.commit`."""
        if share not in self._shares:
            raise FencedError("the partition was given up")
        ends: asyncio.Future[dict[Partition, int]] = asyncio.get_running_loop().create_future()
        self._asked.append(_Asked(share, outputs, marks, size, ends))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await ends

    def give_up(self, share: Share) -> None:
        """See :meth:`Share.leave`."""
        if not self._open.is_set():
            self._keep(self._shares - {share})

    def _keep(self, shares: set[Share]) -> None:
        """Nothing is committed for others any more, nor what they wait with."""
        self._shares = shares
        gone = [one for one in self._asked if one.share not in shares]
        self._asked = deque(one for one in self._asked if one.share in shares)
        _fail(gone, FencedError("the partition was given up"))

    async def _run(self) -> None:
        while self._asked:
            await self._open.wait()
            async with self._in_work:
                if self._asked and self._open.is_set():
                    await self._carry_out(self._next())

    def _next(self) -> list[_Asked]:
        """All that waits and fits; after a failure one at a time."""
        together, size = [self._asked.popleft()], 0
        if self._suspects.isdisjoint(together[0].share.inputs):
            for one in list(self._asked):
                size += one.size
                if size + together[0].size > self.bound.bytes:
                    break
                if self._suspects.isdisjoint(one.share.inputs):
                    self._asked.remove(one)
                    together.append(one)
        return together

    async def _carry_out(self, together: list[_Asked]) -> None:
        inputs = {tp for one in together for tp in one.share.inputs}
        producer = self._producer
        try:
            if producer is None:  # the last transaction failed, of which these had no part
                producer = await self._sound_producer()
                await self._claim(self._shares)
            outputs = [output for one in together for output in one.outputs]
            for one in together:  # the producer may be another one than when this was asked for
                # the coordinator of the group looks at offsets alone: there is always one
                found = one.marks or dict(sorted(one.share.marks.items())[:1])
                one.marks = {tp: (at, mark._replace(owner=self.id)) for tp, (at, mark) in found.items()}
            marks = {tp: mark for one in together for tp, mark in one.marks.items()}
            ends = await producer.commit(outputs, marks, self.bound)
        except (FencedError, TransactionError, KafkaError) as error:
            self._suspects |= inputs
            known = isinstance(error, FencedError | TransactionError)
            _fail(together, error if known else TransactionError(f"no new producer: {error!r}"))
            await self._fail_producer()
        except BaseException as error:  # a mistake of ours, or the end: nobody is to wait for ever
            _fail([*together, *self._asked], error)
            self._asked.clear()
            raise
        else:
            self._suspects -= inputs
            for one in together:
                one.share.marks |= one.marks
                if not one.ends.done():  # its partition was cancelled
                    one.ends.set_result(ends)


async def begun(
    transactions: SharedTransactions, member: Membership | None, kept: Collection[Share], since: int
) -> set[Share]:
    """:meth:`SharedTransactions.assigned`, for as long as that takes; whoever waits is cancelled when there
    is a newer assignment."""
    while True:
        try:
            return await transactions.assigned(member, kept, since)
        except (FencedError, TransactionError, KafkaError) as error:
            log.warning("the assignment cannot be begun yet: %s", error)
            await asyncio.sleep(RETRY_S)


def _marks(share: Share, found: Mapping[Partition, CommittedOffset]) -> list[Mark | None]:
    """Of the inputs that exist."""
    return [found[tp].mark for tp in share.inputs if found[tp].offset is not None]


def _fail(asked: Iterable[_Asked], error: BaseException) -> None:
    for one in asked:
        with suppress(asyncio.InvalidStateError):
            one.ends.set_exception(error)
