"""The Faust app of a role: our transport, our recovery, and Faust's settings in one place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import faust
from faust.serializers.schemas import Schema
from faust.transport.drivers.aiokafka import Transport as _DriverTransport

from stream_app.errors import StalledError
from stream_app.kafka.faust.agents import agent_of
from stream_app.kafka.faust.connection import faust_options
from stream_app.kafka.faust.membership import PLAIN, AgreeingAssignor
from stream_app.kafka.faust.recovery import PartitionTables
from stream_app.kafka.faust.transport import FAUST_LOG, BatchConsumer, BatchTransport
from stream_app.kafka.marks import Membership
from stream_app.kafka.reader import TopicReader
from stream_app.kafka.records import Partition, Record
from stream_app.kafka.stage import Input, OpenInput, Stage
from stream_app.observability.health import Health
from stream_app.settings import Settings

log = logging.getLogger(__name__)

METADATA_MAX_AGE_MS = 2_000
"""A topic that is deleted and created again is noticed by its metadata alone: aiokafka's 5 minutes
would leave it unread for so long."""

MAX_POLL_INTERVAL_S = 7 * 86_400.0
"""A worker that hangs is noticed by its own supervision, long before."""


class BatchSchema(Schema):  # type: ignore[misc]  # untyped base
    """Hands a :class:`RecordBatch` on as it is."""

    def loads_key(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> None:
        """Batches have no key."""

    def loads_value(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:
        """The batch itself."""
        return message.value


class RoleApp(faust.App):  # type: ignore[misc]  # untyped base
    """A Faust app whose batch topics arrive as record batches.

    What it does is a :class:`Stage`'s, see :meth:`serve`.
    """

    logger = FAUST_LOG

    batch_topics: frozenset[str]
    transactional_topics: frozenset[str]
    delays: dict[str, Callable[[Record, int], int]]
    """Batch topics whose records are held back: when each is due, by the broker's time (ms), which is the
    second argument when it is read. Within a partition their order is kept: one waits for those before it."""
    fetch_max_wait_ms: int
    protocol: str
    """What its members join the group by; read when they join."""
    batch_max_bytes: int
    generation: int
    """Of the group's assignment that is being served."""
    patience_s: float
    """With the group's coordinator, about claims."""
    revocations: int
    """How often an assignment was taken away. Its generation does not tell two apart: a follower that joins
    again is given what it had."""
    owner: Stage | None
    readers: list[TopicReader]
    """Topics that are followed whole."""
    standby_positions: Callable[[], Mapping[Partition, int]]
    """Where the warm copies of others' partitions are read on."""
    serving: list[Callable[[bool], None]]
    """Told True when an assignment is served, False when it is taken away."""
    _background: set[asyncio.Task[None]]
    _crashing: asyncio.Future[None] | None

    def serve(
        self,
        stage: Stage,
        inputs: Mapping[str, Input | OpenInput],
        *,
        delays: Mapping[str, Callable[[Record, int], int]] = MappingProxyType({}),
        standby_positions: Callable[[], Mapping[Partition, int]] = dict,
    ) -> None:
        """Let ``stage`` own the partitions and take the batches: ``inputs`` by the names of their agents."""
        self.owner = stage
        self.delays.update(delays)
        self.standby_positions = standby_positions
        for name, source in inputs.items():
            self.agent(self.batches(source.topics), name=name)(agent_of(source, self.stop_loudly))

    def declare_table(self, name: str, changelog: str, partitions: int) -> None:
        """Have the assignor keep a table's partitions together with the batch topics, and place standbys.

        The table's records never go through Faust.
        """
        topic = self.topic(changelog, partitions=partitions, compacting=True)
        self.Table(name, partitions=partitions, changelog_topic=topic)

    def batches(self, topics: Sequence[str]) -> Any:
        """A Faust topic over these batch topics: its agent iterates over RecordBatch values."""
        return self.topic(*topics, schema=BatchSchema(), allow_empty=True)

    def stop_loudly(self, error: BaseException) -> None:
        """Stop the whole worker: an invariant is broken. Never returns to normal.

        The first error counts: what else breaks while the app stops would only disturb that.
        """
        if self._crashing is None:
            self._crashing = asyncio.ensure_future(self.crash(error))

    async def read_whole(self, reader: TopicReader, health: Health) -> None:
        """Start a reader: return once it has read its topic. The worker stops when it fails later on."""
        reader.moved = health.nearer
        await reader.start()
        self.readers.append(reader)
        reader.failed.add_done_callback(self._stop_on_failure)

    def _stop_on_failure(self, failed: asyncio.Future[None]) -> None:
        if not failed.cancelled() and (error := failed.exception()) is not None:
            self.stop_loudly(error)

    def background(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` beside the streams, until they have come to rest. When it ends before that, by an
        error or without one, the worker stops."""
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background_ended)

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        if task in self._background:
            self._background.discard(task)
            error = None if task.cancelled() else task.exception()
            log.critical("background work %r ended: %r", task.get_name(), error)
            self.stop_loudly(error or StalledError(f"{task.get_name()} has ended"))

    async def _end_background(self) -> None:
        tasks, self._background = self._background, set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def assignment(self) -> set[Partition]:
        """The partitions that the group has assigned to this worker, of all topics."""
        return {Partition(*tp) for tp in self.consumer.assignment()}

    def membership(self) -> Membership:
        """Under which the assignment that is being served was made."""
        return consumer_of(self).membership(self.generation)

    def positions(self) -> dict[Partition, int]:
        """Where each assigned partition of the batch topics is read on."""
        consumer: BatchConsumer | None = self._consumer
        return {} if consumer is None else consumer.positions()

    def _create_directories(self) -> None:
        """Faust's own data directory stays away: our state has a place of its own."""

    async def on_start(self) -> None:
        if self.owner is not None:
            await self.owner.start()
        await super().on_start()

    async def _on_partitions_revoked(self, revoked: set[Any]) -> None:
        self.revocations += 1
        for tell in self.serving:
            tell(False)
        await super()._on_partitions_revoked(revoked)  # the streams come to rest here
        if self.owner is not None:
            await self.owner.settle()

    def on_rebalance_end(self) -> None:
        super().on_rebalance_end()
        for tell in self.serving:
            tell(True)

    async def on_stop(self) -> None:
        for tell in self.serving:
            tell(False)
        await super().on_stop()  # the streams come to rest here
        await self._end_background()
        if self.owner is not None:
            await self.owner.stop()

    async def stop(self) -> None:
        """Come to rest, also after a crash."""
        if self.crashed:
            self._release_agents()
        try:
            await super().stop()
        finally:
            self._release_agents()

    def _release_agents(self) -> None:
        # Faust starts an actor that is cancelled or fails anew, as after a rebalance, until its agent has
        # been told to stop. A crash tells nobody, and the stop and the event loop would wait for ever.
        for agent in self.agents.values():
            agent._stopped.set()
            if agent.supervisor is not None:
                agent.supervisor._stopped.set()


def create_faust_app(
    settings: Settings,
    role: str,
    *,
    batch_topics: Sequence[str],
    transactional: bool = False,
    standby_replicas: int = 0,
) -> RoleApp:
    """The app of one role, not started; binds nothing at import or here.

    ``batch_topics`` are full topic names. With ``transactional`` their offsets are committed by
    the role's own Kafka transactions and never by Faust.
    """
    kafka = settings.kafka
    app = RoleApp(
        settings.group(role),
        **faust_options(settings),
        store="memory://",
        TableManager=PartitionTables,
        PartitionAssignor=AgreeingAssignor,
        autodiscover=False,
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=kafka.fetch_max_bytes,
        broker_max_poll_records=kafka.batch_records,
        broker_session_timeout=kafka.session_timeout_s,
        broker_heartbeat_interval=min(3.0, kafka.session_timeout_s / 3),
        broker_request_timeout=max(kafka.request_timeout_s, kafka.session_timeout_s),
        broker_commit_interval=1.0,
        consumer_metadata_max_age_ms=METADATA_MAX_AGE_MS,
        # aiokafka leaves the group when nothing is fetched for this long: in a long recovery nothing is
        broker_max_poll_interval=MAX_POLL_INTERVAL_S,
        # An unresponsive broker is retried for ever by aiokafka; our own watch decides on stalls.
        stream_wait_empty=True,
        stream_buffer_maxsize=kafka.buffered_batches,
        stream_recovery_delay=0.0,
        table_standby_replicas=standby_replicas,
        loghandlers=[],
    )
    app.batch_topics = frozenset(batch_topics)
    app.transactional_topics = frozenset(batch_topics if transactional else ())
    app.delays = {}
    app.fetch_max_wait_ms = kafka.fetch_max_wait_ms
    app.protocol = PLAIN
    app.batch_max_bytes = kafka.batch_max_bytes
    app.generation, app.revocations = -1, 0
    app.patience_s = kafka.transaction_timeout_s / 2
    app.owner = None
    app.serving = []
    app.readers, app._background, app._crashing = [], set(), None
    app.standby_positions = dict
    app.transport = BatchTransport(app.conf.broker_consumer, app, app.loop)
    app.producer_transport = _DriverTransport(app.conf.broker_producer, app, app.loop)
    return app


def consumer_of(app: RoleApp) -> BatchConsumer:
    """The app's consumer, typed."""
    consumer: BatchConsumer = app.consumer
    return consumer
