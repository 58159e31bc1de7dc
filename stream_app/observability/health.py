"""What a worker knows of its own health: whether it serves, and whether expected work arrives.

Silence is the fault to catch: a stream that stopped without an error. Three things may not stand
still for longer than ``observability.stall_timeout_s``:

- the way to readiness: a worker that does not serve gets ``nearer`` to it (a topic is read on);
- work in hand: each stage names its watch, says ``expect`` when it has work before it and
  ``progress`` when a piece of work is done;
- the broker: ``expect(BROKER)`` with each question, ``progress(BROKER)`` with each answer. While it
  is away nothing else can go on, so only its absence is judged, and afterwards it is not counted.

What has ended for good (a task, a thread) needs no waiting: ``fail`` says so at once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from stream_app.errors import StalledError
from stream_app.observability import metrics
from stream_app.observability.tasks import open_tasks
from stream_app.settings import Settings

log = logging.getLogger(__name__)

LOOK_S = 1.0
BROKER = "the broker"
CONSUMER_THREAD = "Faust's consumer thread"
AWAY_S = 5.0
"""A broker that has not answered for this long is away."""


class Health:
    """One worker's health. Verbs may be called from any thread."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` gives seconds that never go back."""
        self._timeout_s = settings.observability.stall_timeout_s
        self._address = settings.kafka.broker
        self._clock = clock
        # watch → when its pending work was expected; what is not in here awaits nothing
        self._expected: dict[str, float] = {}
        self._lock = threading.Lock()
        self._failure: str | None = None
        self._ready = False
        self._waiting_for = "start"
        self._stages = {"start"}
        # when the way to readiness last went on; None when it is not judged
        self._nearer: float | None = None
        self.loops: list[asyncio.AbstractEventLoop] = []
        """Event loops of further threads, whose tasks are told as well when the worker stalls"""

    @property
    def ready(self) -> bool:
        """Set by the role once it serves: assigned, recovered, caught up."""
        return self._ready

    @ready.setter
    def ready(self, serves: bool) -> None:
        with self._lock:
            if serves:
                self._nearer = None
            elif self._ready:
                self._nearer = self._clock()
                self._stages.clear()
            self._ready = serves
        metrics.READY.set(serves)

    @property
    def waiting_for(self) -> str:
        """What a worker that is not ready waits for; shown on ``/readyz``. A stage that has been waited
        for before, since the worker last served, is no step towards serving."""
        return self._waiting_for

    @waiting_for.setter
    def waiting_for(self, stage: str) -> None:
        with self._lock:
            if stage not in self._stages and self._nearer is not None:
                self._nearer = self._clock()
            self._stages.add(stage)
            self._waiting_for = stage

    def judge_readiness(self, at_most_s: float | None = None) -> None:
        """From now on a worker that is not ready must get nearer to it; the next step may take
        ``at_most_s`` if that is longer than usual."""
        later = max(0.0, (at_most_s or 0.0) - self._timeout_s)
        with self._lock:
            if not self._ready:
                self._nearer = self._clock() + later

    def nearer(self) -> None:
        """A step towards readiness: something was read on."""
        with self._lock:
            if self._nearer is not None:
                self._nearer = self._clock()

    def expect(self, name: str) -> None:
        """There is work for ``name``. Said again before any progress, the first time counts."""
        with self._lock:
            self._expected.setdefault(name, self._clock())

    def progress(self, name: str) -> None:
        """The expected piece of work of ``name`` is done; more work is expected anew."""
        with self._lock:
            since = self._expected.pop(name, None)
            if name == BROKER and since is not None and (away := self._clock() - since) > AWAY_S:
                self._shift(away)

    @property
    def busy(self) -> bool:
        """Whether some stage has work in hand, which is watched by its name."""
        with self._lock:
            return bool(self._expected.keys() - {BROKER, CONSUMER_THREAD})

    def fail(self, cause: str) -> None:
        """Something has ended that the worker cannot go on without. The first cause stays."""
        with self._lock:
            self._failure = self._failure or cause

    def stalled(self) -> str | None:
        """Why this worker makes no progress; None when all is well."""
        now = self._clock()
        with self._lock:
            if self._failure is not None:
                return self._failure
            away = now - self._expected.get(BROKER, now)
            if away > self._timeout_s:
                return f"{BROKER} has not answered for {away:.0f} s ({self._address})"
            if away > AWAY_S:
                return None
            if self._nearer is not None and now - self._nearer > self._timeout_s:
                return f"waits for {self._waiting_for} for {now - self._nearer:.0f} s without progress"
            for name, since in self._expected.items():
                if now - since > self._timeout_s:
                    return f"{name} has had work for {now - since:.0f} s without progress"
        return None

    async def watch(self, beat: Callable[[], None] = lambda: None) -> None:
        """Look once a second, for ever, and call ``beat`` each time. Raises StalledError, on which the
        worker must stop."""
        looked = self._clock()
        while True:
            await asyncio.sleep(LOOK_S)
            beat()
            now = self._clock()
            self._forgive(now - looked - LOOK_S)
            looked = now
            if (cause := self.stalled()) is not None:
                self.fail(cause)  # it stays on the page until the process has ended
                for place in open_tasks(self.loops):
                    log.error("open task %s", place)
                raise StalledError(f"{cause}; stopping, so that this worker is started anew")

    def _forgive(self, seconds: float) -> None:
        """Do not count time in which the whole process stood still (stopped, or its machine asleep)."""
        if seconds > LOOK_S:
            with self._lock:
                self._shift(seconds)

    def _shift(self, seconds: float) -> None:
        now = self._clock()

        def later(since: float) -> float:
            return max(since, min(since + seconds, now))  # what began meanwhile begins now

        self._expected = {name: later(since) for name, since in self._expected.items()}
        if self._nearer is not None:
            self._nearer = later(self._nearer)
