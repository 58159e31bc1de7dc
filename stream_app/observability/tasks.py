"""Where the tasks of event loops stand: what a worker that has stalled is waiting for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

INNERMOST = 3


def open_tasks(others: Iterable[asyncio.AbstractEventLoop] = ()) -> list[str]:
    """Each task of the running loop but the current one, and of ``others``, which run in threads of their
    own: its name, and the innermost places, outer first."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for loop in others:
        tasks |= asyncio.all_tasks(loop)
    return sorted(
        f"{task.get_name()}: {' > '.join([*_places(task.get_coro())][-INNERMOST:])}" for task in tasks
    )


def _places(awaited: Any) -> Iterator[str]:
    """Along the chain of what waits for what. It ends at what is no coroutine or generator: a future."""
    while awaited is not None:
        frame: FrameType | None = None
        for kind in ("cr", "gi", "ag"):
            frame = frame or getattr(awaited, f"{kind}_frame", None)
        if frame is not None:
            yield f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
        awaited = (
            getattr(awaited, "cr_await", None)
            or getattr(awaited, "gi_yieldfrom", None)
            or getattr(awaited, "ag_await", None)
        )
