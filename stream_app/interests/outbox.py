"""What batches have caused, on its way out: one transaction at a time, with all that waits for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stream_app.kafka.pace import Pace
from stream_app.kafka.records import Partition
from stream_app.kafka.transactions import Output, TransactionBound

if TYPE_CHECKING:  # OpenTelemetry is an extra
    from stream_app.observability.tracing import Passage

KEY_BYTES = 160
"""Of an output's key, headers and framing, about."""

PACED_RECORDS, PACED_BYTES = 500, 4_000_000
"""With so much waiting, the next transaction begins at once: it costs little for each."""

WAITING_RECORDS, WAITING_BYTES = 2_000, 16_000_000
"""So much may wait for the transaction on its way before the next batch does."""


@dataclass(slots=True)
class Computed:
    """The outputs of a batch, and the position after it."""

    outputs: list[Output]
    source: Partition
    end: int
    passages: Sequence[Passage]
    size: int = field(init=False)
    """Bytes, about: to look at every header would take as long as a tenth of the computing."""

    def __post_init__(self) -> None:
        values = sum([len(one.value or b"") for one in self.outputs])
        self.size = values + KEY_BYTES * len(self.outputs)


class Outbox:
    """Of one partition."""

    def __init__(
        self,
        commit: Callable[[Sequence[Computed]], Awaitable[bool]],
        bound: TransactionBound,
        pace: Pace,
    ) -> None:
        """``commit`` takes batches in their order; False: nothing is committed any more."""
        self._commit, self._bound, self._pace = commit, bound, pace
        self._waiting: deque[Computed] = deque()
        self._on_its_way: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    @property
    def passages(self) -> int:
        """How many traced events wait."""
        return sum(len(one.passages) for one in self._waiting)

    async def put(self, one: Computed) -> None:
        """Let it go out with the next transaction. Returns once that is on its way, or little enough waits
        for it."""
        self._waiting.append(one)
        records = sum(len(one.outputs) for one in self._waiting)
        size = sum(one.size for one in self._waiting)
        if records > PACED_RECORDS or size > PACED_BYTES:
            self._hurry.set()
        if self._on_its_way is None or self._on_its_way.done():
            self._on_its_way = asyncio.create_task(self._run())
            await asyncio.sleep(0)  # let it start before the next batch is computed
        elif records > WAITING_RECORDS or size > min(WAITING_BYTES, self._bound.bytes):
            await self.settle()

    async def settle(self) -> None:
        """Wait until all of it is committed, or lost."""
        if self._on_its_way is not None:
            if self._waiting:
                self._hurry.set()
            await asyncio.wait([self._on_its_way])

    async def _run(self) -> None:
        sound = True
        while self._waiting and sound:
            await self._pace.turn(self._hurry)
            self._hurry.clear()
            began = self._pace.now
            together = [self._waiting.popleft()]
            size = together[0].size
            while self._waiting and size + self._waiting[0].size <= self._bound.bytes:
                size += self._waiting[0].size
                together.append(self._waiting.popleft())
            sound = await self._commit(together)
            self._pace.ended(began)
