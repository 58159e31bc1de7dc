"""When the next transaction begins: a pause after each in which more gathers for the next.

A transaction costs worker and broker the same whether it carries one record or a thousand. What comes one
by one, with time between, goes out at once. Where transactions follow each other, each is followed by a
pause in proportion to how long it took: the more the machine has to do, the longer it takes, the more goes
out together, and the less each record costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

REST = 1.0
"""Length of the pause, as a multiple of what came before it."""
MOST_S = 0.1
"""No pause is longer."""


class Pace:
    """Shared by all that takes turns together: they begin side by side."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: seconds."""
        self._clock = clock
        self._next = -float("inf")

    async def turn(self, hurry: asyncio.Event) -> None:
        """Return once the pause is over, or at the latest when there is a ``hurry``."""
        if (pause := self._next - self._clock()) > 0 and not hurry.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(hurry.wait(), pause)

    def ended(self, began: float) -> None:
        """What took its turn at ``began``, by the same clock, has just ended."""
        now = self._clock()
        self._next = max(self._next, now + min(REST * (now - began), MOST_S))

    @property
    def now(self) -> float:
        """The clock."""
        return self._clock()
