"""Refreshing: the budget, the precedence of events, and nothing that is no news."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from stream_app.interests.record import HEADER, InterestRecord, decode
from stream_app.ranking.engine import RankingEngine
from stream_app.ranking.popularity import ContentStatistics
from stream_app.recommendations.active import ActiveUsers
from stream_app.recommendations.ledger import SlateLedger
from stream_app.recommendations.pipeline import RankerPipeline
from stream_app.recommendations.refresh import AT_ONCE, TURN_S, SlateRefresh
from stream_app.recommendations.rounds import Rounds
from stream_app.recommendations.waiting import Waiting
from stream_app.settings import Settings
from tests.ranking import ranking_world as world
from tests.recommendations.test_active import Clock
from tests.recommendations.test_ranker_pipeline import Arrived, Shelf, batch, liked

OWNED = {0}


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"stream_app_{name}_total", labels) or 0.0


def settings(rate: float, **ranking: object) -> Settings:
    return world.settings(
        ranking={"refresh_per_s": rate, "refresh_after_s": 100.0, "refresh_users": 1000, **ranking}
    )


class Due:
    """More users than any budget allows, in the place of the pipeline and of those who are active."""

    def __init__(self) -> None:
        self.ranked: list[int] = []
        self.on_rank: Callable[[], None] = lambda: None

    def due(self, count: int, partitions: Collection[int]) -> Mapping[bytes, object]:
        return {b"somebody": None}

    def __len__(self) -> int:
        return 1

    async def refresh(self, count: int, partitions: Collection[int]) -> int:
        self.ranked.append(count)
        self.on_rank()
        return count


class Turns:
    """Turns of a refresh on a clock of the test's own."""

    def __init__(self, rate: float) -> None:
        self.clock, self.due, self.idle = Clock(), Due(), True
        due: Any = self.due
        self.refresh = SlateRefresh(settings(rate), due, due, lambda: OWNED, lambda: self.idle, self.clock)

    def take(self, count: int, seconds: float = TURN_S) -> int:
        """Users ranked in ``count`` turns, each after so many seconds."""
        before = sum(self.due.ranked)
        for _ in range(count):
            self.clock.now += seconds
            asyncio.run(self.refresh.turn())
        return sum(self.due.ranked) - before


@pytest.mark.parametrize("rate", [0.25, 1.0, 10.0, 37.5])
def test_the_budget_is_kept_and_used(rate: float) -> None:
    turns = Turns(rate)
    assert rate * 200 - 1 <= turns.take(200) <= rate * 200 + 1
    assert max(turns.due.ranked) <= AT_ONCE


def test_what_was_not_used_is_lost() -> None:
    turns = Turns(10.0)
    turns.take(1, seconds=3600.0)
    assert sum(turns.due.ranked) == 11


def test_while_events_wait_nobody_is_refreshed() -> None:
    turns, before = Turns(10.0), counted("refreshes_put_off")
    turns.idle = False
    assert turns.take(5) == 0
    assert counted("refreshes_put_off") == before + 5
    turns.idle = True
    assert turns.take(1) == 11

    def event() -> None:
        turns.idle = False

    turns.due.on_rank = event
    assert turns.take(1) == AT_ONCE  # no more after it came


class Desk:
    """A real pipeline with users who are due, rounds of events, and a refresh beside them."""

    def __init__(self, users: int) -> None:
        self.clock = Clock()
        self.config = settings(1000.0)
        self.index = world.filled_index(self.config, 120)
        self.shelf, self.active = Shelf(), ActiveUsers(self.config, self.clock)
        engine = RankingEngine(self.config, self.index, ContentStatistics(self.config, self.index))
        self.ledger = SlateLedger(self.config)
        self.pipeline = RankerPipeline(
            self.config, engine, self.shelf, shows=self.ledger.shows, active=self.active
        )
        self.rounds = Rounds(self.pipeline.handle, Waiting(8, 4))
        self.refresh = SlateRefresh(
            self.config, self.active, self.pipeline, lambda: OWNED, lambda: self.rounds.idle, self.clock
        )
        terms = self.active.unfilled(OWNED)
        for i in range(users):
            self.active.read(b"idle-%d" % i, 0, self.interests(i))
        self.active.filled(terms)
        self.active.changed()

    def interests(self, i: int) -> InterestRecord:
        """Of somebody who acted a while ago."""
        value = bytearray(liked(self.config, self.index, i % 100))
        np.frombuffer(value, HEADER, 1)["received_at"] = 1000 * (self.clock.now - 200)
        return decode(bytes(value))


def test_an_event_waits_for_one_small_batch_at_most() -> None:
    desk = Desk(users=200)

    async def scenario() -> None:
        errors: list[Exception] = []
        running = asyncio.create_task(desk.rounds.run(errors.append))
        desk.clock.now += TURN_S
        turn = asyncio.create_task(desk.refresh.turn())
        while not desk.shelf.places and not turn.done():  # noqa: ASYNC110  # a pass of the loop at a time
            await asyncio.sleep(0)
        before = len(desk.shelf.places)
        done = asyncio.Event()

        async def ranked() -> None:
            done.set()

        await desk.rounds.add(batch([Arrived(b"acts", liked(desk.config, desk.index, 3))]), ranked)
        await asyncio.wait_for(done.wait(), 30)
        order = list(desk.shelf.places)
        assert order.index(b"acts") - before <= AT_ONCE
        assert desk.shelf.timely[b"acts"]
        await turn
        assert len(desk.shelf.places) < 60  # the rest waits for the next turn
        await desk.refresh.turn()
        running.cancel()
        assert errors == []

    asyncio.run(asyncio.wait_for(scenario(), 60))
