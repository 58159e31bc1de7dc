"""The content role: ``content`` → text encoder → ``content-vectors``."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError
from msgspec.structs import replace

from stream_app.content.encoder import TextEncoder
from stream_app.content.model import model_id
from stream_app.content.pipeline import ContentPipeline
from stream_app.content.schema import ContentDecoder, Rejected
from stream_app.errors import BrokerUnavailableError
from stream_app.events.dead_letters import dead_letter, origin_of
from stream_app.hashing import model_code
from stream_app.kafka.app import RoleApp, create_faust_app
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
SEND_BATCH_BYTES = 262_144

P = ParamSpec("P")
R = TypeVar("R")


class ContentStage:
    """Encodes record batches and publishes what comes of them."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings = settings
        self._health = health
        self._decoder = ContentDecoder(settings)
        self._vectors = settings.topic_name("content-vectors")
        self._dead_letters = settings.topic_name("events-dlq")
        self._chunk = CHUNK_BATCHES * settings.content.batch_size
        # decoding and encoding leave the event loop free to answer the broker and the status pages
        self._thread = ThreadPoolExecutor(1, "encoder")
        self._pipeline: ContentPipeline
        self._producer: AIOKafkaProducer

    async def start(self) -> None:
        """Load the encoder and connect. Raises ModelError, ConfigurationError, BrokerUnavailableError."""
        self._health.waiting_for = "the encoder"
        encoder = await self._in_thread(TextEncoder, self._settings)
        self._pipeline = ContentPipeline(self._settings, encoder)
        kafka = self._settings.kafka
        self._producer = AIOKafkaProducer(
            bootstrap_servers=kafka.broker,
            client_id=f"{kafka.app_id}-{ROLE}",
            enable_idempotence=True,
            linger_ms=2,
            max_batch_size=SEND_BATCH_BYTES,
            request_timeout_ms=int(kafka.request_timeout_s * 1000),
        )
        try:
            await self._producer.start()
        except KafkaConnectionError:
            raise BrokerUnavailableError(f"no Kafka broker answers at {kafka.broker}") from None
        log.info("encoding with %s", encoder.model)
        self._health.waiting_for = "an assignment"

    async def stop(self) -> None:
        """Disconnect and end the encoder's thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if hasattr(self, "_producer"):
            await self._producer.stop()

    async def take(self, batch: RecordBatch) -> None:
        """Return once everything that the batch causes stands on the broker.

        A batch that is taken again (after a crash before its offset was committed) gives the same
        records under the same keys. Any exception means that the batch must not be acked.
        """
        metrics.BATCH_RECORDS.labels(ROLE).observe(len(batch.records))
        self._health.expect(WATCH)
        try:
            await self._take(batch)
        finally:
            # a batch given up in a rebalance is no longer awaited either
            self._health.progress(WATCH)

    async def _take(self, batch: RecordBatch) -> None:
        sent: list[asyncio.Future[Any]] = []
        # 1. decode: the newest version of each content, and what is none
        decoded = await self._in_thread(self._decoder.decode, batch.records)
        # 2. encode, and send while the next chunk is encoded
        contents = list(decoded.newest.items())
        for start in range(0, len(contents), self._chunk):
            chunk = dict(contents[start : start + self._chunk])
            for key, value in await self._in_thread(self._pipeline.records, chunk):
                sent.append(await self._producer.send(self._vectors, value, key=key))
            self._health.progress(WATCH)
            self._health.expect(WATCH)
        # 3. dead letters
        sent += [await self._reject(batch, rejected) for rejected in decoded.rejected]
        # 4. the broker has it all
        await asyncio.gather(*sent)

    async def _reject(self, batch: RecordBatch, rejected: Rejected) -> asyncio.Future[Any]:
        record = batch.records[rejected.index]
        metrics.CONTENT_REJECTED.labels(rejected.reason.value).inc()
        metrics.DEAD_LETTERS.labels(rejected.reason.value).inc()
        origin = origin_of(record, batch.topic, batch.partition)
        now_ms = time.time_ns() // 1_000_000
        key, value, headers = dead_letter(record, origin, rejected.reason, rejected.detail, now_ms)
        future: asyncio.Future[Any] = await self._producer.send(
            self._dead_letters, value, key=key, headers=headers
        )
        return future

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
    app = create_faust_app(bounded, group_role(settings), batch_topics=[topic])
    stage = ContentStage(settings, health)
    app.starting.append(stage.start)
    app.stopping.append(stage.stop)

    @app.agent(app.batches([topic]), name=ROLE)  # type: ignore[untyped-decorator]  # faust is untyped
    async def encode(stream: Any) -> None:
        # Faust acks a batch even when its agent fails; here only what has been taken is acked
        acked_here = stream.noack()
        async for event in acked_here.events():
            try:
                await stage.take(event.value)
            except Exception as error:
                log.critical("a batch of contents could not be published: %r", error)
                app.stop_loudly(error)
                raise
            await acked_here.ack(event)

    return app
