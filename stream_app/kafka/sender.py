"""Sends records by themselves, outside of transactions."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaProducer

from stream_app.kafka.connection import aiokafka_options
from stream_app.settings import Settings


class Sender:
    """A connected producer, as a context."""

    def __init__(self, settings: Settings) -> None:
        """Within a running event loop; connects when entered."""
        self._producer = AIOKafkaProducer(**aiokafka_options(settings, settings.kafka.app_id))

    async def __aenter__(self) -> Self:
        await self._producer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._producer.stop()

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> tuple[str, int, int]:
        """Topic (its full name), partition, offset, once the broker has the record. Raises a KafkaError."""
        sent = await self._producer.send_and_wait(topic, value, key=key, headers=list(headers))
        return sent.topic, sent.partition, sent.offset
