"""Rounds: who waits goes together, in order, acked only when done, dropped after an error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from stream_app.kafka.records import RecordBatch, arrived
from stream_app.recommendations.rounds import Rounds
from stream_app.recommendations.waiting import Round, Waiting


def batch(number: int, user: bytes | None = None) -> RecordBatch:
    """Of one record; of another user each, unless told."""
    key = b"%d" % number if user is None else user
    return RecordBatch("interests", 0, number, [arrived("interests", 0, number, number, key, b"record")])


class Bench:
    """Rounds whose work waits for the test to let it end."""

    def __init__(self, at_once: int = 4, queue_users: int = 20) -> None:
        self.rounds = Rounds(self._work, Waiting(queue_users, at_once))
        self.began: list[list[int]] = []
        self.ends: list[dict[int, int]] = []
        self.done: list[int] = []
        self.errors: list[Exception] = []
        self.gate = asyncio.Semaphore(0)
        self.published: asyncio.Semaphore | None = None
        """Where publishing takes a while"""
        self.fails = False

    async def _work(self, round_: Round, ranked: Callable[[], object]) -> None:
        self.began.append(sorted(record.offset for record in round_.records))
        self.ends.append(round_.ends)
        await self.gate.acquire()
        if self.fails:
            raise ConnectionError("the broker is gone")
        if self.published is not None:
            ranked()
            await self.published.acquire()

    async def add(self, number: int, user: bytes | None = None) -> None:
        async def done() -> None:
            self.done.append(number)

        await self.rounds.add(batch(number, user), done)

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():  # noqa: ASYNC110  # a pass of the loop at a time, no event tells of it
            await asyncio.sleep(0)


def run(scenario: Callable[[Bench], Coroutine[Any, Any, None]], **bounds: int) -> None:
    async def running() -> None:
        bench = Bench(**bounds)
        task = asyncio.create_task(bench.rounds.run(bench.errors.append))
        await asyncio.wait_for(scenario(bench), 30)
        task.cancel()

    asyncio.run(running())


def test_what_arrives_during_a_round_makes_up_the_next() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.add(0)
        await bench.until(lambda: bench.began == [[0]])
        for number in (1, 2, 3):
            await bench.add(number)
        assert bench.done == []
        bench.gate.release()
        await bench.until(lambda: bench.began == [[0], [1, 2, 3]])
        assert bench.done == [0]
        bench.gate.release()
        await bench.rounds.settle()
        assert bench.done == [0, 1, 2, 3]
        assert bench.errors == []

    run(scenario)


def test_beyond_the_limit_the_caller_waits() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.add(0)
        await bench.until(lambda: bench.began == [[0]])
        for number in (1, 2, 3):
            await bench.add(number)
        more = asyncio.ensure_future(bench.add(4))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not more.done()
        bench.gate.release()
        await more
        for _ in range(2):
            bench.gate.release()
        await bench.rounds.settle()
        assert bench.done == [0, 1, 2, 3, 4]

    run(scenario, queue_users=6)


def test_after_an_error_nothing_is_done_and_nobody_waits() -> None:
    async def scenario(bench: Bench) -> None:
        bench.fails = True
        await bench.add(0)
        await bench.until(lambda: bench.began == [[0]])
        bench.gate.release()
        for number in range(1, 9):
            await bench.add(number)
        await bench.rounds.settle()
        assert bench.done == []
        assert bench.began == [[0]]
        assert [type(e) for e in bench.errors] == [ConnectionError]

    run(scenario)


def test_the_next_round_is_ranked_while_the_last_one_is_published() -> None:
    async def scenario(bench: Bench) -> None:
        bench.published = asyncio.Semaphore(0)
        for number in range(3):
            await bench.add(number)
            await bench.until(lambda number=number: bench.began[number : number + 1] or number == 2)
            bench.gate.release()
        assert bench.began == [[0], [1]], "one is ranked and one published at a time"
        assert bench.done == []
        bench.published.release()
        await bench.until(lambda: bench.began == [[0], [1], [2]])
        assert bench.done == [0]
        bench.published.release()
        bench.published.release()
        await bench.rounds.settle()
        assert bench.done == [0, 1, 2]

    run(scenario, at_once=1)


def test_batches_are_done_in_their_order_whichever_is_published_first() -> None:
    async def scenario(bench: Bench) -> None:
        slow = asyncio.Semaphore(0)

        async def work(round_: Round, ranked: Callable[[], object]) -> None:
            bench.began.append([record.offset for record in round_.records])
            ranked()
            if round_.ends == {0: 1}:
                await slow.acquire()

        bench.rounds._work = work
        await bench.add(0)
        await bench.until(lambda: bench.began == [[0]])
        await bench.add(1)
        await bench.until(lambda: bench.began == [[0], [1]])
        for _ in range(20):
            await asyncio.sleep(0)
        assert bench.done == []
        slow.release()
        await bench.rounds.settle()
        assert bench.done == [0, 1]

    run(scenario, at_once=1)


def test_a_few_users_wait_until_the_last_round_is_published() -> None:
    async def scenario(bench: Bench) -> None:
        bench.published = asyncio.Semaphore(0)
        await bench.add(0)
        await bench.until(lambda: bench.began == [[0]])
        bench.gate.release()
        await bench.add(1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert bench.began == [[0]]
        await bench.add(2)  # they are enough
        await bench.until(lambda: bench.began == [[0], [1, 2]])
        assert bench.done == []
        for _ in range(2):
            bench.gate.release()
            bench.published.release()
        await bench.rounds.settle()
        assert bench.done == [0, 1, 2]

    run(scenario, at_once=2)


def test_reading_goes_on_while_users_are_ranked_and_each_waits_once() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.add(0, b"a")
        await bench.until(lambda: bench.began == [[0]])
        for number in range(1, 6):
            await bench.add(number, b"ab"[number % 2 : number % 2 + 1])
        bench.gate.release()
        await bench.until(lambda: len(bench.began) == 2)
        assert bench.began[1] == [4, 5], "the newest record of each"
        assert bench.ends[1] == {0: 6}
        assert bench.done == [0]
        bench.gate.release()
        await bench.rounds.settle()
        assert bench.done == [0, 1, 2, 3, 4, 5]

    run(scenario)


def test_whoever_finds_no_room_in_a_round_is_in_the_next() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.add(0)
        await bench.until(lambda: bench.began == [[0]])
        for number in (1, 2, 3):
            await bench.add(number)
        bench.gate.release()
        await bench.until(lambda: bench.began == [[0], [1, 3]])
        for number in (4, 5):
            await bench.add(number)
        bench.gate.release()
        await bench.until(lambda: bench.began == [[0], [1, 3], [2, 5]])
        assert bench.done == [0, 1], "3 is published, and 2 before it is not"
        bench.gate.release()
        bench.gate.release()
        await bench.rounds.settle()
        assert bench.began == [[0], [1, 3], [2, 5], [4]]
        assert bench.ends == [{0: 1}, {0: 2}, {0: 4}, {0: 6}]
        assert bench.done == [0, 1, 2, 3, 4, 5]
        assert not bench.rounds.more

    run(scenario, at_once=2)


def test_whether_there_is_more_than_one_round() -> None:
    async def scenario(bench: Bench) -> None:
        bench.published = asyncio.Semaphore(0)
        await bench.add(0)
        await bench.until(lambda: bench.began == [[0]])
        assert not bench.rounds.more
        await bench.add(1)
        assert bench.rounds.more
        bench.gate.release()
        await bench.until(lambda: bench.began == [[0], [1]])
        assert bench.rounds.more, "the first one is still published"
        bench.gate.release()
        for _ in range(2):
            bench.published.release()
        await bench.rounds.settle()
        assert bench.rounds.idle

    run(scenario, at_once=1)
