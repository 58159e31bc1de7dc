"""How a worker's process ends: by signals, at any moment of its life, and with whoever started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

_PR_SET_PDEATHSIG = 1
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

SAME_REQUEST_S = 1.0
"""A second signal within this time of the first is the same request, come by two ways: from whoever
signals a whole group of processes, and from the parent that passes it on."""


def unwind_on_sigterm() -> None:
    """For a command that starts others: SIGTERM unwinds like Ctrl-C, so that everything is cleaned up."""
    signal.signal(signal.SIGTERM, _unwind)


def _unwind(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)  # as shells report it


def end_at_once_on_signals() -> None:
    """SIGTERM and SIGINT end the process at once with status 0: while it starts it holds nothing yet."""
    for number in _SIGNALS:
        signal.signal(number, _end_at_once)


def end_on_signals(end: Callable[[], object]) -> None:
    """The first SIGTERM or SIGINT calls ``end``; a second one ends the process at once (128 + its number).

    ``end`` runs between two steps of whatever the main thread does.
    """
    first: float | None = None

    def on_signal(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            end()
        elif now - first > SAME_REQUEST_S:
            _say(f"a second {signal.Signals(number).name}: ending at once")
            os._exit(128 + number)

    for number in _SIGNALS:
        signal.signal(number, on_signal)


def end_with_parent(parent: int | None) -> None:
    """Linux: SIGTERM comes when the process that started us is gone, even by SIGKILL.

    It comes with the end of the *thread* that started us: starters fork from their main thread.
    ``parent`` is the starter's pid, if known: it may be gone before this is called.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


def _end_at_once(number: int, _frame: FrameType | None) -> None:
    _say(f"{signal.Signals(number).name} during the start: ended")
    os._exit(0)


def _say(what: str) -> None:
    # not by the log, whose lock the interrupted code may hold
    os.write(2, f"stream-app: {what}\n".encode())
