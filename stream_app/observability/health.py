"""What a worker knows of its own health: whether it is ready, and whether expected work arrives.

Silence is the fault to catch: a stream that stopped without an error. Each stage names its watch,
says ``expect`` when it has work before it and ``progress`` when a piece of work is done.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from stream_app.errors import StalledError
from stream_app.settings import Settings

LOOK_S = 1.0


class Health:
    """One worker's health. Verbs may be called from any thread."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` gives seconds that never go back."""
        self.ready = False
        """Set by the role once it serves: assigned, recovered, caught up."""
        self.waiting_for = "start"
        """What a worker that is not ready waits for; shown on ``/readyz``."""
        self._timeout_s = settings.observability.stall_timeout_s
        self._clock = clock
        # watch → when its pending work was expected; what is not in here awaits nothing
        self._expected: dict[str, float] = {}
        self._lock = threading.Lock()

    def expect(self, name: str) -> None:
        """There is work for ``name``. Said again before any progress, the first time counts."""
        with self._lock:
            self._expected.setdefault(name, self._clock())

    def progress(self, name: str) -> None:
        """The expected piece of work of ``name`` is done; more work is expected anew."""
        with self._lock:
            self._expected.pop(name, None)

    def stalled(self) -> str | None:
        """What has had work and made no progress for ``stall_timeout_s``; None when all is well."""
        now = self._clock()
        with self._lock:
            expected = list(self._expected.items())
        for name, since in expected:
            if now - since > self._timeout_s:
                return f"{name} has had work for {now - since:.0f} s without progress"
        return None

    async def watch(self) -> None:
        """Look once a second, for ever. Raises StalledError, on which the worker must stop."""
        looked = self._clock()
        while True:
            await asyncio.sleep(LOOK_S)
            now = self._clock()
            self._forgive(now - looked - LOOK_S)
            looked = now
            if (cause := self.stalled()) is not None:
                raise StalledError(f"{cause}; stopping, so that this worker is started anew")

    def _forgive(self, seconds: float) -> None:
        """Do not count time in which the whole process stood still (stopped, or its machine asleep)."""
        if seconds > LOOK_S:
            with self._lock:
                self._expected = {name: since + seconds for name, since in self._expected.items()}
