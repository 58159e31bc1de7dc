"""Disconnecting within a bound."""

from __future__ import annotations

import asyncio
import logging

from aiokafka import AIOKafkaConsumer

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0


async def disconnect(consumer: AIOKafkaConsumer) -> None:
    """Stop a consumer; may be called more than once.

    aiokafka waits for tasks of its own to end. One that missed its cancellation while the broker went
    away would keep an assignment from ever being opened, and one that took it would cancel whoever
    disconnects: after a bound, or when it was cancelled, the consumer is left alone, without its connections.
    """
    stopping = asyncio.ensure_future(consumer.stop())
    await asyncio.wait([stopping], timeout=TIMEOUT_S)
    if stopping.done() and not stopping.cancelled():
        stopping.result()
        return
    stopping.cancel()
    log.info("a consumer did not stop in order, and is left alone")
    await consumer._client.close()
