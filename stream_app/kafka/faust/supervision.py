"""Notices a worker that has stopped without an error: parts that have ended, records that nobody reads.

Faust and aiokafka keep their work in tasks and threads of their own. One that ends by a
cancellation, or an error that waits to be fetched by a call that never comes, leaves a process that
looks well and reads nothing. So once a second each part is looked at; and, because what is hung has
not ended, the end of every topic is asked for by a client of its own and compared with the
positions: where there is something to read, something must move.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

from aiokafka.errors import KafkaError

from stream_app.kafka.ends import ASK_S, Ends, Idle
from stream_app.kafka.faust.app import RoleApp
from stream_app.kafka.faust.transport import BatchConsumer, runs
from stream_app.kafka.records import Partition
from stream_app.observability import metrics
from stream_app.observability.health import BROKER, CONSUMER_THREAD, Health
from stream_app.observability.lag import LagGauge
from stream_app.settings import Settings

log = logging.getLogger(__name__)

LOOK_S = 1.0
ENDED_LOOKS = 5
"""Looks in a row that must find a part ended: a rebalance ends some of them and starts them again."""


async def supervise(settings: Settings, app: RoleApp, health: Health) -> None:
    """Look at ``app`` until cancelled; what is wrong is told to ``health``."""
    parts, movement = Parts(app, health), Movement(settings, app, health)
    try:
        await asyncio.gather(parts.watch(), movement.watch())
    finally:
        await movement.stop()


class Parts:
    """The threads and tasks that an app cannot go on without."""

    def __init__(self, app: RoleApp, health: Health) -> None:
        self._app, self._health = app, health
        self._ended: dict[str, int] = {}

    async def watch(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """Once: whatever was found ended in so many looks in a row fails the worker."""
        ended = set(self._now_ended())
        self._ended = {part: self._ended.get(part, 0) + 1 for part in ended}
        for part, looks in self._ended.items():
            if looks >= ENDED_LOOKS:
                self._health.fail(f"{part} has ended")

    def _now_ended(self) -> Iterator[str]:
        consumer: BatchConsumer | None = self._app._consumer
        if consumer is None or not consumer.started or self._app.should_stop:
            return
        yield from consumer.ended_parts()
        self._beat(consumer)
        yield from (f"agent {agent.name}" for agent in self._app.agents.values() if _ended(agent))
        recovery = self._app.tables.recovery
        if recovery.started and not runs(recovery, "_restart_recovery"):
            yield "the recovery of assignments"
        if not self._app.rebalancing and self._health.ready and not runs(self._app._fetcher, "_fetcher"):
            yield "Faust's fetch loop"

    def _beat(self, consumer: BatchConsumer) -> None:
        """Ask the consumer's thread for a sign of life."""
        self._health.expect(CONSUMER_THREAD)
        self._health.loops = [consumer.thread_loop]
        consumer.call_in_thread(lambda: self._health.progress(CONSUMER_THREAD))


class Movement:
    """Positions and ends of all that a worker reads; shows the lag, notices what does not move."""

    def __init__(self, settings: Settings, app: RoleApp, health: Health) -> None:
        self._app, self._health = app, health
        self._timeout_s = settings.observability.stall_timeout_s
        self._ends = Ends(settings)
        self._lag, self._standby_lag = LagGauge(metrics.CONSUMER_LAG), LagGauge(metrics.STANDBY_LAG)
        self._idle: dict[Partition, Idle] = {}
        self._standby_idle: dict[Partition, Idle] = {}
        self._looked = time.monotonic()

    async def watch(self) -> None:
        """For ever."""
        while True:
            self._health.expect(BROKER)
            await asyncio.sleep(ASK_S)
            events, topics = self._app.positions(), self._reader_positions()
            standbys = self._app.standby_positions()
            try:
                ends = await self._ends.of({*events, *topics, *standbys})
            except (KafkaError, TimeoutError) as error:
                log.warning("the broker does not say where topics end: %r", error)
                continue
            self._health.progress(BROKER)
            now = time.monotonic()
            # never more than a few seconds: between two looks the whole process may have stood still
            seconds, self._looked = min(now - self._looked, 2 * ASK_S), now
            if self._health.ready and not self._app.rebalancing:
                self._lag.show(_lags(events, ends))
                self._look(events | topics, ends, seconds)
            if self._app._consumer is not None:
                for circle in self._app._consumer.in_circles(self._timeout_s):
                    self._health.fail(circle)
            self._standby_lag.show(_lags(standbys, ends))
            self._look_at_standbys(standbys, ends, seconds)

    def _reader_positions(self) -> dict[Partition, int]:
        return {tp: at for reader in self._app.readers for tp, at in reader.positions().items()}

    def _look(
        self, positions: Mapping[Partition, int], ends: Mapping[Partition, int], seconds: float
    ) -> None:
        consumer: BatchConsumer = self._app.consumer
        in_hand = consumer.in_hand()
        self._idle = {tp: self._idle.get(tp) or Idle() for tp in positions}
        for tp, idle in self._idle.items():
            work = tp in in_hand or ends[tp] > positions[tp]
            if (tp in in_hand and self._health.busy) or consumer.holds(tp):
                continue  # its agent is at work, and watched; or it is not its time yet
            idle.look(work, positions[tp], consumer._committed_offset.get(tp) or 0, ends[tp], seconds)
            if idle.seconds > self._timeout_s:
                self._health.fail(
                    f"{tp.topic}[{tp.partition}] has records to read and has not moved for "
                    f"{idle.seconds:.0f} s"
                )

    def _look_at_standbys(
        self, positions: Mapping[Partition, int], ends: Mapping[Partition, int], seconds: float
    ) -> None:
        """A copy that falls behind endangers nothing that is served: it is said, by log and metric."""
        self._standby_idle = {tp: self._standby_idle.get(tp) or Idle() for tp in positions}
        for tp, idle in self._standby_idle.items():
            idle.look(ends[tp] > positions[tp], positions[tp], 0, ends[tp], seconds)
            if idle.seconds > self._timeout_s:
                idle.seconds = 0.0
                log.error(
                    "standby of %s[%d] is %d records behind and has not moved for %.0f s",
                    *(tp.topic, tp.partition, ends[tp] - positions[tp], self._timeout_s),
                )

    async def stop(self) -> None:
        """Disconnect."""
        await self._ends.stop()


def _lags(positions: Mapping[Partition, int], ends: Mapping[Partition, int]) -> dict[tuple[str, int], int]:
    return {(tp.topic, tp.partition): max(0, ends[tp] - at) for tp, at in positions.items()}


def _ended(agent: Any) -> bool:
    return any(actor.actor_task is not None and actor.actor_task.done() for actor in agent._actors)
