"""Recovery in Faust's place: partitions are opened by their owner, not record by record.

Faust's own recovery sends every changelog record through the per-message path (3,300 to 20,000
records a second), counts records instead of positions (so it hangs on transaction markers), and
knows nothing of fencing. Here an assignment is handed to the app's :class:`Stage`, which opens
its partitions (fence, then changelog, see ``interests/partition.py``); only then do the streams
seek to the committed offsets and flow.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiokafka.errors import IllegalStateError
from faust.tables.manager import TableManager
from faust.tables.recovery import RebalanceAgain, Recovery, ServiceStopped
from mode import Service

from stream_app.kafka.faust.transport import FAUST_LOG

log = logging.getLogger(__name__)

AGAIN_S = 0.5


class PartitionRecovery(Recovery):  # type: ignore[misc]  # untyped base
    """Has the app's stage open an assignment's partitions, then lets the streams flow."""

    logger = FAUST_LOG

    _revocations = -1

    async def on_rebalance(self, *args: Any, **named: Any) -> None:
        await super().on_rebalance(*args, **named)
        self._revocations = self.app.revocations

    @Service.task  # type: ignore[untyped-decorator]  # mode is untyped
    async def _restart_recovery(self) -> None:
        while not self.should_stop:
            if await self.wait_for_stopped(self.signal_recovery_start):
                return
            self.signal_recovery_start.clear()
            generation = self._generation_id
            if self._revocations != self.app.revocations:
                continue  # given up before it was begun; the next assignment is on its way
            try:
                # a role without a table owns partitions of its input
                own = self.active_tps if self.tables.changelog_topics else self.app.consumer.assignment()
                actives = {tp.partition for tp in own}
                standbys = {tp.partition for tp in self.standby_tps}
                if self.app.owner is not None:
                    self.app.generation = generation
                    await self._wait(self.app.owner.assign(actives, standbys))
                await self._resume_streams(generation_id=generation)
            except (RebalanceAgain, IllegalStateError):  # the latter: a partition left while we seek in it
                log.info("a newer assignment arrived while partitions were being opened")
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # not this task was cancelled but something that it waited for, as a rebalance does with
                # calls into the consumer
                await self._again()
            except ServiceStopped:  # which mode also says where something took longer than its time
                if self.should_stop:
                    return
                await self._again()

    async def _again(self) -> None:
        """Faust's recovery would end here, and no assignment be served any more."""
        log.warning("the opening of partitions was cut short; trying again")
        await asyncio.sleep(AGAIN_S)
        self.signal_recovery_start.set()

    @Service.task  # type: ignore[untyped-decorator]  # mode is untyped
    async def _slurp_changelogs(self) -> None:
        """Faust's changelog reader: nothing to do, changelog partitions stay paused."""

    def _is_changelog_tp(self, tp: Any) -> bool:
        return tp.topic in self.tables.changelog_topics

    def flush_buffers(self) -> None:
        """Nothing is buffered here."""


class PartitionTables(TableManager):  # type: ignore[misc]  # untyped base
    """Faust's table registry (it drives the assignor), with our recovery."""

    logger = FAUST_LOG

    @property
    def recovery(self) -> Recovery:
        recovery: Recovery | None = self.__dict__.get("_recovery")
        if recovery is None:
            recovery = PartitionRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
            self._recovery = recovery
        return recovery
