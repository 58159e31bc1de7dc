"""Which times are believed. A record's time may come from anybody's clock; what is shared must not.

The newest time that is taken is the earlier of two: ``events.max_future_s`` after the record's Kafka
timestamp, so that a replay does not know its future, and the same after *now*, because a Kafka timestamp
is the producer's own where the topic is CreateTime. So no record moves stream time beyond it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from stream_app.settings import Settings

EARLIEST_MS = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp() * 1000)
LATEST_MS = int(datetime(2200, 1, 1, tzinfo=UTC).timestamp() * 1000)

Clock = Callable[[], int]
"""Now, in Unix ms."""


def wall_clock() -> int:
    """This machine's clock, Unix ms."""
    return time.time_ns() // 1_000_000


def newest_believed(settings: Settings) -> int:
    """The latest event time that counts now, ms: what stands beyond it in a record, written by an earlier
    version or under a wrong clock, is taken for this."""
    return wall_clock() + int(settings.events.max_future_s * 1000)


def unit(time_ms: int) -> str:
    """In which unit a number would be a sensible time, when it is no sensible number of milliseconds; for
    the end of a sentence."""
    for name, parts in (("microseconds", 1000), ("nanoseconds", 1_000_000)):
        if EARLIEST_MS * parts <= time_ms <= LATEST_MS * parts:
            return f"; it looks like {name}"
    return "; it looks like seconds" if EARLIEST_MS <= time_ms * 1000 <= LATEST_MS else ""
