"""Rounds: whatever arrives while one is in work makes up the next.

Batches come one a partition. Done one after the other, each would wait for a ranking and an
acknowledgement of every batch before it; in rounds it waits for one of each, and a user with records
in several batches is ranked once. Under load the next round is ranked while the last one is on its way to the
topic.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar


class Batch(Protocol):
    """What rounds are made of."""

    @property
    def records(self) -> Sequence[object]:
        """At least one"""


T = TypeVar("T", bound=Batch)

Done = Callable[[], Awaitable[object]]


class Rounds(Generic[T]):
    """Hands batches on in rounds, in the order of their arrival."""

    def __init__(
        self,
        work: Callable[[Sequence[T], Callable[[], object]], Awaitable[None]],
        limit: int,
        enough: int = 1,
    ) -> None:
        """``work`` does one round, and calls what it is given as soon as the next one may begin. With
        ``limit`` records waiting for the next round, no more batches are taken.

        With ``enough`` records waiting a round is begun while the last one is published. With fewer, ranking
        and transaction cost less a record if more may gather meanwhile.
        """
        self._work, self._limit, self._enough = work, limit, enough
        self._waiting: deque[tuple[T, Done]] = deque()
        self._records = 0
        self._in_work: list[asyncio.Task[None]] = []
        self._sound = True
        self._changed = asyncio.Condition()

    @property
    def idle(self) -> bool:
        """Whether nothing waits and no round is in work."""
        return not self._in_work and not self._waiting

    async def add(self, batch: T, done: Done) -> None:
        """Return once the batch waits for its round; ``done`` is awaited after it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._records < self._limit)
            self._waiting.append((batch, done))
            self._records += len(batch.records)
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
                    taken, self._records = list(self._waiting), 0
                    self._waiting.clear()
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
        at_once = 2 if self._records >= self._enough else 1
        return bool(self._waiting) and len(self._in_work) < at_once

    async def _round(
        self,
        taken: list[tuple[T, Done]],
        ranked: asyncio.Event,
        before: asyncio.Task[None] | None,
        failed: Callable[[Exception], None],
    ) -> None:
        try:
            if self._sound:
                await self._work([batch for batch, _ in taken], ranked.set)
                if before is not None:
                    await asyncio.wait([before])  # batches are done in their order
            if self._sound:
                for _, done in taken:
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
