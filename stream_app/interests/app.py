"""The interests role: events in, the table of interests and the content statistics out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError
from faust.types import TP

from stream_app.content.index import ContentIndex
from stream_app.content.model import model_id
from stream_app.errors import BrokerUnavailableError, FencedError, StateDirectoryError, TransactionError
from stream_app.events.dead_letters import origin_of
from stream_app.interests.batch import BatchPreparation
from stream_app.interests.contents import IndexedContents
from stream_app.interests.directories import LeftDirectories
from stream_app.interests.partition import InterestPartition
from stream_app.interests.record import row_dtype
from stream_app.interests.standby import StandbyPartition, finish, store_directory
from stream_app.interests.store import PartitionStore
from stream_app.interests.sweep import LATER, CopySweep
from stream_app.kafka.app import RoleApp, consumer_of, create_faust_app
from stream_app.kafka.limits import check_record
from stream_app.kafka.reader import TopicReader
from stream_app.kafka.transactions import TransactionBound
from stream_app.kafka.transport import RecordBatch
from stream_app.observability.health import Health
from stream_app.settings import Settings

if TYPE_CHECKING:  # OpenTelemetry is an extra
    from stream_app.observability.tracing import Tracing

log = logging.getLogger(__name__)

ROLE = "interests"
OPEN_RETRY_S = 1.0
EXPIRY, SWEEP, CLEANUP = "expiry", "sweep", "cleanup"
CLEANUP_LOOK_S = 60.0


class InterestsWorker:
    """Owns this worker's partitions: opens and closes them, feeds them, writes them out."""

    def __init__(self, settings: Settings, app: RoleApp, health: Health, tracing: Tracing | None) -> None:
        self._settings, self._app, self._health = settings, app, health
        self._tracing = tracing
        self._model = model_id(settings)
        self._inputs = sorted(app.transactional_topics)
        self._longest_delay_ms = int(1000 * max(settings.events.retry_delays_s, default=0.0))
        self._contents = IndexedContents(ContentIndex(settings, self._model))
        self._preparation = BatchPreparation(settings, self._contents)
        self._reader = TopicReader(
            settings, settings.topic_name("content-vectors"), self._contents.take, label="contents"
        )
        self._copies = CopySweep(settings, partial(self._moved, SWEEP))
        self._partitions: dict[int, InterestPartition] = {}
        self._standbys: dict[int, StandbyPartition] = {}
        self._bounds: dict[int, TransactionBound] = {}
        self._left = LeftDirectories(settings)
        self._assigned = False
        self._assigning = asyncio.Lock()  # an assignment given up for a newer one still cleans up
        self._computing = asyncio.Lock()  # one batch at a time: they share the processor and the index

    async def start(self) -> None:
        """Read the contents whole before the first event is taken."""
        self._health.waiting_for = "the content index"
        await self._app.read_whole(self._reader, self._health)
        interests = self._settings.interests
        self._app.background("flush", self._every(interests.flush_interval_s, "flush", self._flush))
        self._app.background(EXPIRY, self._every(interests.expiry_interval_s, EXPIRY, self._expire))
        self._app.background(SWEEP, self._every(interests.sweep_interval_s, SWEEP, self._sweep))
        look_s = min(CLEANUP_LOOK_S, max(interests.cleanup_delay_s, CLEANUP_LOOK_S / 60))
        self._app.background(CLEANUP, self._every(look_s, CLEANUP, self._clean_up))
        self._health.waiting_for = "an assignment"

    async def stop(self) -> None:
        """Close everything; the streams have come to rest."""
        await self._reader.stop()
        try:
            await self._close(set(self._partitions), set(self._standbys))
        except StateDirectoryError as error:
            # raised, it would keep the app from coming to rest; nothing is lost, the changelog has it
            log.critical("state could not be written out at the end: %s", error)

    # -- partitions come and go

    async def assign(self, actives: set[int], standbys: set[int]) -> None:
        """Serve these partitions and no others; those already open and sound stay open."""
        async with self._assigning:
            self._health.waiting_for = "recovery"
            gone = {p for p, open_ in self._partitions.items() if p not in actives or open_.lost}
            await self._close(gone, set(self._standbys) - standbys - actives)
            await asyncio.gather(*(self._open(p) for p in sorted(actives - self._partitions.keys())))
            for p in sorted(standbys - self._standbys.keys() - actives):
                self._standbys[p] = StandbyPartition(self._settings, p, self._app.stop_loudly)
            self._assigned = True
            log.info("serving %d partitions, %d standbys", len(actives), len(standbys))

    async def settle(self) -> None:
        """Everything in flight ends."""
        await asyncio.gather(*(p.settle() for p in self._partitions.values()))

    def positions(self) -> dict[TP, int | None]:
        """Where each open partition goes on in its inputs; None: no such topic."""
        return {tp: at for p in self._partitions.values() for tp, at in p.positions.items()}

    async def _open(self, number: int) -> None:
        standby = self._standbys.pop(number, None)
        directory = store_directory(self._settings, number)
        store = (
            await standby.release()
            if standby is not None
            else await asyncio.to_thread(
                PartitionStore, directory, self._settings.interests.write_buffer_bytes
            )
        )
        while True:
            partition = InterestPartition(
                self._settings,
                number,
                self._preparation,
                model=self._model,
                on_lost=self._rejoin,
                on_broken=self._app.stop_loudly,
                computing=self._computing,
                bound=self._bounds.setdefault(number, TransactionBound(self._settings)),
                tracing=self._tracing,
            )
            try:
                await partition.open(store, self._inputs, consumer_of(self._app), self._health.nearer)
            except (FencedError, TransactionError, BrokerUnavailableError, KafkaError) as error:
                # the broker is away: try again for as long as the partition is ours
                log.warning("partition %d cannot be opened yet: %s", number, error)
                await partition.close()
                await asyncio.sleep(OPEN_RETRY_S)
            except BaseException:
                await partition.close()
                await asyncio.to_thread(store.close)
                raise
            else:
                self._partitions[number] = partition
                return

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

    async def _committed(self, partition: int) -> dict[str, int | None]:
        offsets = await consumer_of(self._app).committed([TP(topic, partition) for topic in self._inputs])
        return {tp.topic: mark.offset for tp, mark in offsets.items()}

    def standby_positions(self) -> dict[TP, int]:
        """Where each warm copy has got to."""
        return dict(standby.position for standby in self._standbys.values())

    def _rejoin(self) -> None:
        consumer_of(self._app).request_rejoin()

    # -- batches

    async def handle(self, batch: RecordBatch) -> None:
        """Feed one batch of events to its partition."""
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
        watch = f"{batch.topic}[{batch.partition}]"
        self._health.expect(watch)
        try:
            await take(partition, batch)
        finally:
            self._health.progress(watch)

    def due_ms(self, record: ConsumerRecord) -> int:
        """When a retry is to be tried, ms: none waits longer than the longest delay, whatever its headers
        say."""
        latest: int = record.timestamp + self._longest_delay_ms
        return min(origin_of(record, record.topic, record.partition).not_before_ms, latest)

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
        """Remove the copies of erased users' events, if there are any."""
        asked = {number: users for number, p in self._partitions.items() if (users := p.unswept)}
        if not asked:
            return
        try:
            committed = {number: await self._committed(number) for number in asked}
            gone = await self._copies.sweep(asked, committed)
        except LATER as error:
            log.warning("copies of erased users' events cannot be removed yet: %s", error)
            return
        for number, copies in gone.items():
            partition = self._partitions.get(number)
            if partition is not None and copies:
                await partition.swept(copies, asked[number], partial(self._moved, SWEEP))

    async def _clean_up(self) -> None:
        """Remove what is left of partitions that have moved away."""
        if not self._assigned or self._assigning.locked():
            return  # what is not served now may be in a moment
        async with self._assigning:  # nor is anything opened meanwhile
            await finish(self._left.remove, self._partitions.keys() | self._standbys.keys())

    def _moved(self, name: str) -> None:
        self._health.progress(name)
        self._health.expect(name)


def create_app(settings: Settings, health: Health, tracing: Tracing | None = None) -> RoleApp:
    """The interests role's app, not started."""
    interests = settings.interests
    check_record(
        settings,
        f"interests.recent = {interests.recent}, interests.seen = {interests.seen}",
        row_dtype(settings.content.dimensions, interests.recent, interests.seen).itemsize,
    )
    events = [settings.topic_name(action.topic) for action in settings.events.actions]
    retries = settings.topic_name("events-retry")
    erasures = settings.topic_name("erasures")
    app = create_faust_app(
        settings,
        ROLE,
        batch_topics=[*events, retries, erasures],
        transactional=True,
        standby_replicas=settings.interests.standby_replicas,
    )
    # The table itself: Faust's assignor co-partitions its changelog with the events and places
    # standbys. Its records never go through Faust.
    app.Table(
        "interests",
        partitions=settings.kafka.partitions,
        changelog_topic=app.topic(
            settings.topic_name("interests"), partitions=settings.kafka.partitions, compacting=True
        ),
    )
    worker = InterestsWorker(settings, app, health, tracing)
    app.owner = worker
    app.standby_positions = worker.standby_positions
    app.starting.append(worker.start)
    app.stopping.append(worker.stop)
    app.delays[retries] = worker.due_ms

    @app.agent(app.batches([*events, retries]), name="events")  # type: ignore[untyped-decorator]  # faust is untyped
    async def events_agent(batches: Any) -> None:
        async for batch in batches:
            await _or_stop(app, worker.handle(batch))

    @app.agent(app.batches([erasures]), name="erasures")  # type: ignore[untyped-decorator]
    async def erasures_agent(batches: Any) -> None:
        async for batch in batches:
            await _or_stop(app, worker.handle_erasures(batch))

    return app


async def _or_stop(app: RoleApp, work: Awaitable[None]) -> None:
    """An error would only skip the batch (Faust acks what fails): it stops the worker instead.

    Nothing is lost then, since a batch's offset is committed in its transaction or not at all.
    """
    try:
        await work
    except Exception as error:
        log.critical("a batch could not be applied: %r", error)
        app.stop_loudly(error)
        raise
