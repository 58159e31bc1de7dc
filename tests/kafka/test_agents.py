"""When Faust is told that a batch is done, and what becomes of an error: agents without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from stream_app.kafka.faust.agents import agent_of
from stream_app.kafka.records import RecordBatch, arrived
from stream_app.kafka.stage import Done, Input, OpenInput

FIRST, SECOND = (RecordBatch("likes", 0, at, [arrived("likes", 0, at, 0, b"k", b"v")]) for at in (0, 1))


@dataclass
class Message:
    value: RecordBatch | None


class Event:
    def __init__(self, batch: RecordBatch) -> None:
        self.value: RecordBatch | None = batch
        self.message = Message(batch)
        self.start = batch.start


@dataclass
class Stream:
    """A Faust stream of two batches: it acks each when the next one is asked for, unless told not to."""

    acks: bool = True
    acked: list[RecordBatch] = field(default_factory=list)

    async def __aiter__(self) -> AsyncIterator[RecordBatch]:
        async for event in self.events():
            yield event.value  # type: ignore[misc]  # only handed on, open batches are taken from it

    async def events(self) -> AsyncIterator[Event]:
        for batch in (FIRST, SECOND):
            try:
                yield Event(batch)
            finally:
                if self.acks:
                    self.acked.append(batch)

    def noack(self) -> Stream:
        self.acks = False
        return self

    async def ack(self, event: Event) -> bool:
        self.acked.append((FIRST, SECOND)[event.start])
        return True


def test_a_batch_is_done_when_its_handler_is() -> None:
    stream, seen = Stream(), list[tuple[RecordBatch, list[RecordBatch]]]()

    async def take(batch: RecordBatch) -> None:
        seen.append((batch, [*stream.acked]))

    asyncio.run(_run(Input(["likes"], take, "failed"), stream, []))
    assert seen == [(FIRST, []), (SECOND, [FIRST])]
    assert stream.acked == [FIRST, SECOND]


def test_an_error_is_said_stops_the_worker_and_leaves_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    error, stopped = ValueError("why"), list[BaseException]()

    async def take(_batch: RecordBatch) -> None:
        raise error

    with pytest.raises(ValueError, match="why"):
        asyncio.run(_run(Input(["likes"], take, "a batch could not be applied"), Stream(), stopped))
    assert stopped == [error]
    assert caplog.messages == ["a batch could not be applied: ValueError('why')"]


def test_an_open_batch_is_done_when_its_handler_says_so() -> None:
    stream, waiting = Stream(), list[Done]()

    async def take(_batch: RecordBatch, done: Done) -> None:
        waiting.append(done)

    async def life() -> None:
        await _run(OpenInput(["likes"], take), stream, [])
        assert stream.acked == []
        await waiting[0]()
        assert stream.acked == [FIRST]
        await waiting[1]()
        assert stream.acked == [FIRST, SECOND]

    asyncio.run(life())


def test_an_open_batch_is_kept_by_its_handler_alone() -> None:
    events = list[Event]()

    class Watched(Stream):
        async def events(self) -> AsyncIterator[Event]:
            async for event in super().events():
                events.append(event)
                yield event

    async def take(batch: RecordBatch, _done: Done) -> None:
        assert batch is (FIRST, SECOND)[len(events) - 1]
        assert events[-1].value is events[-1].message.value is None

    asyncio.run(_run(OpenInput(["likes"], take), Watched(), []))
    assert len(events) == 2


async def _run(source: Input | OpenInput, stream: Any, stopped: list[BaseException]) -> None:
    await agent_of(source, stopped.append)(stream)
