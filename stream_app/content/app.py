"""The content role: ``content`` → text encoder → ``content-vectors``.

Each batch's vectors, its dead letters and its offset go out in one transaction of the partition that it
came from (:mod:`stream_app.kafka.fenced`): a worker that was taken for dead can overwrite no newer vector,
and bring back no deleted content.

What a content was before is on ``content-vectors`` itself: a worker follows it whole, and waits with each
batch until it has read what was committed before. Which contents its encoder has vectors of stands there,
too (:mod:`stream_app.content.coverage`): where the consumer group's offsets promise more than is there,
``content`` is read again from its beginning.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import msgspec
from msgspec.structs import replace

from stream_app.content.coverage import Mark, mark_key
from stream_app.content.encoder import TextEncoder
from stream_app.content.model import model_id, role_of
from stream_app.content.pipeline import ContentPipeline
from stream_app.content.published import PublishedContents
from stream_app.content.schema import ContentDecoder, Rejected
from stream_app.content.vectors import split_key
from stream_app.events.dead_letters import dead_letter, origin_of, records_in
from stream_app.hashing import model_code
from stream_app.kafka.clock import CLOCK
from stream_app.kafka.ends import Ends
from stream_app.kafka.errors import KafkaError
from stream_app.kafka.faust.app import RoleApp, consumer_of, create_faust_app
from stream_app.kafka.fenced import FencedPartition, FencedPartitions
from stream_app.kafka.partitions import partition_of
from stream_app.kafka.reader import TopicReader
from stream_app.kafka.records import KeyedRecord, Partition, RecordBatch
from stream_app.kafka.stage import Input
from stream_app.kafka.transactions import RECORD_BYTES, Output
from stream_app.kafka.written import extents
from stream_app.observability import metrics
from stream_app.observability.health import Health
from stream_app.settings import Settings
from stream_app.topics import DAY_MS

log = logging.getLogger(__name__)

ROLE = "content"
WATCH = "content encoding"
# Encoder batches between two signs of life, and in one record batch: a worker that is to stop, or that
# loses its partitions, first ends the record batch it is at.
CHUNK_BATCHES = 4
RECORD_BATCH_BATCHES = 32
MARK_S = 1.0
"""How often it is looked whether all that stands on ``content`` has been encoded, while that is asked."""
FORGET_S = 600.0
"""How often former vectors are looked for that have been kept long enough."""
AT_ONCE = 2_000
"""Former vectors that are given up in one transaction."""

P = ParamSpec("P")
R = TypeVar("R")


class ContentStage:
    """Encodes record batches and publishes what comes of them; owns partitions of ``content``."""

    def __init__(self, settings: Settings, health: Health, app: RoleApp) -> None:
        self._settings = settings
        self._health = health
        self._app = app
        self._model = model_id(settings)
        self._code = model_code(self._model)
        self._decoder = ContentDecoder(settings, CLOCK.latest_ms)
        self._content = settings.topic_name("content")
        self._vectors = settings.topic_name("content-vectors")
        self._room = settings.kafka.max_record_bytes - RECORD_BYTES
        self._dead_letters = settings.topic_name("events-dlq")
        self._chunk = CHUNK_BATCHES * settings.content.batch_size
        self._partitions = FencedPartitions(
            settings,
            app,
            self._content,
            group_role(settings),
            writes=[self._vectors, self._dead_letters],
        )
        # decoding and encoding leave the event loop free to answer the broker and the status pages
        self._thread = ThreadPoolExecutor(1, "encoder")
        self._pipeline: ContentPipeline
        self._published = PublishedContents(settings, self._model)
        self._reader = TopicReader(settings, self._vectors, self._follow, label="contents")
        self._ends = Ends(settings)
        self._partition_count = 0  # of `content`

    async def start(self) -> None:
        """Load the encoder and read what stands there. Raises ModelError or ConfigurationError."""
        self._health.waiting_for = "the encoder"
        encoder = await self._in_thread(TextEncoder, self._settings)
        self._pipeline = ContentPipeline(self._settings, encoder, self._published)
        log.info("encoding with %s", encoder.model)
        self._health.waiting_for = "the published contents"
        await self._app.read_whole(self._reader, self._health)
        self._app.background("marks", self._mark_now_and_then())
        self._app.background("former vectors", self._forget_now_and_then())
        self._health.waiting_for = "an assignment"

    async def stop(self) -> None:
        """Disconnect and end the encoder's thread."""
        await self._reader.stop()
        await self._ends.stop()
        self._thread.shutdown(wait=False, cancel_futures=True)
        await self._partitions.close()

    async def assign(self, actives: set[int], standbys: set[int]) -> None:
        """Fence these partitions of ``content``, and leave all others; then read what their former owners
        have published."""
        before = self._partitions.sound
        await self._partitions.assign(actives)
        published = await extents(self._settings, self._vectors)
        await self._reader.reach({tp: extent.end for tp, extent in published.items()})
        content = await extents(self._settings, self._content)
        self._partition_count = len(content)
        for number in sorted(actives - before):
            if (partition := self._partitions[number]) is not None:
                await self._begin(number, partition, content[Partition(self._content, number)].begin)

    async def _begin(self, number: int, partition: FencedPartition, first: int) -> None:
        """Go on where the group stands; at the first offset where what it has committed is not encoded."""
        if self._published.coverage.trusts(number) or partition.position is None:
            return
        if partition.position > first:
            log.warning(
                "%s[%d] was read to %d by this group, but the vectors of %s are not there: encoding anew",
                *(self._content, number, partition.position, self._model),
            )
        await partition.begin_at(first, [self._mark(partition, number, 0)])

    def _follow(self, records: Sequence[KeyedRecord]) -> None:
        self._published.apply((record.key, record.value) for record in records)
        metrics.CONTENT_MISSING.set(self._published.coverage.missing)

    async def settle(self) -> None:
        """Return once no transaction is on its way."""
        await self._partitions.settle()

    def positions(self) -> dict[Partition, int | None]:
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
        if (partition := self._partitions[batch.partition]) is None:
            return
        written = {tp: end for tp, end in partition.written.items() if tp.topic == self._vectors}
        await self._reader.reach(written)
        # 1. decode: the newest version of each content, and what is none
        decoded = await self._in_thread(self._decoder.decode, batch.records)
        # 2. encode
        contents = list(decoded.newest.items())
        for start in range(0, len(contents), self._chunk):
            if (partition := self._partitions[batch.partition]) is None:
                return
            chunk = dict(contents[start : start + self._chunk])
            for content_id, key, value in await self._in_thread(self._pipeline.records, chunk):
                outputs.append(partition.output(self._vectors, key, value, by=content_id))
            self._health.progress(WATCH)
            self._health.expect(WATCH)
        if (partition := self._partitions[batch.partition]) is None:
            return
        # 3. dead letters
        outputs += [self._reject(partition, batch, rejected) for rejected in decoded.rejected]
        # 4. all of it and the offset, or nothing
        await partition.commit(outputs, batch.end)

    def _mark(self, partition: FencedPartition, number: int, at: int) -> Output:
        """Says that all that stood in that partition of ``content`` has been encoded; ``at`` 0: that it
        will be."""
        mark = Mark(self._model, self._partition_count, at)
        return partition.output(self._vectors, mark_key(self._code, number), msgspec.json.encode(mark))

    async def _mark_now_and_then(self) -> None:
        idle: set[Partition] = set()
        while True:
            await asyncio.sleep(MARK_S)
            try:
                idle = await self._mark_idle(idle)
            except (KafkaError, TimeoutError) as error:
                log.warning("the broker does not say where %s ends: %r", self._content, error)

    async def _mark_idle(self, idle: set[Partition]) -> set[Partition]:
        """Mark the partitions that were ``idle`` at the last look and are so still; those that are now.

        Only where it is asked: before the first mark, and while other encoders have contents that this one
        has not. What it still has not when nothing is left to be read, it was not able to take.
        """
        now_ms, coverage = _now_ms(), self._published.coverage
        asked = {
            Partition(self._content, number)
            for number in self._partitions.sound
            if coverage.missing or number not in coverage.marks or not coverage.marks[number].at
        }
        if not asked:
            return set()
        ends, read = await self._ends.of(asked), self._app.positions()
        still = {tp for tp in asked if read.get(tp, 0) >= ends[tp]} - consumer_of(self._app).in_hand()
        for tp in still & idle:
            if (partition := self._partitions[tp.partition]) is not None:
                await partition.commit([self._mark(partition, tp.partition, now_ms - 2 * int(1000 * MARK_S))])
        return still

    async def _forget_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(FORGET_S)
            await self.forget_former(_now_ms())

    async def forget_former(self, now_ms: int) -> None:
        """Delete the former vectors that have been kept for ``content.former_days``, of the contents that
        belong to our partitions."""
        oldest = now_ms - int(self._settings.content.former_days * DAY_MS)
        by_partition: dict[int, list[tuple[bytes, bytes]]] = {}
        for key in self._published.outdated(oldest):
            if (place := split_key(key)) is not None and self._partition_count:
                number = partition_of(place.content_id, self._partition_count)
                by_partition.setdefault(number, []).append((place.content_id, key))
        for number, outdated in by_partition.items():
            for start in range(0, len(outdated), AT_ONCE):
                if (partition := self._partitions[number]) is not None:
                    await partition.commit(
                        partition.output(self._vectors, key, None, by=content_id)
                        for content_id, key in outdated[start : start + AT_ONCE]
                    )

    def _reject(self, partition: FencedPartition, batch: RecordBatch, rejected: Rejected) -> Output:
        record = batch.records[rejected.index]
        metrics.CONTENT_REJECTED.labels(rejected.reason.value).inc(records_in(record))
        metrics.DEAD_LETTERS.labels(rejected.reason.value).inc(records_in(record))
        origin = origin_of(record, batch.topic, batch.partition)
        key, value, headers = dead_letter(
            record, origin, rejected.reason, rejected.detail, _now_ms(), self._room
        )
        return partition.output(self._dead_letters, key, value, headers)

    async def _in_thread(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: call(*args, **kwargs))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def group_role(settings: Settings) -> str:
    """The role as the configured encoder's consumer group has it."""
    return role_of(model_id(settings))


def create_app(settings: Settings, health: Health) -> RoleApp:
    """The content role's app, not started."""
    limit = min(settings.kafka.batch_records, RECORD_BATCH_BATCHES * settings.content.batch_size)
    bounded = replace(settings, kafka=replace(settings.kafka, batch_records=limit))
    topic = settings.topic_name("content")
    app = create_faust_app(bounded, group_role(settings), batch_topics=[topic], transactional=True)
    stage = ContentStage(settings, health, app)
    app.serve(stage, {ROLE: Input([topic], stage.take, "a batch of contents could not be published")})
    return app
