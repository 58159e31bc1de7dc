"""The brokers' time, as it stands on what they append: a worker's own clock may be wrong.

Topics whose timestamps are LogAppendTime carry the broker's clock: on each record that is read, and in the
answer to each one that is produced. A record that was seen with time T shows that it is T or later there,
and from then on time passes as on our monotonic clock. So :meth:`BrokerClock.now_ms` is never ahead of the
brokers by more than their own differences, and behind them by the age of the freshest record seen: a retry
is never tried too early, wherever our wall clock stands.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from stream_app.observability import metrics

log = logging.getLogger(__name__)

WINDOW_S = 600.0
"""What was seen longer ago than twice this counts no more: clocks drift apart, and are set."""

WRONG_MS = 5_000
"""A wall clock that differs by more is warned of."""

APPENDED = 1
"""``timestamp_type`` of LogAppendTime."""


class BrokerClock:
    """The brokers' clock, and how far this machine's is from it. Thread-safe: plain assignments."""

    def __init__(
        self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """``wall`` and ``monotonic`` give seconds."""
        self._wall, self._monotonic = wall, monotonic
        self._window: tuple[float, int | None, int | None] = (0.0, None, None)
        self._warned: float | None = None

    def seen(self, timestamp_ms: int, timestamp_type: int | None) -> None:
        """A record with this timestamp has been read or acknowledged."""
        if timestamp_type != APPENDED:
            return
        now = self._monotonic()
        ahead = timestamp_ms - int(now * 1000)
        begun, newest, before = self._window
        if newest is None or now - begun > WINDOW_S:
            fresh = now - begun <= 2 * WINDOW_S
            self._window = (now, ahead, newest if fresh else None)
        elif ahead > newest:
            self._window = (begun, ahead, before)

    def now_ms(self) -> int:
        """The brokers' time, ms: at most. This machine's, while nothing tells."""
        _, newest, before = self._window
        if newest is None:
            return int(self._wall() * 1000)
        return int(self._monotonic() * 1000) + max(newest, newest if before is None else before)

    def latest_ms(self) -> int:
        """The later of the brokers' time and this machine's: what lies beyond it is the future for both."""
        return max(self.now_ms(), int(self._wall() * 1000))

    def sending(self) -> float:
        """A moment before something is produced, for :meth:`acknowledged`."""
        return self._wall()

    def acknowledged(self, sent: float, timestamp_ms: int, timestamp_type: int | None) -> None:
        """What was produced after ``sent`` has been appended at this time of the broker's."""
        self.seen(timestamp_ms, timestamp_type)
        if timestamp_type != APPENDED:
            return
        least, most = int(sent * 1000) - timestamp_ms, int(self._wall() * 1000) - timestamp_ms
        offset = max(least, 0) or min(most, 0)
        metrics.CLOCK_OFFSET.set(offset / 1000)
        now = self._monotonic()
        if abs(offset) > WRONG_MS and (self._warned is None or now - self._warned > WINDOW_S):
            self._warned = now
            log.warning(
                "this machine's clock is %.1f s %s of the broker's: set it (NTP). Retries go by the broker's",
                *(abs(offset) / 1000, "ahead" if offset > 0 else "behind"),
            )


CLOCK = BrokerClock()
"""Of this process."""
