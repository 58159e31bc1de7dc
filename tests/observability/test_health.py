"""Stalls, told by a clock that the tests turn."""

from __future__ import annotations

import asyncio
import re

import pytest

from stream_app.errors import StalledError
from stream_app.observability import health as module
from stream_app.observability.health import Health
from stream_app.settings import build

SETTINGS = build({"observability": {"stall_timeout_s": 10}})


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(SETTINGS, clock)


def test_nothing_expected_is_never_a_stall(health: Health, clock: Clock) -> None:
    health.progress("encode")
    clock.now += 1_000_000
    assert health.stalled() is None


def test_work_without_progress_is_named(health: Health, clock: Clock) -> None:
    health.expect("encode")
    clock.now += 10
    assert health.stalled() is None
    clock.now += 1
    assert health.stalled() == "encode has had work for 11 s without progress"
    health.progress("encode")
    assert health.stalled() is None


def test_the_first_expectation_counts_until_there_is_progress(health: Health, clock: Clock) -> None:
    for _ in range(5):
        health.expect("encode")
        clock.now += 3
    assert health.stalled() is not None
    for _ in range(5):
        health.progress("encode")
        health.expect("encode")
        clock.now += 9
    assert health.stalled() is None


def test_watches_do_not_answer_for_each_other(health: Health, clock: Clock) -> None:
    health.expect("encode")
    health.expect("publish")
    clock.now += 11
    health.progress("publish")
    assert "encode" in (health.stalled() or "")


def test_the_watch_raises(health: Health, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.001)
    monkeypatch.setattr(health, "_forgive", lambda seconds: None)
    health.expect("encode")
    clock.now += 11
    with pytest.raises(StalledError, match="encode has had work"):
        asyncio.run(asyncio.wait_for(health.watch(), 10))


def test_the_watch_says_what_everybody_waits_for(
    health: Health, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.001)
    monkeypatch.setattr(health, "_forgive", lambda seconds: None)

    async def inner() -> None:
        await asyncio.Event().wait()

    async def outer() -> None:
        await inner()

    async def life() -> None:
        stuck = asyncio.create_task(outer(), name="stuck")
        await asyncio.sleep(0)
        health.expect("encode")
        clock.now += 11
        with pytest.raises(StalledError):
            await health.watch()
        stuck.cancel()

    asyncio.run(asyncio.wait_for(life(), 10))
    assert "open task stuck: " in caplog.text
    places = next(line for line in caplog.text.splitlines() if "open task stuck" in line)
    assert re.search(r"outer \(test_health\.py:\d+\) > .*inner \(test_health\.py:\d+\) > Event\.wait", places)


def test_time_in_which_the_process_was_stopped_does_not_count(health: Health, clock: Clock) -> None:
    health.expect("encode")
    clock.now += 1000
    health._forgive(999)  # the watch looked a second late by 999 seconds
    assert health.stalled() is None
    clock.now += 10
    assert health.stalled() == "encode has had work for 11 s without progress"
