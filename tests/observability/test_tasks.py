"""What a stalled worker tells of its tasks."""

from __future__ import annotations

import asyncio
import threading

from stream_app.observability.tasks import open_tasks


async def _waits_for_a_letter(started: threading.Event | None = None) -> None:
    if started is not None:
        started.set()
    await asyncio.sleep(60)


def test_tasks_of_this_loop_and_of_others_are_told_with_the_place_where_they_wait() -> None:
    other, started = asyncio.new_event_loop(), threading.Event()
    thread = threading.Thread(target=other.run_forever)
    thread.start()

    async def look() -> list[str]:
        task = asyncio.create_task(_waits_for_a_letter(), name="here")
        await asyncio.sleep(0)
        try:
            return open_tasks([other])
        finally:
            task.cancel()

    try:
        waiting = asyncio.run_coroutine_threadsafe(_waits_for_a_letter(started), other)
        assert started.wait(10)
        found = asyncio.run(look())
        waiting.cancel()
    finally:
        other.call_soon_threadsafe(other.stop)
        thread.join(10)
        other.close()
    assert len(found) == 2
    assert found[1].startswith("here: _waits_for_a_letter (test_tasks.py:")
    assert found[0].startswith("Task-")
    assert "_waits_for_a_letter (test_tasks.py:" in found[0]
