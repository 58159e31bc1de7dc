"""The ranker role: reads contents and statistics whole, follows ``interests``, publishes slates."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from stream_app.content.index import ContentIndex
from stream_app.content.model import model_id
from stream_app.kafka.faust.app import RoleApp, create_faust_app
from stream_app.kafka.fenced import FencedPartitions
from stream_app.kafka.reader import TopicReader
from stream_app.kafka.records import Partition, Record, RecordBatch
from stream_app.kafka.stage import Done, OpenInput
from stream_app.learning.impressions import FollowedImpressions
from stream_app.learning.impressions_reader import ImpressionsReader
from stream_app.observability import metrics
from stream_app.observability.health import Health
from stream_app.ranking.device import limit_threads
from stream_app.ranking.engine import RankingEngine
from stream_app.ranking.popularity import ContentStatistics
from stream_app.ranking.published import PublishedModel
from stream_app.recommendations.active import ActiveUsers
from stream_app.recommendations.deletions import DeletedContents
from stream_app.recommendations.inspect.server import Inspection
from stream_app.recommendations.ledger import SlateLedger
from stream_app.recommendations.pipeline import COLD_START_PARTITION, Change, RankerPipeline
from stream_app.recommendations.publish import SlatePublisher
from stream_app.recommendations.refresh import SlateRefresh
from stream_app.recommendations.rounds import Rounds
from stream_app.recommendations.traces import SlateTraces
from stream_app.recommendations.waiting import Round, Waiting
from stream_app.settings import Settings

if TYPE_CHECKING:  # OpenTelemetry is an extra
    from stream_app.observability.tracing import Tracing

log = logging.getLogger(__name__)

ROLE = "ranker"
WATCH = "ranking"


def create_app(settings: Settings, health: Health, tracing: Tracing | None = None) -> RoleApp:
    """The ranker's app, not started. Raises ConfigurationError for a device that is not there.

    Its offsets are committed in the transactions that carry the slates, never by Faust.
    """
    limit_threads(settings.ranking.threads)
    interests = settings.topic_name("interests")
    app = create_faust_app(settings, ROLE, batch_topics=[interests], transactional=True)
    ranker = Ranker(settings, app, health, tracing)
    app.serve(ranker, {ROLE: OpenInput([interests], ranker.take)})
    return app


class Ranker:
    """What stands behind the role's agent; owns partitions of ``interests``."""

    def __init__(self, settings: Settings, app: RoleApp, health: Health, tracing: Tracing | None) -> None:
        self._app = app
        self._health = health
        self._interval = settings.recommendations.cold_start_interval_s
        index = ContentIndex(settings, model_id(settings))
        statistics = ContentStatistics(settings, index)
        self._ledger = ledger = SlateLedger(settings)
        active = ActiveUsers(settings)
        impressions = FollowedImpressions(settings, ROLE)

        def forget(partition: int) -> None:
            ledger.forget(partition)
            active.forget(partition)
            self._impressions.leave(partition)
            impressions.shown.forget_partition(partition)

        self._partitions = FencedPartitions(
            settings,
            app,
            settings.topic_name("interests"),
            "slates",
            writes=[settings.topic_name("recommendations")],
            on_closed=forget,
        )
        engine = RankingEngine(settings, index, statistics, shown=impressions.shown)
        self._inspection = Inspection(settings, index) if settings.inspect.enabled else None
        self._traces = None if tracing is None else SlateTraces(tracing)
        told = [one.published for one in (self._traces, self._inspection) if one is not None]

        def committed(changes: Sequence[Change]) -> None:
            for tell in told:
                tell(changes)

        publisher = SlatePublisher(settings, self._partitions, ledger, committed, self._traces)
        published = PublishedModel()
        self._pipeline = RankerPipeline(
            settings,
            engine,
            publisher,
            self._progress,
            lambda: published.newest,
            ledger.shows,
            impressions.shown,
            active,
            self._traces,
        )
        self._deletions = DeletedContents(settings, index, ledger, self._partitions, self._pipeline)

        def learn(records: Sequence[Record]) -> None:
            index.apply((record.key, record.value) for record in records)
            self._deletions.learn(records)
            active.changed()

        def count(records: Sequence[Record]) -> None:
            statistics.apply((record.key, record.value) for record in records)
            active.changed()

        def note(records: Sequence[Record]) -> None:
            for user, contents in impressions.apply(records, self._impressions.is_news):
                metrics.ARM_SHOWN.labels(engine.arm_of(user)).inc(contents)
            active.changed()

        # of our own partitions' users alone, which are known once there is an assignment
        self._impressions = ImpressionsReader(settings, note, partitions=())
        self._readers = [
            self._impressions,
            TopicReader(settings, settings.topic_name("content-vectors"), learn, label="contents"),
            TopicReader(
                settings, settings.topic_name("content-stats"), count, label="statistics", prompt=False
            ),
        ]
        if (neighbours := engine.neighbours) is not None:

            def associate(records: Sequence[Record]) -> None:
                neighbours.apply((record.key, record.value) for record in records)
                if not self._complete:  # nobody is ranked yet, so they need not be gathered
                    engine.refresh()

            def follow(records: Sequence[Record]) -> None:
                published.apply((record.key, record.value, record.headers) for record in records)

            self._readers += [
                TopicReader(
                    settings,
                    settings.topic_name("co-engagement"),
                    associate,
                    label="co-engagement",
                    prompt=False,
                ),
                TopicReader(settings, settings.topic_name("models"), follow, label="the learned ranker"),
            ]
        if self._inspection is not None:
            titles = self._inspection.learn_titles
            self._readers.append(
                TopicReader(settings, settings.topic_name("content"), titles, label="titles")
            )
        self._rounds = Rounds(self._rank, Waiting(settings.ranking.queue_users, settings.ranking.batch_users))
        self._refresh = SlateRefresh(
            settings, active, self._pipeline, self._refreshable, lambda: self._rounds.idle
        )
        self._refreshes = settings.ranking.refresh_per_s > 0
        self._assigned = asyncio.Event()
        self._complete = False  # whether everything has been read once

    async def start(self) -> None:
        """Everything is read before the first user is ranked."""
        self._health.waiting_for = "the content index, the statistics and the learned ranker"
        for reader in self._readers:
            await self._app.read_whole(reader, self._health)
        self._complete = True
        if self._inspection is not None:
            await self._inspection.start()
            self._app.background("inspection", self._inspection.run())
        self._app.background("ranking", self._rounds.run(self._stop_on_error))
        self._app.background("cold-start slate", self._renew_cold_start())
        self._app.background("deleted contents", self._deletions.run())
        if self._refreshes:
            self._app.background("refresh", self._refresh.run())
        self._health.waiting_for = "an assignment"

    async def stop(self) -> None:
        """In the reverse order; the streams have come to rest."""
        if self._inspection is not None:
            await self._inspection.stop()
        for reader in self._readers:
            await reader.stop()
        self._pipeline.close()
        await self._partitions.close()

    async def assign(self, actives: set[int], standbys: set[int]) -> None:
        """Fence these partitions, and leave all others."""
        await self._partitions.assign(actives)
        self._impressions.follow(self._partitions.sound)
        self._assigned.set()
        self._deletions.look()

    async def settle(self) -> None:
        """Before partitions are given up: what was begun is published first."""
        await self._rounds.settle()
        await self._partitions.settle()

    def positions(self) -> dict[Partition, int | None]:
        """Where each partition is read on."""
        return self._partitions.positions()

    async def take(self, batch: RecordBatch, done: Done) -> None:
        """Let the batch's users be ranked; ``done`` is awaited once their slates are committed.

        Or at once, when its partition is lost: then whoever owns the partition next gets the batch. After
        an error, which stops the worker, it is not awaited: the batch is ranked again after the restart.
        """
        if not self._partitions.accepts(batch):
            await done()
            return
        metrics.BATCH_RECORDS.labels(ROLE).observe(len(batch.records))
        self._health.expect(WATCH)
        await self._rounds.add(batch, done)

    async def _rank(self, round_: Round, ranked: Callable[[], object]) -> None:
        self._health.expect(WATCH)  # those of this round may have been added before the last one ended
        if self._inspection is not None:
            self._inspection.received(round_.records)
        if self._traces is None:
            await self._pipeline.handle(round_, ranked)
        else:
            with self._traces.round(round_.records):  # of one round at a time
                await self._pipeline.handle(round_)
        self._health.progress(WATCH)
        if self._rounds.more:
            self._health.expect(WATCH)

    def _progress(self) -> None:
        self._health.progress(WATCH)
        if not self._rounds.idle:  # else what goes on was asked for by no event: none may follow for hours
            self._health.expect(WATCH)

    def _refreshable(self) -> set[int]:
        """Partitions of which it is known what everybody is shown: others' slates might be no news."""
        sound = self._partitions.sound
        return sound - self._ledger.unfilled(sound).keys()

    async def _renew_cold_start(self) -> None:
        """Keep the cold-start slate current, for as long as its partition is ours."""
        while True:
            if self._partitions[COLD_START_PARTITION] is not None:
                await self._pipeline.renew_cold_start()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._assigned.wait(), self._interval)
            self._assigned.clear()

    def _stop_on_error(self, error: Exception) -> None:
        log.critical("users could not be ranked: %r", error)
        self._app.stop_loudly(error)
