"""The ranker role: reads contents and statistics whole, follows ``interests``, publishes slates."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from aiokafka import ConsumerRecord

from stream_app.content.index import ContentIndex
from stream_app.content.model import model_id
from stream_app.kafka.app import RoleApp, create_faust_app
from stream_app.kafka.reader import TopicReader
from stream_app.kafka.transport import RecordBatch
from stream_app.observability.health import Health
from stream_app.ranking.device import limit_threads
from stream_app.ranking.engine import RankingEngine
from stream_app.ranking.popularity import ContentStatistics
from stream_app.recommendations.pipeline import RankerPipeline
from stream_app.recommendations.publish import SlatePublisher
from stream_app.recommendations.rounds import Done, Rounds
from stream_app.settings import Settings

log = logging.getLogger(__name__)

ROLE = "ranker"
WATCH = "ranking"
WAITING_BATCHES = 4
"""Batches that may wait for the next round. Four of the default size (8 MiB) hold fewer users than
``ranking.queue_users``: a backlog alone gives nobody the cheap list."""

Apply = Callable[[Iterable[tuple[bytes | None, bytes | None]]], None]


def create_app(settings: Settings, health: Health) -> RoleApp:
    """The ranker's app, not started. Raises ConfigurationError for a device that is not there.

    Its offsets are committed by Faust once a batch's slates are acknowledged: a crash ranks a batch
    again, which at worst repeats a slate.
    """
    limit_threads(settings.ranking.threads)
    interests = settings.topic_name("interests")
    app = create_faust_app(settings, ROLE, batch_topics=[interests])
    app.owner = ranker = Ranker(settings, app, health)
    app.starting.append(ranker.start)
    app.stopping.append(ranker.stop)

    @app.agent(app.batches([interests]), name=ROLE)  # type: ignore[untyped-decorator]  # faust is untyped
    async def rank(stream: Any) -> None:
        # Faust acks a batch once its agent goes on; here only what has been published is acked
        acked_here = stream.noack()
        async for event in acked_here.events():
            await ranker.take(event.value, partial(acked_here.ack, event))

    return app


class Ranker:
    """What stands behind the role's agent; the owner of partitions without state."""

    def __init__(self, settings: Settings, app: RoleApp, health: Health) -> None:
        self._app = app
        self._health = health
        self._interval = settings.recommendations.cold_start_interval_s
        index = ContentIndex(settings, model_id(settings))
        statistics = ContentStatistics(settings, index)
        self._publisher = SlatePublisher(settings)
        engine = RankingEngine(settings, index, statistics)
        self._pipeline = RankerPipeline(settings, engine, self._publisher, self._progress)
        self._readers = [
            TopicReader(settings, settings.topic_name(topic), _pairs(apply), label=label)
            for topic, apply, label in (
                ("content-vectors", index.apply, "contents"),
                ("content-stats", statistics.apply, "statistics"),
            )
        ]
        self._rounds: Rounds[RecordBatch] = Rounds(self._rank, WAITING_BATCHES)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Everything is read before the first user is ranked."""
        self._health.waiting_for = "the content index and the statistics"
        await self._publisher.start()
        for reader in self._readers:
            await reader.start()
            reader.failed.add_done_callback(self._stop_on_failure)
        self._tasks = [
            asyncio.create_task(self._rounds.run(self._stop_on_error), name="ranking"),
            asyncio.create_task(self._renew(), name="cold-start slate"),
        ]
        self._health.waiting_for = "an assignment"

    async def stop(self) -> None:
        """In the reverse order; the streams have come to rest."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for reader in self._readers:
            await reader.stop()
        self._pipeline.close()
        await self._publisher.stop()

    async def assign(self, actives: set[int], standbys: set[int]) -> None:
        """Another ranker may have published for these users since: nothing is known to be unchanged."""
        self._publisher.forget()

    async def settle(self) -> None:
        """Before partitions are given up: what was begun is published first."""
        await self._rounds.settle()

    async def take(self, batch: RecordBatch, done: Done) -> None:
        """Let the batch's users be ranked; ``done`` is awaited once their slates are acknowledged.

        After an error, which stops the worker, it is not: the batch is ranked again after the restart.
        """
        self._health.expect(WATCH)
        await self._rounds.add(batch, done)

    async def _rank(self, batches: Sequence[RecordBatch]) -> None:
        self._health.expect(WATCH)  # those of this round may have been added before the last one ended
        await self._pipeline.handle([record for batch in batches for record in batch.records])
        self._health.progress(WATCH)

    def _progress(self) -> None:
        self._health.progress(WATCH)
        self._health.expect(WATCH)

    async def _renew(self) -> None:
        """Keep the cold-start slate current. Every ranker does: they compute the same one from the same
        topics, each publishes it only when it changed, and the newest on the topic counts."""
        try:
            while True:
                await self._pipeline.renew_cold_start()
                await asyncio.sleep(self._interval)
        except Exception as error:  # noqa: BLE001  # a renewal that ended silently would go unnoticed
            log.critical("the cold-start slate could not be renewed: %r", error)
            self._app.stop_loudly(error)

    def _stop_on_error(self, error: Exception) -> None:
        log.critical("users could not be ranked: %r", error)
        self._app.stop_loudly(error)

    def _stop_on_failure(self, failed: asyncio.Future[None]) -> None:
        if not failed.cancelled() and (error := failed.exception()) is not None:
            self._app.stop_loudly(error)


def _pairs(apply: Apply) -> Callable[[Sequence[ConsumerRecord]], None]:
    """``apply`` for (key, value) pairs as one for Kafka records."""
    return lambda records: apply((record.key, record.value) for record in records)
