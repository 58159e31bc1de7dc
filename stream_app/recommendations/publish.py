"""Slates onto the ``recommendations`` topic: acknowledged by all replicas, without repeats."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError

from stream_app.errors import BrokerUnavailableError
from stream_app.kafka.connection import aiokafka_options
from stream_app.observability import metrics
from stream_app.recommendations.slate import Slate, encode, fingerprint, milliseconds
from stream_app.settings import Settings


class SlatePublisher:
    """Publishes slates and withdraws those of users who have gone.

    At least once: whoever dies between an acknowledgement and its own commit publishes again, and the
    topic's newest slate of a user is what counts. What was published last is remembered for
    ``recommendations.remembered_users`` users, to leave out slates that did not change.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self._kafka = settings, settings.kafka
        self._topic = settings.topic_name("recommendations")
        self._skip_unchanged = settings.recommendations.skip_unchanged
        self._remembered = settings.recommendations.remembered_users
        self._published: OrderedDict[bytes, int] = OrderedDict()
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect. Raises BrokerUnavailableError."""
        producer = AIOKafkaProducer(
            **aiokafka_options(self._settings, f"{self._kafka.app_id}-slates"),
            acks="all",
            enable_idempotence=True,
        )
        try:
            await producer.start()
        except KafkaConnectionError:
            await producer.stop()
            raise BrokerUnavailableError(
                f"no Kafka broker answers at {self._kafka.broker}: start one, or set kafka.broker"
            ) from None
        self._producer = producer

    async def stop(self) -> None:
        """Send what is queued and close the connection; may be called more than once."""
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await producer.stop()

    async def publish(self, slates: Iterable[Slate]) -> None:
        """Send all that changed and return once every one is acknowledged.

        Raises aiokafka's KafkaError when the broker does not take one in time: then any of them may
        have arrived or not, and the caller must not commit what caused them.
        """
        sent: list[tuple[bytes, int, Slate]] = []
        pending = []
        for slate in slates:
            user, mark = slate.user_id.encode(), fingerprint(slate)
            if self._skip_unchanged and self._published.get(user) == mark:
                self._published.move_to_end(user)
                metrics.SLATES.labels("unchanged").inc()
                continue
            pending.append(await self._started.send(self._topic, encode(slate), user))
            sent.append((user, mark, slate))
        await asyncio.gather(*pending)
        now = time.time()
        for user, mark, slate in sent:
            self._remember(user, mark)
            if slate.caused_by is not None:
                received = milliseconds(slate.caused_by.received_at) / 1000
                metrics.FRESHNESS_SECONDS.observe(max(now - received, 0.0))
        metrics.SLATES.labels("published").inc(len(sent))

    async def withdraw(self, users: Iterable[bytes]) -> None:
        """Tombstones for users who have faded or were erased, acknowledged; their slates go."""
        pending = []
        for user in users:
            self._published.pop(user, None)
            pending.append(await self._started.send(self._topic, None, user))
        await asyncio.gather(*pending)
        metrics.SLATES.labels("withdrawn").inc(len(pending))

    def forget(self) -> None:
        """Forget what was published: after a rebalance others may have published since."""
        self._published.clear()

    @property
    def _started(self) -> AIOKafkaProducer:
        assert self._producer is not None, "start first"  # noqa: S101  # a caller's mistake, not an input
        return self._producer

    def _remember(self, user: bytes, mark: int) -> None:
        self._published[user] = mark
        self._published.move_to_end(user)
        if len(self._published) > self._remembered:
            self._published.popitem(last=False)
