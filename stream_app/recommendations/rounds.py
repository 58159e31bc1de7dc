"""Rounds: whatever arrives while one is in work makes up the next.

Batches come one a partition. Done one after the other, each would wait for a ranking and an
acknowledgement of every batch before it; in rounds it waits for one of each, and a user with records
in several batches is ranked once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

Done = Callable[[], Awaitable[object]]


class Rounds(Generic[T]):
    """Hands batches on in rounds, in the order of their arrival; at most ``limit`` wait for the next."""

    def __init__(self, work: Callable[[Sequence[T]], Awaitable[None]], limit: int) -> None:
        """``work`` does one round; calls do not overlap."""
        self._work = work
        self._waiting: asyncio.Queue[tuple[T, Done]] = asyncio.Queue(limit)
        self._in_work = False

    @property
    def idle(self) -> bool:
        """Whether nothing waits and no round is in work."""
        return not self._in_work and self._waiting.empty()

    async def add(self, batch: T, done: Done) -> None:
        """Return once the batch waits for its round; ``done`` is awaited after it."""
        await self._waiting.put((batch, done))

    async def run(self, failed: Callable[[Exception], None]) -> None:
        """Do rounds for ever.

        The first error of ``work`` or of a ``done`` is told to ``failed``. From then on batches are
        dropped without their ``done``: somebody else will get them again.
        """
        sound = True
        while True:
            taken = [await self._waiting.get()]
            while not self._waiting.empty():
                taken.append(self._waiting.get_nowait())
            count, self._in_work = len(taken), True
            try:
                if sound:
                    await self._work([batch for batch, _ in taken])
                    for _, done in taken:
                        await done()
            except Exception as error:  # noqa: BLE001  # whatever it is, it must not end unnoticed
                sound = False
                failed(error)
            finally:
                self._in_work = False
                taken.clear()  # nothing of a round outlives it, not even in an error's traceback
                for _ in range(count):
                    self._waiting.task_done()

    async def settle(self) -> None:
        """Return once nothing waits and no round is in work."""
        await self._waiting.join()
