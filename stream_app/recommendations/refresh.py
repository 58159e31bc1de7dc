"""Active users who do nothing get a new slate when what it was made of has changed: new contents, trends.

One background task, of low priority: it takes a turn each second, ranks a few users at a time, and only
while no event waits for its slate, so that an event waits for those few at most. Per turn it ranks no more
users than its budget allows. What it ranks is published only where it shows something else.

A user's record is kept in memory from the ranking before (:mod:`stream_app.recommendations.active`): the
records on ``interests`` can be looked up by reading all of them only, which a few users a second are not
worth. They are read once, when a partition has come.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from stream_app.errors import RecordFormatError
from stream_app.interests import record as interest_record
from stream_app.interests.record import HEADER, InterestRecord
from stream_app.kafka.errors import KafkaError
from stream_app.kafka.once import read_once
from stream_app.kafka.records import Record
from stream_app.observability import metrics
from stream_app.recommendations.active import HOUR_S, ActiveUsers
from stream_app.recommendations.pipeline import RankerPipeline
from stream_app.settings import Settings

log = logging.getLogger(__name__)

TURN_S = 1.0
AT_ONCE = 8
"""Users ranked at a time: an event that comes meanwhile waits for them."""
PAUSE_S = 0.05


class SlateRefresh:
    """Spends a budget of rankings on the users who were ranked longest ago."""

    def __init__(
        self,
        settings: Settings,
        active: ActiveUsers,
        pipeline: RankerPipeline,
        partitions: Callable[[], set[int]],
        idle: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``partitions`` says whose users may be ranked now, ``idle`` whether no event waits."""
        self._settings = settings
        self._active, self._pipeline = active, pipeline
        self._partitions, self._idle = partitions, idle
        self._clock, self._sleep = clock, sleep
        self._rate = settings.ranking.refresh_per_s
        self._at_once = min(AT_ONCE, settings.ranking.batch_users)
        self._budget, self._counted_at = 0.0, clock()

    async def run(self) -> None:
        """For ever. What the broker prevents is tried again; any other error is raised."""
        while True:
            await self._sleep(TURN_S)
            try:
                await self._fill()
            except KafkaError as error:
                log.warning("active users cannot be read yet: %r", error)
            else:
                await self.turn()

    async def turn(self) -> None:
        """Rank those who are due, as far as the budget goes and until an event comes."""
        now = self._clock()
        # what a turn leaves of a user's worth is kept, what it could have done is not
        self._budget = min(self._budget + self._rate * (now - self._counted_at), self._rate * TURN_S + 1)
        self._counted_at = now
        while (count := min(int(self._budget), self._at_once)) and self._active.due(1, self._partitions()):
            if not self._idle():
                metrics.REFRESHES_PUT_OFF.inc()
                break
            self._budget -= await self._pipeline.refresh(count, self._partitions())
        metrics.REFRESH_USERS.set(len(self._active))

    async def _fill(self) -> None:
        """Read who is active in partitions that are new here."""
        terms = self._active.unfilled(self._partitions())
        if not terms:
            return
        since_ms = 1000 * (time.time() - self._settings.ranking.refresh_active_h * HOUR_S)

        async def apply(records: Sequence[Record]) -> None:
            for user, partition, record in await asyncio.to_thread(_read, records, since_ms):
                self._active.read(user, partition, record)
            while not self._idle():
                await self._sleep(PAUSE_S)

        await read_once(self._settings, self._settings.topic_name("interests"), apply, set(terms))
        self._active.filled(terms)
        log.info("%d active users are known, after reading %d partitions", len(self._active), len(terms))


def _read(records: Sequence[Record], since_ms: float) -> list[tuple[bytes, int, InterestRecord | None]]:
    """User, partition, and the record of whoever has acted since; what cannot be read counts as none."""
    found = []
    for record in records:
        if record.key:
            one = None if record.value is None else _active(record.value, since_ms)
            found.append((record.key, record.partition, one))
    return found


def _active(value: bytes, since_ms: float) -> InterestRecord | None:
    if len(value) < HEADER.itemsize or np.frombuffer(value, HEADER, 1)["received_at"][0] < since_ms:
        return None
    try:
        return interest_record.decode(value)
    except RecordFormatError:
        return None  # counted where the role reads it
