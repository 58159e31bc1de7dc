"""A worker command with one fault in it: ``python -m tests.supervision.faulty_worker FAULT worker ROLE``.

Faults with a name of their own happen on SIGUSR1, to the app as it runs then. ``import:MODULE``
sends SIGTERM to the process while it imports that module.
"""

from __future__ import annotations

import asyncio
import importlib.abc
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from stream_app.__main__ import main


def _consumer(app: Any) -> Any:
    return app.consumer._thread._consumer


def end_fetcher(app: Any) -> None:
    app.consumer.call_in_thread(_consumer(app)._fetcher._fetch_task.cancel)


def hang_thread(app: Any) -> None:
    app.consumer.call_in_thread(lambda: time.sleep(1000))


def block_loop(app: Any) -> None:
    time.sleep(1000)


def hang_agent(app: Any) -> None:
    async def never(*_: object) -> None:
        print("an agent hangs", file=sys.stderr, flush=True)
        await asyncio.Event().wait()

    app.owner._feed = never


def end_flush(app: Any) -> None:
    next(task for task in app._background if task.get_name() == "flush").cancel()


FAULTS: dict[str, Callable[[Any], None]] = {
    fault.__name__: fault for fault in (end_fetcher, hang_thread, block_loop, hang_agent, end_flush)
}


class TermOnImport(importlib.abc.MetaPathFinder):
    """Sends SIGTERM when a module is about to be imported."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, name: str, *_: Any) -> None:
        if name == self._name:
            os.kill(os.getpid(), signal.SIGTERM)


def inject(fault: Callable[[Any], None]) -> None:
    from stream_app.kafka.faust.app import RoleApp

    begin = RoleApp.on_start

    async def on_start(app: Any) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, fault, app)
        await begin(app)

    RoleApp.on_start = on_start  # type: ignore[method-assign]


if __name__ == "__main__":
    name = sys.argv.pop(1)
    if name.startswith("import:"):
        sys.meta_path.insert(0, TermOnImport(name.removeprefix("import:")))
    elif name == "stop_soon":
        from stream_app import worker

        worker.STOP_TIMEOUT_S = 3.0
        inject(hang_agent)
    else:
        inject(FAULTS[name])
    sys.exit(main())
