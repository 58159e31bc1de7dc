"""The interests role: events in, the table of interests and the content statistics out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from stream_app.content.index import ContentIndex
from stream_app.content.model import model_id
from stream_app.errors import BrokerUnavailableError, FencedError, StateDirectoryError, TransactionError
from stream_app.events.dead_letters import origin_of
from stream_app.interests.batch import BatchPreparation
from stream_app.interests.contents import IndexedContents
from stream_app.interests.directories import LeftDirectories
from stream_app.interests.erasure import TOPIC as ERASURES
from stream_app.interests.owners import earlier_owners, written_topics
from stream_app.interests.partition import InterestPartition
from stream_app.interests.record import most_bytes
from stream_app.interests.routers import Routers
from stream_app.interests.shaping import shaping
from stream_app.interests.standby import StandbyPartition, finish, opened
from stream_app.interests.store import PartitionStore
from stream_app.interests.sweep import LATER, CopySweep
from stream_app.kafka.admin import check_partitions, delete_records, topic_states
from stream_app.kafka.clock import APPENDED, CLOCK
from stream_app.kafka.errors import KafkaError
from stream_app.kafka.faust.app import RoleApp, consumer_of, create_faust_app
from stream_app.kafka.faust.membership import PLAIN, join_as
from stream_app.kafka.limits import check_record
from stream_app.kafka.pace import Pace
from stream_app.kafka.reader import TopicReader
from stream_app.kafka.records import Partition, Record, RecordBatch
from stream_app.kafka.shared import Share, SharedTransactions, begun
from stream_app.kafka.stage import Input
from stream_app.observability import metrics
from stream_app.observability.health import Health
from stream_app.settings import Settings
from stream_app.topics import ROUTED_TOPIC, retry_topics, try_of

if TYPE_CHECKING:  # OpenTelemetry is an extra
    from stream_app.observability.tracing import Tracing

log = logging.getLogger(__name__)

ROLE = "interests"
FAILURE = "a batch could not be applied"
OPEN_RETRY_S = 1.0
EXPIRY, SWEEP, CLEANUP = "expiry", "sweep", "cleanup"
CLEANUP_LOOK_S = 60.0
ENCODED_S = 0.5
"""How often a worker that waits for a new encoder looks again."""


class InterestsWorker:
    """Owns this worker's partitions: opens and closes them, feeds them, writes them out."""

    def __init__(self, settings: Settings, app: RoleApp, health: Health, tracing: Tracing | None) -> None:
        self._settings, self._app, self._health = settings, app, health
        self._tracing = tracing
        self._model = model_id(settings)
        self._events = {settings.topic_name(action.topic) for action in settings.events.actions}
        self._inputs: list[str] = []  # topics that are assigned as the table is
        self._delays_ms = [int(1000 * delay) for delay in settings.events.retry_delays_s]
        self._contents = IndexedContents(ContentIndex(settings, self._model))
        self._preparation = BatchPreparation(settings, self._contents, CLOCK.latest_ms)
        self._reader = TopicReader(
            settings, settings.topic_name("content-vectors"), self._contents.take, label="contents"
        )
        self._copies = CopySweep(settings, partial(self._moved, SWEEP), CLOCK.latest_ms)
        self._partitions: dict[int, InterestPartition] = {}
        self._transactions = SharedTransactions(
            settings, app.conf.id, ROLE, written_topics(settings), lambda: consumer_of(app)
        )
        self._routers = Routers(settings, self._transactions, self._rejoin)
        self._purged: dict[int, int] = {}  # positions on events-routed when it was purged last
        self._standbys: dict[int, StandbyPartition] = {}
        self._pace = Pace()
        self._left = LeftDirectories(settings)
        self._assigned = False
        self._assigning = asyncio.Lock()  # an assignment given up for a newer one still cleans up
        self._computing = asyncio.Lock()  # one batch at a time: they share the processor and the index

    async def start(self) -> None:
        """Read the contents whole before the first event is taken."""
        group, agreed = self._settings.group(ROLE), shaping(self._settings, self._model)
        self._app.protocol = await asyncio.to_thread(join_as, self._settings, group, agreed)
        if self._app.protocol == PLAIN:
            log.warning(
                "group %s has workers of an earlier version, which do not tell what shapes their state: "
                "whether settings agree is checked again once all workers have been stopped",
                group,
            )
        self._health.waiting_for = "the content index"
        await self._app.read_whole(self._reader, self._health)
        await self._until_encoded()
        interests = self._settings.interests
        self._app.background("flush", self._every(interests.flush_interval_s, "flush", self._flush))
        self._app.background(EXPIRY, self._every(interests.expiry_interval_s, EXPIRY, self._expire))
        self._app.background(SWEEP, self._every(interests.sweep_interval_s, SWEEP, self._sweep))
        look_s = min(CLEANUP_LOOK_S, max(interests.cleanup_delay_s, CLEANUP_LOOK_S / 60))
        self._app.background(CLEANUP, self._every(look_s, CLEANUP, self._clean_up))
        self._health.waiting_for = "an assignment"

    async def _until_encoded(self) -> None:
        """Let a new encoder catch up before any event is taken: states would be made anew from the few
        contents that it has."""
        coverage = self._contents.coverage
        while (missing := coverage.missing) and not coverage.complete:
            metrics.CONTENT_MISSING.set(missing)
            self._health.waiting_for = f"{missing} contents to be encoded by {self._model} (content workers)"
            self._health.nearer()  # that takes as long as it takes
            await asyncio.sleep(ENCODED_S)
        metrics.CONTENT_MISSING.set(0)

    async def stop(self) -> None:
        """Close everything; the streams have come to rest."""
        await self._reader.stop()
        try:
            await self.settle()
            await self._routers.close_all()
            await self._close(set(self._partitions), set(self._standbys))
        except StateDirectoryError as error:
            # raised, it would keep the app from coming to rest; nothing is lost, the changelog has it
            log.critical("state could not be written out at the end: %s", error)
        finally:
            await self._transactions.close()

    # -- partitions come and go

    async def assign(self, actives: set[int], standbys: set[int]) -> None:
        """Serve these partitions and no others; those already open and sound stay open."""
        member, since = self._app.membership(), self._transactions.releases
        async with self._assigning:
            self._health.waiting_for = "recovery"
            await self._sort_inputs(actives)
            inputs = frozenset(self._inputs)
            gone = {
                p
                for p, open_ in self._partitions.items()
                if p not in actives or open_.lost or open_.inputs != inputs
            }
            await self._close(gone, set(self._standbys) - standbys - actives)
            routed = {tp for tp in self._app.assignment() if tp.topic in self._events - inputs}
            routers = await self._routers.keep(routed)
            kept = {partition.share: p for p, partition in self._partitions.items()}
            strange = await begun(self._transactions, member, [*kept, *routers], since)
            await self._close({kept[share] for share in strange & kept.keys()}, set())
            await self._routers.close({routers[share] for share in strange & routers.keys()})
            # side by side: what the former owner of the one has left open keeps the other from reading on,
            # and is ended by being fenced
            await asyncio.gather(
                self._routers.assign(routed, consumer_of(self._app)),
                *(self._open(p) for p in sorted(actives - self._partitions.keys())),
            )
            for p in sorted(standbys - self._standbys.keys() - actives):
                self._standbys[p] = StandbyPartition(self._settings, p, self._app.stop_loudly)
            self._assigned = True
            log.info("serving %d partitions, %d standbys", len(actives), len(standbys))

    async def _sort_inputs(self, actives: set[int]) -> None:
        """Whose partitions are assigned as the table's are: those the table's own partitions read. The others
        are routed: Faust's assignor keeps topics together that have the same number of partitions.

        Raises TopicMismatchError for a topic of ours that has another number: it was changed by hand.
        """
        assigned: dict[str, set[int]] = {topic: set() for topic in self._app.transactional_topics}
        for tp in self._app.assignment():
            if tp.topic in assigned:
                assigned[tp.topic].add(tp.partition)
        self._inputs = sorted(topic for topic, numbers in assigned.items() if numbers == actives)
        if assigned.keys() - self._events - set(self._inputs):
            # or a worker of an earlier version, which does not read all of them, is still in the group
            states = await asyncio.to_thread(topic_states, self._settings)
            check_partitions(self._settings, states)

    async def settle(self) -> None:
        """Everything in flight ends, and the assignment with it."""
        await asyncio.gather(self._routers.settle(), *(p.settle() for p in self._partitions.values()))
        await self._transactions.release()

    def positions(self) -> dict[Partition, int | None]:
        """Where each open partition goes on in its inputs; None: no such topic."""
        read = {tp: at for p in self._partitions.values() for tp, at in p.positions.items()}
        return read | self._routers.positions()

    async def _open(self, number: int) -> None:
        standby = self._standbys.pop(number, None)
        store = await (opened(self._settings, number) if standby is None else standby.release())
        try:
            while True:
                if await self._opened(number, store):
                    return
                await asyncio.sleep(OPEN_RETRY_S)
        except BaseException:
            await finish(store.close)  # left open, it would be locked for whoever has the partition next
            raise

    async def _opened(self, number: int, store: PartitionStore) -> bool:
        """False when the broker is away: it is to be tried again for as long as the partition is ours."""
        inputs = tuple(Partition(topic, number) for topic in self._inputs)
        partition = InterestPartition(
            self._settings,
            number,
            Share(self._transactions, inputs, earlier_owners(self._settings, inputs)),
            self._preparation,
            model=self._model,
            on_lost=self._rejoin,
            on_broken=self._app.stop_loudly,
            computing=self._computing,
            pace=self._pace,
            tracing=self._tracing,
        )
        try:
            await partition.open(store, self._inputs, consumer_of(self._app), self._health.nearer)
        except (FencedError, TransactionError, BrokerUnavailableError, KafkaError) as error:
            log.warning("partition %d cannot be opened yet: %s", number, error)
            await partition.close()
            return False
        except BaseException:
            await partition.close()
            raise
        self._partitions[number] = partition
        return True

    async def _close(self, partitions: set[int], standbys: set[int]) -> None:
        closing = asyncio.gather(
            *(self._partitions.pop(p).close() for p in partitions),
            *(self._standbys.pop(p).close() for p in standbys),
            return_exceptions=True,  # one that fails must not leave the others half closed
        )
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await closing  # half closed, a store would stay locked
            raise
        for outcome in closing.result():
            if outcome is not None:
                raise outcome

    async def _committed(self, topics: Iterable[str]) -> dict[int, dict[str, int | None]]:
        """Offsets of all partitions of topics that have as many as the table."""
        numbers = range(self._settings.kafka.partitions)
        offsets = await consumer_of(self._app).offsets([Partition(t, p) for t in topics for p in numbers])
        return {
            p: {tp.topic: mark.offset for tp, mark in offsets.items() if tp.partition == p} for p in numbers
        }

    def standby_positions(self) -> dict[Partition, int]:
        """Where each warm copy has got to."""
        return dict(standby.position for standby in self._standbys.values())

    def _rejoin(self) -> None:
        consumer_of(self._app).request_rejoin()

    # -- batches

    async def handle(self, batch: RecordBatch) -> None:
        """Feed one batch of events to its partition, or route it."""
        routed = self._routers[Partition(batch.topic, batch.partition)]
        if routed is not None:
            with self._watched(batch):
                await routed.take(batch)
            return
        await self._feed(batch, InterestPartition.handle)

    async def handle_erasures(self, batch: RecordBatch) -> None:
        """Feed one batch of requests to its partition."""
        await self._feed(batch, InterestPartition.erase)

    async def _feed(
        self, batch: RecordBatch, take: Callable[[InterestPartition, RecordBatch], Awaitable[None]]
    ) -> None:
        partition = self._partitions.get(batch.partition)
        if partition is None:
            return
        with self._watched(batch):
            await take(partition, batch)

    @contextmanager
    def _watched(self, batch: RecordBatch) -> Iterator[None]:
        watch = f"{batch.topic}[{batch.partition}]"
        self._health.expect(watch)
        try:
            yield
        finally:
            self._health.progress(watch)

    def due_ms(self, record: Record, now_ms: int) -> int:
        """When a retry is to be tried, ms of the broker's time, which is ``now_ms`` as it is read.

        All of one try wait for its delay since the broker has them, so that they are due in their order.
        Nothing waits longer than the longest delay, whatever its headers or its timestamp say; where that is
        a worker's own (CreateTime), a try waits from when it is read.
        """
        arrived: int = min(record.timestamp, now_ms) if record.timestamp_type == APPENDED else now_ms
        number = try_of(record.topic)
        if number:  # of a try that is configured no more: now
            return arrived + self._delays_ms[number - 1] if number <= len(self._delays_ms) else arrived
        not_before = origin_of(record, record.topic, record.partition).not_before_ms
        return min(not_before, arrived + max(self._delays_ms, default=0))

    # -- now and then

    async def _every(self, seconds: float, name: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            self._health.expect(name)
            await work()
            self._health.progress(name)

    async def _flush(self) -> None:
        for partition in list(self._partitions.values()):
            await partition.flush()

    async def _expire(self) -> None:
        times = [t for p in self._partitions.values() if (t := p.stream_time) is not None]
        if times:
            async with self._computing:
                with self._contents.still() as index:
                    index.evict(max(times))
        for partition in list(self._partitions.values()):
            await partition.expire(self._contents.index, partial(self._moved, EXPIRY))

    async def _sweep(self) -> None:
        """Remove what has come by ``events-routed`` and is garbage now; the copies of erased users' events,
        if there are any; and letters that a sweep has moved past their time."""
        try:
            await self._purge()
        except LATER as error:
            log.warning("what was routed cannot be removed yet: %s", error)
        kafka = self._settings.kafka
        asked = {number: users for number, p in self._partitions.items() if (users := p.unswept)}
        letters = [p for p in range(kafka.shared_partitions) if p % kafka.partitions in self._partitions]
        try:
            await self._copies.expire(letters)
            if not asked:
                return
            committed = await self._committed([*self._copies.topics, self._settings.topic_name(ERASURES)])
            gone = await self._copies.sweep(asked, committed)
        except LATER as error:
            log.warning(
                "copies of erased users' events and expired dead letters cannot be removed yet: %s", error
            )
            return
        for number, copies in gone.items():
            partition = self._partitions.get(number)
            if partition is not None and copies:
                await partition.swept(copies, asked[number], partial(self._moved, SWEEP))

    async def _purge(self) -> None:
        topic = self._settings.topic_name(ROUTED_TOPIC)
        reached = {n: at for n, p in self._partitions.items() if (at := p.positions.get(Partition(topic, n)))}
        moved = {n for n, at in reached.items() if self._purged.get(n) != at}
        if moved:
            committed = await self._committed([topic])
            ends = {(topic, n): end for n in moved if (end := committed[n][topic])}
            await asyncio.to_thread(delete_records, self._settings, ends)
            self._purged = purged(reached, self._purged, {n: end for (_, n), end in ends.items()})

    async def _clean_up(self) -> None:
        """Remove what is left of partitions that have moved away."""
        if not self._assigned or self._assigning.locked():
            return  # what is not served now may be in a moment
        async with self._assigning:  # nor is anything opened meanwhile
            await finish(self._left.remove, self._partitions.keys() | self._standbys.keys())

    def _moved(self, name: str) -> None:
        self._health.progress(name)
        self._health.expect(name)


def purged(reached: Mapping[int, int], before: Mapping[int, int], ends: Mapping[int, int]) -> dict[int, int]:
    """Positions that need no purge any more: purged ``before``, or up to one of ``ends`` now.

    A batch moves the position before its offset is committed, and up to there nothing may be removed.
    """
    return {n: at for n, at in reached.items() if ends.get(n, before.get(n)) == at}


def create_app(
    settings: Settings, health: Health, tracing: Tracing | None = None, left_over: Sequence[str] = ()
) -> RoleApp:
    """The interests role's app, not started. ``left_over``: retry topics of tries that are configured no
    more, in which events may wait."""
    interests = settings.interests
    check_record(
        settings,
        f"interests.recent = {interests.recent}, interests.seen = {interests.seen}",
        most_bytes(
            settings.content.dimensions,
            *(interests.recent, interests.seen, interests.kept, interests.seen_long),
        ),
    )
    events = [settings.topic_name(action.topic) for action in settings.events.actions]
    retries, routed = [*retry_topics(settings), *left_over], settings.topic_name(ROUTED_TOPIC)
    erasures = settings.topic_name("erasures")
    app = create_faust_app(
        settings,
        ROLE,
        batch_topics=[*events, *retries, routed, erasures],
        transactional=True,
        standby_replicas=settings.interests.standby_replicas,
    )
    app.declare_table("interests", settings.topic_name("interests"), settings.kafka.partitions)
    worker = InterestsWorker(settings, app, health, tracing)
    app.serve(
        worker,
        {
            "events": Input([*events, *retries, routed], worker.handle, FAILURE),
            "erasures": Input([erasures], worker.handle_erasures, FAILURE),
        },
        delays=dict.fromkeys(retries, worker.due_ms),
        standby_positions=worker.standby_positions,
    )
    return app
