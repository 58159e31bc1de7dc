"""The trainer role: learns from ``interests``, publishes models and co-engagement.

Whoever is assigned the one partition of ``models`` trains, in transactions of that partition's own: a
second trainer waits, and one that was taken for dead is refused by the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from stream_app.content.index import ContentIndex
from stream_app.content.model import model_id
from stream_app.errors import BrokerUnavailableError
from stream_app.interests.contents import IndexedContents
from stream_app.kafka.errors import KafkaError
from stream_app.kafka.faust.app import RoleApp, create_faust_app
from stream_app.kafka.fenced import FencedPartition, FencedPartitions
from stream_app.kafka.limits import check_record
from stream_app.kafka.reader import TopicReader
from stream_app.kafka.records import Partition, Record, RecordBatch
from stream_app.kafka.stage import Input
from stream_app.kafka.written import extents
from stream_app.learning.impressions_reader import ImpressionsReader
from stream_app.learning.neighbours_record import record_bytes
from stream_app.learning.reading import InterestsReader
from stream_app.learning.training import Training
from stream_app.observability import metrics
from stream_app.observability.health import Health
from stream_app.settings import Settings

log = logging.getLogger(__name__)

ROLE = "trainer"
WATCH = "learning"
PARTITION = 0
"""Of ``models``, which has one."""
SLICE = 100
"""Records that are learned from at a time: a few tenths of a second, after which a worker that is to stop
comes to rest."""
RETRY_S = 1.0
LAST_WORDS_S = 5.0
"""For publishing what was learned since the last time, before the partition is given up."""

T = TypeVar("T")


class Trainer:
    """What stands behind the role; owns the partition of ``models``."""

    def __init__(self, settings: Settings, app: RoleApp, health: Health) -> None:
        self._settings, self._app, self._health = settings, app, health
        self._interval = settings.learning.publish_interval_s
        self._contents = IndexedContents(ContentIndex(settings, model_id(settings)))
        self._partitions = FencedPartitions(
            settings,
            app,
            settings.topic_name("models"),
            ROLE,
            writes=[settings.topic_name("models"), settings.topic_name("co-engagement")],
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="learning")
        self._assigned = asyncio.Event()
        self._served: FencedPartition | None = None
        self._training: Training | None = None
        self._following: list[TopicReader] = []
        self._publishing = asyncio.Lock()

    async def start(self) -> None:
        """Contents are read before anything is learned, and followed by a trainer that waits, too."""
        self._health.waiting_for = "the content index"
        contents = self._settings.topic_name("content-vectors")
        reader = TopicReader(self._settings, contents, self._contents.take, label="contents")
        await self._app.read_whole(reader, self._health)
        self._app.background("training", self._run())
        self._health.waiting_for = "an assignment"

    async def stop(self) -> None:
        """Publish what was learned last, then disconnect."""
        await self._stop_reading()
        await self._last_words()
        self._thread.shutdown(wait=False, cancel_futures=True)
        for reader in self._app.readers:
            await reader.stop()
        await self._partitions.close()

    async def assign(self, actives: set[int], standbys: set[int]) -> None:
        """Fence the partition, or leave it."""
        await self._partitions.assign(actives)
        self._assigned.set()

    async def settle(self) -> None:
        """Before the partition is given up: what was learned is published first."""
        await self._last_words()
        await self._partitions.settle()

    def positions(self) -> dict[Partition, int | None]:
        """Where the partition is read on; nobody needs what stands there."""
        return self._partitions.positions()

    async def take(self, batch: RecordBatch) -> None:
        """Nothing: the subscription only says who trains. What stands there is read when training begins."""

    async def _run(self) -> None:
        """Train for as long as the partition is ours, and publish now and then."""
        while True:
            partition = self._partitions[PARTITION]
            if partition is not self._served:
                await self._stop_reading()
                self._training, self._served = None, partition
                if partition is not None:
                    await self._begin_or_not()
            wait_s = self._interval if partition is self._served else RETRY_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._assigned.wait(), wait_s)
            self._assigned.clear()
            if partition is not None and partition is self._partitions[PARTITION]:
                await self._publish()

    async def _begin_or_not(self) -> None:
        """Begin to train; where the broker is away, leave it for the next time."""
        self._nearer()
        try:
            await self._begin()
        except (KafkaError, BrokerUnavailableError) as error:
            log.warning("learning cannot begin yet: %r", error)
            self._training = self._served = None
        finally:
            self._health.progress(WATCH)

    def _nearer(self) -> None:
        self._health.progress(WATCH)
        self._health.expect(WATCH)

    async def _begin(self) -> None:
        """Read what stands there since the partition was fenced: nobody else writes it any more."""
        training = await self._in_thread(partial(Training, self._settings, self._contents))
        for name, take in (
            ("models", training.take_models),
            ("co-engagement", training.take_neighbours),
            ("content-stats", training.take_statistics),
        ):
            await self._read_once(name, take)
        # asked for after the statistics were read: what they hold stands before these
        written = await extents(self._settings, self._settings.topic_name("interests"))
        ends = {tp.partition: extent.end for tp, extent in written.items()}
        positions = await self._in_thread(partial(training.begin, ends))
        self._training = training
        # what was shown is known before what it led to is learned
        for reader in (
            ImpressionsReader(self._settings, self._take_impressions),
            InterestsReader(self._settings, self._learn, positions),
        ):
            await self._app.read_whole(reader, self._health)
            self._following.append(reader)

    async def _read_once(self, name: str, take: Callable[[Sequence[Record]], None]) -> None:
        reader = TopicReader(self._settings, self._settings.topic_name(name), take, label=name)
        reader.moved = self._nearer
        try:
            await reader.start()
        finally:
            await reader.stop()

    async def _learn(self, records: Sequence[Record]) -> None:
        training = self._training
        if training is None:
            return
        try:
            for start in range(0, len(records), SLICE):
                self._health.expect(WATCH)
                await self._in_thread(partial(training.learn, records[start : start + SLICE]))
                self._health.progress(WATCH)
        finally:
            # what was given up in a rebalance is no longer awaited either
            self._health.progress(WATCH)

    async def _take_impressions(self, records: Sequence[Record]) -> None:
        if (training := self._training) is not None:
            await self._in_thread(partial(training.take_impressions, records))

    async def _publish(self) -> None:
        """Publish what is news; a partition that gets lost over it is opened anew, and all is read again."""
        async with self._publishing:
            partition, training = self._partitions[PARTITION], self._training
            if partition is None or training is None or partition is not self._served:
                return
            now_ms = time.time_ns() // 1_000_000
            try:
                news = await self._in_thread(partial(training.publication, now_ms))
                name = self._settings.topic_name
                if news:
                    committed = await partition.commit(
                        partition.output(name(one.topic), one.key, one.value, one.headers) for one in news
                    )
                    if committed:
                        metrics.TRAINER_TIME.set(now_ms / 1000)
            except BaseException:
                self._served = None  # given up half-way: what was news then would never be published
                raise

    async def _last_words(self) -> None:
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await self._publish()
        except TimeoutError:
            log.warning("what was learned last could not be published within %.0f s", LAST_WORDS_S)

    async def _stop_reading(self) -> None:
        following, self._following = self._following, []
        for reader in following:
            self._app.readers.remove(reader)
            await reader.stop()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def create_app(settings: Settings, health: Health) -> RoleApp:
    """The trainer's app, not started."""
    neighbours = settings.learning.neighbours
    check_record(settings, f"learning.neighbours = {neighbours}", record_bytes(neighbours))
    models = settings.topic_name("models")
    app = create_faust_app(settings, ROLE, batch_topics=[models], transactional=True)
    trainer = Trainer(settings, app, health)
    app.serve(trainer, {ROLE: Input([models], trainer.take, "the trainer's assignment could not be read")})
    return app
