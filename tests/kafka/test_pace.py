"""The pause between transactions: none when idle, in proportion to the work, bounded, cut by a hurry."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from stream_app.kafka.pace import MOST_S, REST, Pace


class Clock:
    """Stands still but for the test."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def _waits(turn: Awaitable[None], hurry: asyncio.Event) -> bool:
    """Whether a turn does not come by itself within some passes of the loop; it is ended by a hurry."""
    task = asyncio.ensure_future(turn)
    for _ in range(5):
        await asyncio.sleep(0)
    waits = not task.done()
    hurry.set()
    await asyncio.wait_for(task, 30)
    return waits


def test_the_first_turn_and_one_after_a_while_come_at_once() -> None:
    async def scenario() -> None:
        clock, hurry = Clock(), asyncio.Event()
        pace = Pace(clock)
        assert not await _waits(pace.turn(asyncio.Event()), hurry)
        began = pace.now
        clock.now += 0.01
        pace.ended(began)
        clock.now += REST * 0.01 + 0.001
        assert not await _waits(pace.turn(asyncio.Event()), hurry)

    asyncio.run(scenario())


@pytest.mark.parametrize("took_s", [0.02, 30.0])
def test_turns_that_follow_on_each_other_are_apart(took_s: float) -> None:
    async def scenario() -> None:
        clock = Clock()
        pace = Pace(clock)
        began = pace.now
        clock.now += took_s
        pace.ended(began)
        pause = min(REST * took_s, MOST_S)
        clock.now += pause - 0.001
        hurry = asyncio.Event()
        assert await _waits(pace.turn(hurry), hurry)
        clock.now += 0.002
        assert not await _waits(pace.turn(asyncio.Event()), asyncio.Event())

    asyncio.run(scenario())


def test_all_that_take_turns_together_wait_for_the_longest() -> None:
    async def scenario() -> None:
        clock = Clock()
        pace = Pace(clock)
        began = pace.now
        clock.now += 0.03
        pace.ended(began)
        clock.now += 0.001
        pace.ended(clock.now - 0.001)  # a short one ends after the long one
        clock.now += REST * 0.001
        hurry = asyncio.Event()
        assert await _waits(pace.turn(hurry), hurry)

    asyncio.run(scenario())


def test_there_is_no_pause_in_a_hurry() -> None:
    async def scenario() -> None:
        clock, hurry = Clock(), asyncio.Event()
        pace = Pace(clock)
        began = pace.now
        clock.now += 1.0
        pace.ended(began)
        hurry.set()
        assert not await _waits(pace.turn(hurry), asyncio.Event())

    asyncio.run(scenario())
