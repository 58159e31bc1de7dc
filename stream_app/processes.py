"""Worker processes that end with whoever started them, however that one ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Linux: SIGTERM comes when the process that started us is gone, even by SIGKILL.

    It comes with the end of the *thread* that started us: starters fork from their main thread.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == 1:  # gone before we asked
            os.kill(os.getpid(), signal.SIGTERM)
