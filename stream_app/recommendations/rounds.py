"""Rounds: whatever arrives while one is in work makes up the next.

Batches come one a partition. Done one after the other, each would wait for a ranking and an
acknowledgement of every batch before it; in rounds it waits for one of each, and a user with records
in several batches is ranked once.
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

    def __init__(self, work: Callable[[Sequence[T]], Awaitable[None]], limit: int) -> None:
        """``work`` does one round; calls do not overlap. With ``limit`` records waiting for the next round,
        no more batches are taken."""
        self._work, self._limit = work, limit
        self._waiting: deque[tuple[T, Done]] = deque()
        self._records = 0
        self._in_work = False
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
        sound = True
        while True:
            taken = await self._take()
            try:
                if sound:
                    await self._work([batch for batch, _ in taken])
                    for _, done in taken:
                        await done()
            except Exception as error:  # noqa: BLE001  # whatever it is, it must not end unnoticed
                sound = False
                failed(error)
            finally:
                taken.clear()  # nothing of a round outlives it, not even in an error's traceback
                async with self._changed:
                    self._in_work = False
                    self._changed.notify_all()

    async def _take(self) -> list[tuple[T, Done]]:
        async with self._changed:
            await self._changed.wait_for(lambda: self._waiting)
            taken, self._records, self._in_work = list(self._waiting), 0, True
            self._waiting.clear()
            self._changed.notify_all()
        return taken

    async def settle(self) -> None:
        """Return once nothing waits and no round is in work."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.idle)
