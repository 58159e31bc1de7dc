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
    away would keep an assignment from ever being opened: after a bound the consumer is left alone,
    without its connections.
    """
    stopping = asyncio.ensure_future(consumer.stop())
    try:
        await asyncio.wait_for(asyncio.shield(stopping), TIMEOUT_S)
    except TimeoutError:
        stopping.cancel()
        log.warning("a consumer did not stop within %.0f s; it is left alone", TIMEOUT_S)
        await consumer._client.close()
