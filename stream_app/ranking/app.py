"""The ranker role: reads contents and statistics whole, follows ``interests``, publishes slates."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from aiokafka import ConsumerRecord

from stream_app.content.index import ContentIndex
from stream_app.content.model import model_id
from stream_app.kafka.app import RoleApp, create_faust_app
from stream_app.kafka.reader import TopicReader
from stream_app.kafka.transport import RecordBatch
from stream_app.ranking.engine import RankingEngine
from stream_app.ranking.pipeline import RankerPipeline
from stream_app.ranking.popularity import ContentStatistics
from stream_app.recommendations.publish import SlatePublisher
from stream_app.settings import Settings

Apply = Callable[[Iterable[tuple[bytes | None, bytes | None]]], None]


def create_app(settings: Settings) -> RoleApp:
    """The Faust app of the ranker, not started. Raises ConfigurationError for a device that is not there.

    Its offsets are committed by Faust once a batch's slates are acknowledged: a crash ranks a batch
    again, which at worst repeats a slate.
    """
    interests = settings.topic_name("interests")
    app = create_faust_app(settings, "ranker", batch_topics=[interests])
    index = ContentIndex(settings, model_id(settings))
    statistics = ContentStatistics(settings, index)
    publisher = SlatePublisher(settings)
    pipeline = RankerPipeline(settings, RankingEngine(settings, index, statistics), publisher)
    role = _Ranker(settings, app, pipeline, publisher, index, statistics)
    app.owner = role
    app.starting.append(role.start)
    app.stopping.append(role.stop)

    @app.agent(app.batches([interests]), concurrency=1)  # type: ignore[untyped-decorator]  # faust is untyped
    async def rank(batches: AsyncIterator[RecordBatch]) -> None:
        async for batch in batches:
            await role.rank(batch)

    return app


class _Ranker:
    """What the role runs beside its agent; also its partitions' owner (there is no state to open)."""

    def __init__(
        self,
        settings: Settings,
        app: RoleApp,
        pipeline: RankerPipeline,
        publisher: SlatePublisher,
        index: ContentIndex,
        statistics: ContentStatistics,
    ) -> None:
        self._app = app
        self._pipeline = pipeline
        self._publisher = publisher
        self._interval = settings.recommendations.cold_start_interval_s
        self._readers = [
            TopicReader(settings, settings.topic_name(topic), _pairs(apply), label=label)
            for topic, apply, label in (
                ("content-vectors", index.apply, "contents"),
                ("content-stats", statistics.apply, "statistics"),
            )
        ]
        self._renewal: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Everything is read before the first user is ranked."""
        await self._publisher.start()
        for reader in self._readers:
            await reader.start()
            reader.failed.add_done_callback(self._stop_on_failure)
        self._renewal = asyncio.create_task(self._renew(), name="cold-start slate")

    async def stop(self) -> None:
        """In the reverse order."""
        if self._renewal is not None:
            self._renewal.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewal
        for reader in self._readers:
            await reader.stop()
        await self._pipeline.settle()
        self._pipeline.close()
        await self._publisher.stop()

    async def assign(self, actives: set[int], standbys: set[int]) -> None:
        """Another ranker may have published for these users since: nothing is known to be unchanged."""
        self._publisher.forget()

    async def settle(self) -> None:
        """Before partitions are given up."""
        await self._pipeline.settle()

    async def rank(self, batch: RecordBatch) -> None:
        """Rank and publish one batch; returning acknowledges it.

        No error leaves this method: Faust would acknowledge the batch. Whatever the pipeline does not
        deal with itself stops the worker, the batch unacknowledged, and it is ranked after the restart.
        """
        work = asyncio.ensure_future(self._pipeline.handle(batch.records))
        try:
            # a worker that stops finishes what it began, or the batch would count as ranked
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            if (error := work.exception()) is not None:
                self._app.stop_loudly(error)
            raise
        except Exception as error:  # noqa: BLE001  # see above
            self._app.stop_loudly(error)
            await asyncio.get_running_loop().create_future()  # until this agent is cancelled

    async def _renew(self) -> None:
        """Keep the cold-start slate current. Every ranker does: they compute the same one from the same
        topics, each publishes it only when it changed, and the newest on the topic counts."""
        try:
            while True:
                await self._pipeline.renew_cold_start()
                await asyncio.sleep(self._interval)
        except Exception as error:  # noqa: BLE001  # a renewal that ended silently would go unnoticed
            self._app.stop_loudly(error)

    def _stop_on_failure(self, failed: asyncio.Future[None]) -> None:
        if not failed.cancelled() and (error := failed.exception()) is not None:
            self._app.stop_loudly(error)


def _pairs(apply: Apply) -> Callable[[Sequence[ConsumerRecord]], None]:
    """``apply`` for (key, value) pairs as one for Kafka records."""
    return lambda records: apply((record.key, record.value) for record in records)
