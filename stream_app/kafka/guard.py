"""Runs one command and ends it when whoever started this has died, however it died.

``python -I guard.py DIRECTORY COMMAND…``: writes the command's pid to stdout. The end of stdin means
that the starter is gone, even by SIGKILL: the kernel closes its end of the pipe. Then the command
is killed and DIRECTORY deleted (an empty DIRECTORY deletes nothing). Standard library only, so that
it starts at once.
"""

from __future__ import annotations

import ctypes
import shutil
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """As ``preexec_fn``, on Linux: the child is killed when the thread that started it ends, which is why
    only a process whose starting thread lasts to its end may use it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(directory: str, command: list[str]) -> int:
    """Exit status of the command."""
    child = subprocess.Popen(  # noqa: S603  # the command is LocalBroker's own
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=sys.stderr,
        preexec_fn=die_with_parent,  # this guard may be killed as well; no other thread runs yet
    )
    print(child.pid, flush=True)
    orphaned = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        orphaned.set()
        child.kill()

    threading.Thread(target=watch, daemon=True).start()
    status = child.wait()
    if orphaned.is_set() and directory:
        shutil.rmtree(directory, ignore_errors=True)
    return abs(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
