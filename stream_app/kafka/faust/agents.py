"""Inputs as Faust's agents."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from stream_app.kafka.records import RecordBatch
from stream_app.kafka.stage import Input, OpenInput

log = logging.getLogger(__name__)

Agent = Callable[[Any], Awaitable[None]]
"""Takes a Faust stream."""


def agent_of(source: Input | OpenInput, stop: Callable[[BaseException], None]) -> Agent:
    """What Faust is to run for it; ``stop`` is given the error that must stop the worker."""
    return _open(source) if isinstance(source, OpenInput) else _closed(source, stop)


def _closed(source: Input, stop: Callable[[BaseException], None]) -> Agent:
    async def take(batches: Any) -> None:
        async for batch in batches:
            try:
                await source.take(batch)
            except Exception as error:
                # an error would only skip the batch: Faust acks what fails. Nothing is lost when the worker
                # stops, since a batch's offset is committed in its transaction or not at all
                log.critical("%s: %r", source.failure, error)
                stop(error)
                raise

    return take


def _open(source: OpenInput) -> Agent:
    async def take(stream: Any) -> None:
        # Faust acks a batch once its agent goes on; here one counts as in hand until it is done
        acked_here = stream.noack()
        async for event in acked_here.events():
            await source.take(_taken(event), partial(acked_here.ack, event))

    return take


def _taken(event: Any) -> RecordBatch:
    """The event's batch, which neither it nor its message keeps: long before a batch is done, few of its
    records may be needed."""
    batch: RecordBatch = event.value
    event.value = event.message.value = None
    return batch
