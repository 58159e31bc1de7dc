"""Ends the process when its event loop cannot: it stands still, or the end does not come.

A thread looks once a second whether the loop still turns. It shows every thread's stack and ends the
process with the status of StalledError, without waiting for anything: an event loop that stands
still can close nothing, and interpreters wait for their threads.

Should a call hold the interpreter itself, so that not even this thread runs, a timer outside the
interpreter ends the process after FROZEN times the bound, with status 1. It cannot tell that from a
process that is stopped (SIGSTOP) for that long; shorter ones are forgiven.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time

from stream_app.errors import StalledError
from stream_app.settings import Settings

LOOK_S = 1.0
FROZEN = 5
STDERR = 2


class Watchdog:
    """Watches one event loop, from ``start`` to the end of the process."""

    def __init__(self, settings: Settings) -> None:
        """The loop may stand still for ``observability.stall_timeout_s``."""
        self._timeout_s = settings.observability.stall_timeout_s
        self._turned = time.monotonic()
        self._end_by: tuple[float, float] | None = None

    def start(self) -> None:
        """Begin to look."""
        self.beat()
        threading.Thread(target=self._look, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        """The loop turns."""
        self._turned = time.monotonic()

    def end_within(self, seconds: float) -> None:
        """The process must have ended by then, whatever keeps it."""
        self._end_by = (time.monotonic() + seconds, seconds)

    def _look(self) -> None:
        looked = time.monotonic()
        while True:
            faulthandler.dump_traceback_later(FROZEN * self._timeout_s, exit=True, file=STDERR)
            time.sleep(LOOK_S)
            now = time.monotonic()
            if (away := now - looked - LOOK_S) > LOOK_S:  # the whole process stood still
                self._turned += away
                if self._end_by is not None:
                    self._end_by = (self._end_by[0] + away, self._end_by[1])
            looked = now
            if self._end_by is not None and now > self._end_by[0]:
                self._end(f"the worker did not come to rest within {self._end_by[1]:.0f} s")
            if self._end_by is None and now - self._turned > self._timeout_s:
                self._end(f"the event loop has stood still for {now - self._turned:.0f} s")

    def _end(self, cause: str) -> None:
        message = f"stream-app: [{StalledError.code}] {cause}; ending, so that this worker is started anew\n"
        os.write(STDERR, message.encode())
        faulthandler.dump_traceback(file=STDERR)
        os._exit(StalledError.exit_status)
