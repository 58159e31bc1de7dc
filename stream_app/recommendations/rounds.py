"""Rounds: whoever waits when one begins makes up the next, as far as there is room.

Batches come one a partition. Done one after the other, each would wait for a ranking and an
acknowledgement of every batch before it; in rounds it waits for one of each, and a user with records
in several batches is ranked once. Under load the next round is ranked while the last one is on its way to the
topic, and reading goes on meanwhile (:mod:`stream_app.recommendations.waiting`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from stream_app.kafka.records import RecordBatch
from stream_app.recommendations.waiting import Done, Round, Waiting


class Rounds:
    """Has those who wait ranked in rounds, which are done in their order."""

    def __init__(
        self, work: Callable[[Round, Callable[[], object]], Awaitable[None]], waiting: Waiting
    ) -> None:
        """``work`` does one round, and calls what it is given as soon as the next one may begin.

        With enough users waiting a round is begun while the last one is published. With fewer, ranking
        and transaction cost less a record if more may gather meanwhile.
        """
        self._work, self._waiting = work, waiting
        self._in_work: list[asyncio.Task[None]] = []
        self._sound = True
        self._changed = asyncio.Condition()

    @property
    def idle(self) -> bool:
        """Whether nothing waits and no round is in work."""
        return not self._in_work and self._waiting.empty

    @property
    def more(self) -> bool:
        """Whether there is anything beside one round in work."""
        return len(self._in_work) > 1 or not self._waiting.empty

    async def add(self, batch: RecordBatch, done: Done) -> None:
        """Return once the batch's users wait; ``done`` is awaited when all of them are done, the batches of a
        partition in their order."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._waiting.full)
            self._waiting.add(batch, done)
            self._changed.notify_all()

    async def run(self, failed: Callable[[Exception], None]) -> None:
        """Do rounds for ever.

        The first error of ``work`` or of a ``done`` is told to ``failed``. From then on batches are
        dropped without their ``done``: somebody else will get them again.
        """
        try:
            while True:
                async with self._changed:
                    await self._changed.wait_for(self._due)
                    taken = self._waiting.take()
                    ranked = asyncio.Event()
                    before = self._in_work[-1] if self._in_work else None
                    self._in_work.append(asyncio.create_task(self._round(taken, ranked, before, failed)))
                    self._changed.notify_all()
                await ranked.wait()
        finally:
            for task in self._in_work:
                task.cancel()

    def _due(self) -> bool:
        """Whether a round may begin: one is ranked and one published at a time."""
        at_once = 2 if self._waiting.enough else 1
        return not self._waiting.empty and len(self._in_work) < at_once

    async def _round(
        self,
        taken: Round,
        ranked: asyncio.Event,
        before: asyncio.Task[None] | None,
        failed: Callable[[Exception], None],
    ) -> None:
        try:
            if self._sound:
                await self._work(taken, ranked.set)
                if before is not None:
                    await asyncio.wait([before])  # rounds are done in their order
            if self._sound:
                for done in taken.dones:
                    await done()
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not end unnoticed
            if self._sound:
                self._sound = False
                failed(error)
        finally:
            taken.clear()  # nothing of a round outlives it, not even in an error's traceback
            ranked.set()
            async with self._changed:
                self._in_work = [task for task in self._in_work if task is not asyncio.current_task()]
                self._changed.notify_all()

    async def settle(self) -> None:
        """Return once nothing waits and no round is in work."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.idle)
