"""The content role: ``content`` → text encoder → ``content-vectors``.

Each batch's vectors, its dead letters and its offset go out in one transaction of the partition that it
came from (:mod:`stream_app.kafka.fenced`): a worker that was taken for dead can overwrite no newer vector,
and bring back no deleted content.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from faust.types import TP
from msgspec.structs import replace

from stream_app.content.encoder import TextEncoder
from stream_app.content.model import model_id
from stream_app.content.pipeline import ContentPipeline
from stream_app.content.schema import ContentDecoder, Rejected
from stream_app.events.dead_letters import dead_letter, origin_of
from stream_app.hashing import model_code
from stream_app.kafka.app import RoleApp, create_faust_app
from stream_app.kafka.fenced import FencedPartition, FencedPartitions
from stream_app.kafka.transactions import RECORD_BYTES, Output
from stream_app.kafka.transport import RecordBatch
from stream_app.observability import metrics
from stream_app.observability.health import Health
from stream_app.settings import Settings

log = logging.getLogger(__name__)

ROLE = "content"
WATCH = "content encoding"
# Encoder batches between two signs of life, and in one record batch: a worker that is to stop, or that
# loses its partitions, first ends the record batch it is at.
CHUNK_BATCHES = 4
RECORD_BATCH_BATCHES = 32

P = ParamSpec("P")
R = TypeVar("R")


class ContentStage:
    """Encodes record batches and publishes what comes of them; owns partitions of ``content``."""

    def __init__(self, settings: Settings, health: Health, app: RoleApp) -> None:
        self._settings = settings
        self._health = health
        self._decoder = ContentDecoder(settings)
        self._vectors = settings.topic_name("content-vectors")
        self._room = settings.kafka.max_record_bytes - RECORD_BYTES
        self._dead_letters = settings.topic_name("events-dlq")
        self._chunk = CHUNK_BATCHES * settings.content.batch_size
        self._partitions = FencedPartitions(
            settings,
            app,
            settings.topic_name("content"),
            group_role(settings),
            writes=[self._vectors, self._dead_letters],
        )
        # decoding and encoding leave the event loop free to answer the broker and the status pages
        self._thread = ThreadPoolExecutor(1, "encoder")
        self._pipeline: ContentPipeline

    async def start(self) -> None:
        """Load the encoder. Raises ModelError or ConfigurationError."""
        self._health.waiting_for = "the encoder"
        encoder = await self._in_thread(TextEncoder, self._settings)
        self._pipeline = ContentPipeline(self._settings, encoder)
        log.info("encoding with %s", encoder.model)
        self._health.waiting_for = "an assignment"

    async def stop(self) -> None:
        """Disconnect and end the encoder's thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        await self._partitions.close()

    async def assign(self, actives: set[int], standbys: set[int]) -> None:
        """Fence these partitions of ``content``, and leave all others."""
        await self._partitions.assign(actives)

    async def settle(self) -> None:
        """Return once no transaction is on its way."""
        await self._partitions.settle()

    def positions(self) -> dict[TP, int | None]:
        """Where each partition is read on."""
        return self._partitions.positions()

    async def take(self, batch: RecordBatch) -> None:
        """Return once everything that the batch causes is committed together with its offset.

        Or once it is dropped, when its partition is lost: then whoever owns the partition next gets it.
        """
        if not self._partitions.accepts(batch):
            return
        metrics.BATCH_RECORDS.labels(ROLE).observe(len(batch.records))
        self._health.expect(WATCH)
        try:
            await self._take(batch)
        finally:
            # a batch given up in a rebalance is no longer awaited either
            self._health.progress(WATCH)

    async def _take(self, batch: RecordBatch) -> None:
        outputs: list[Output] = []
        # 1. decode: the newest version of each content, and what is none
        decoded = await self._in_thread(self._decoder.decode, batch.records)
        # 2. encode
        contents = list(decoded.newest.items())
        for start in range(0, len(contents), self._chunk):
            if (partition := self._partitions[batch.partition]) is None:
                return
            chunk = dict(contents[start : start + self._chunk])
            for key, value in await self._in_thread(self._pipeline.records, chunk):
                outputs.append(partition.output(self._vectors, key, value))
            self._health.progress(WATCH)
            self._health.expect(WATCH)
        if (partition := self._partitions[batch.partition]) is None:
            return
        # 3. dead letters
        outputs += [self._reject(partition, batch, rejected) for rejected in decoded.rejected]
        # 4. all of it and the offset, or nothing
        await partition.commit(outputs, batch.end)

    def _reject(self, partition: FencedPartition, batch: RecordBatch, rejected: Rejected) -> Output:
        record = batch.records[rejected.index]
        metrics.CONTENT_REJECTED.labels(rejected.reason.value).inc()
        metrics.DEAD_LETTERS.labels(rejected.reason.value).inc()
        origin = origin_of(record, batch.topic, batch.partition)
        now_ms = time.time_ns() // 1_000_000
        key, value, headers = dead_letter(
            record, origin, rejected.reason, rejected.detail, now_ms, self._room
        )
        return partition.output(self._dead_letters, key, value, headers)

    async def _in_thread(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: call(*args, **kwargs))


def group_role(settings: Settings) -> str:
    """The role as its consumer group has it: one group a model, so that a new model starts at the beginning
    of ``content`` and encodes all that stands there anew."""
    return f"{ROLE}-{model_code(model_id(settings)):08x}"


def create_app(settings: Settings, health: Health) -> RoleApp:
    """The content role's app, not started."""
    limit = min(settings.kafka.batch_records, RECORD_BATCH_BATCHES * settings.content.batch_size)
    bounded = replace(settings, kafka=replace(settings.kafka, batch_records=limit))
    topic = settings.topic_name("content")
    app = create_faust_app(bounded, group_role(settings), batch_topics=[topic], transactional=True)
    app.owner = stage = ContentStage(settings, health, app)
    app.starting.append(stage.start)
    app.stopping.append(stage.stop)

    @app.agent(app.batches([topic]), name=ROLE)  # type: ignore[untyped-decorator]  # faust is untyped
    async def encode(batches: Any) -> None:
        # Faust acks a batch even when its agent fails, but commits nothing: that is the transactions' part
        async for batch in batches:
            try:
                await stage.take(batch)
            except Exception as error:
                log.critical("a batch of contents could not be published: %r", error)
                app.stop_loudly(error)
                raise

    return app
