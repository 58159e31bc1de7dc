"""Event topics whose partitions are not the table's: all of their records are routed.

A platform's topic may have more or fewer partitions than the interests table, and may grow while workers
run. Then its partition p is no input of the table's partition p: whoever is assigned it carries each record
to its user's partition of ``events-routed``, with the offset in the same transaction, and keeps no state.

How far a router has come stands on ``content-stats`` too, in partition p modulo those of the table, and is
trusted before the group's offsets, which expire. That record also says who read the partition last: where
there is none, the table's partition p may have.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from stream_app.errors import BrokerUnavailableError, FencedError, TransactionError
from stream_app.events.dead_letters import dead_letter, origin_of, records_in
from stream_app.events.decode import EventDecoder
from stream_app.events.reasons import Reason
from stream_app.interests.owners import earlier_owners
from stream_app.interests.placement import Placement
from stream_app.interests.statistics_record import (
    NOT_ROUTED,
    OUTCOMES_KEY,
    RESERVED,
    Outcomes,
    RouterStanding,
    router_key,
)
from stream_app.kafka.changelog import ChangelogReader
from stream_app.kafka.errors import KafkaError
from stream_app.kafka.fenced import FencedPartition
from stream_app.kafka.records import KeyedRecord, Partition, Record, RecordBatch
from stream_app.kafka.shared import Share, SharedTransactions
from stream_app.kafka.topic_ids import InputOffsets, same_topic
from stream_app.kafka.transactions import Output
from stream_app.observability import metrics
from stream_app.settings import Settings
from stream_app.topics import ROUTED_TOPIC

log = logging.getLogger(__name__)

OPEN_RETRY_S = 1.0
HEADERS_BYTES = 256
"""Of a copy, about."""


class Router:
    """What becomes of records whose partition is not the table's: pure, and without state."""

    def __init__(self, settings: Settings) -> None:
        self._decoder = EventDecoder(settings)
        self._placement = Placement(settings)
        self._actions = {settings.topic_name(a.topic): a.name for a in settings.events.actions}
        self._letters = settings.topic_name("events-dlq")
        self._letter_partitions = settings.kafka.shared_partitions

    def outputs(
        self, records: Sequence[Record], topic: str, partition: int, now_ms: int
    ) -> tuple[list[Output], Counter[Reason]]:
        """The copies of the records of one partition, and why those without a user are dead letters."""
        batch = self._decoder.decode(records, topic, partition, None)
        rejected = {bad.index: bad for bad in batch.rejected}
        owners: list[bytes | None] = [None] * len(records)
        for at, decoded in zip(batch.source.tolist(), batch.users, strict=True):
            owners[at] = decoded
        for at in rejected:
            owners[at] = self._placement.owner(records[at])
        places = self._placement.places([user for user in owners if user is not None])
        made: list[Output] = []
        reasons: Counter[Reason] = Counter()
        for at, (record, user) in enumerate(zip(records, owners, strict=True)):
            origin = origin_of(record, topic, partition)
            if user is not None:
                made.append(self._placement.copy(record, origin, user, places[user], now_ms))
                continue
            bad = rejected[at]
            key, value, headers = dead_letter(record, origin, bad.reason, bad.detail, now_ms)
            where = (partition + record.offset) % self._letter_partitions
            made.append(Output(self._letters, where, key, value, tuple(headers)))
            reasons[bad.reason] += records_in(record)
        return made, reasons

    def count(self, topic: str, routed: int, reasons: Counter[Reason]) -> None:
        """For the metrics, once it is committed."""
        action = self._actions[topic]
        metrics.EVENTS.labels(action, "routed").inc(routed)
        metrics.EVENTS.labels(action, "dead_lettered").inc(reasons.total())
        for reason, count in reasons.items():
            metrics.DEAD_LETTERS.labels(reason.value).inc(count)


class Standings:
    """Reserved records of ``content-stats``, read anew for whoever asks; those who ask together share it."""

    def __init__(self, settings: Settings, partition: int) -> None:
        self._settings, self._partition = settings, partition
        self._begun = self._done = 0
        self._found: dict[bytes, bytes] = {}
        self._reading = asyncio.Lock()

    async def read(self) -> dict[bytes, bytes]:
        """As they stand now. Raises a KafkaError."""
        begun = self._begun
        async with self._reading:
            if self._done <= begun:
                self._begun += 1
                self._found = await self._read()
                self._done = self._begun
            return self._found

    async def _read(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}

        async def take(records: Sequence[KeyedRecord], _position: int) -> None:
            found.update((r.key, r.value) for r in records if r.key.startswith(RESERVED) and r.value)

        reader = ChangelogReader(self._settings, self._settings.topic_name("content-stats"), self._partition)
        try:
            await reader.start(0)
            await reader.read_to_end(take)
        finally:
            await reader.stop()
        return found


class RoutedInput(FencedPartition):
    """A partition of an event topic with a router as its reader."""

    def __init__(
        self,
        settings: Settings,
        source: Partition,
        router: Router,
        standings: Standings,
        share: Share,
        on_lost: Callable[[], None],
    ) -> None:
        super().__init__(share, source, writes=(), on_lost=on_lost)
        self._settings, self._router, self._standings = settings, router, standings
        self._standing = RouterStanding()
        self._routed = settings.topic_name(ROUTED_TOPIC)
        self._in_flight: asyncio.Task[None] | None = None

    async def open(self, offsets: InputOffsets) -> None:
        """Fence, then learn where to read on, also from the other kind of owner that this partition may have
        had. Raises FencedError, TransactionError or a KafkaError."""
        await super().open(offsets)
        topic, number = self._source
        key = router_key(topic, number)
        if (value := (await self._standings.read()).get(key)) is not None:
            self._standing = msgspec.json.decode(value, type=RouterStanding)
        topic_id, standing = self._inputs.ids[topic], self._standing
        if standing.offset != NOT_ROUTED and same_topic(standing.topic_id, topic_id):
            self._expected = self._standing.offset
            return
        if number < self._settings.kafka.partitions:
            outcomes = (await self._standings.read()).get(OUTCOMES_KEY, b"{}")
            reached = msgspec.json.decode(outcomes, type=Outcomes).positions.get(topic)
            if reached is not None and same_topic(reached[1], topic_id):
                self._expected = reached[0]
        if self._expected is not None:
            # from now on it is ours: nobody else has to be asked the next time
            standing = self._stand(self._expected)
            await self.share.commit(
                [self._output(standing)], {self._source: self._expected}, self._inputs.ids
            )
            self._standing = standing

    async def take(self, batch: RecordBatch) -> None:
        """Route one batch: returns when its transaction is on its way."""
        for part in _parts(batch, self.share.bound.bytes):
            await self._take(part)

    async def _take(self, batch: RecordBatch) -> None:
        if not self.accepts(batch):
            return
        metrics.BATCH_RECORDS.labels("interests").observe(len(batch.records))
        made, reasons = await asyncio.to_thread(
            self._router.outputs, batch.records, batch.topic, batch.partition, time.time_ns() // 1_000_000
        )
        await self.settle()  # one transaction at a time
        self._in_flight = asyncio.create_task(self._commit(made, reasons, batch.end))
        await asyncio.sleep(0)

    async def settle(self) -> None:
        """Return once no transaction is on its way."""
        if self._in_flight is not None:
            await asyncio.wait([self._in_flight])

    async def close(self) -> None:
        """Finish the transaction on its way and disconnect."""
        await self.settle()
        await super().close()

    async def _commit(self, made: list[Output], reasons: Counter[Reason], end: int) -> None:
        routed = sum(output.topic == self._routed for output in made)
        standing = self._stand(end, routed=routed, dead_lettered=reasons.total())
        if await self.commit([*made, self._output(standing)], end):
            self._standing = standing
            self._router.count(self._source.topic, routed, reasons)

    def _stand(self, offset: int, *, routed: int = 0, dead_lettered: int = 0) -> RouterStanding:
        before = self._standing
        return RouterStanding(
            offset,
            self._inputs.ids[self._source.topic],
            before.routed + routed,
            before.dead_lettered + dead_lettered,
        )

    def _output(self, standing: RouterStanding) -> Output:
        topic, number = self._source
        place = self._settings.topic_name("content-stats"), number % self._settings.kafka.partitions
        return Output(*place, router_key(topic, number), msgspec.json.encode(standing))


def _parts(batch: RecordBatch, most: int) -> Iterator[RecordBatch]:
    """The batch in parts whose copies take ``most`` bytes, or are a single one: a transaction for each."""
    first, start, size = 0, batch.start, 0
    for at, record in enumerate(batch.records):
        own = len(record.key or b"") + len(record.value or b"") + HEADERS_BYTES
        if at > first and size + own > most:
            part = RecordBatch(batch.topic, batch.partition, start, batch.records[first:at])
            yield part
            first, start, size = at, part.end, 0
        size += own
    yield RecordBatch(batch.topic, batch.partition, start, batch.records[first:])


class Routers:
    """The routed partitions that this worker owns."""

    def __init__(
        self, settings: Settings, transactions: SharedTransactions, on_lost: Callable[[], None]
    ) -> None:
        """``on_lost`` asks for a new assignment."""
        self._settings, self._transactions, self._on_lost = settings, transactions, on_lost
        self._router = Router(settings)
        self._standings = [Standings(settings, p) for p in range(settings.kafka.partitions)]
        self._open: dict[Partition, RoutedInput] = {}

    def __getitem__(self, tp: Partition) -> RoutedInput | None:
        """The reader of a partition that is routed here."""
        return self._open.get(tp)

    async def keep(self, tps: set[Partition]) -> dict[Share, Partition]:
        """Leave all but these partitions, and those that are lost; those that stay open."""
        await self.close({tp for tp, routed in self._open.items() if tp not in tps or routed.lost})
        return {routed.share: tp for tp, routed in self._open.items()}

    async def assign(self, tps: set[Partition], offsets: InputOffsets) -> None:
        """Route these partitions; those already open stay open."""
        await asyncio.gather(*(self._start(tp, offsets) for tp in sorted(tps - self._open.keys())))

    def positions(self) -> dict[Partition, int | None]:
        """Where each is read on; None: no such topic."""
        return {tp: routed.position for tp, routed in self._open.items() if not routed.lost}

    async def settle(self) -> None:
        """Return once no transaction is on its way."""
        await asyncio.gather(*(routed.settle() for routed in self._open.values()))

    async def close(self, tps: Iterable[Partition]) -> None:
        """Leave these partitions."""
        await asyncio.shield(asyncio.gather(*(self._open.pop(tp).close() for tp in tps)))

    async def close_all(self) -> None:
        """Leave all of them."""
        await self.close(set(self._open))

    async def _start(self, tp: Partition, offsets: InputOffsets) -> None:
        while True:
            standings = self._standings[tp.partition % len(self._standings)]
            share = Share(self._transactions, (tp,), earlier_owners(self._settings, [tp]))
            routed = RoutedInput(self._settings, tp, self._router, standings, share, self._on_lost)
            try:
                await routed.open(offsets)
            except (FencedError, TransactionError, BrokerUnavailableError, KafkaError) as error:
                # the broker is away: try again for as long as the partition is ours
                log.warning("%s[%d] cannot be routed yet: %s", *tp, error)
                await routed.close()
                await asyncio.sleep(OPEN_RETRY_S)
            except BaseException:
                await routed.close()
                raise
            else:
                self._open[tp] = routed
                log.info("%s[%d] is routed: its topic has other partitions than the table", *tp)
                return
