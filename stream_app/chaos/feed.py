"""Sends the workload, steadily, in a thread of its own; whatever happens, every record ends durable.

One idempotent producer a topic (acks of all), each with patience for a broker that is away; what was
given to them is only counted as sent once the broker has acknowledged it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from zlib import crc32

from kafka.errors import KafkaError

from stream_app.chaos.background import Background
from stream_app.chaos.workload import CONTENT_TOPIC, TOPICS, Sent, Workload
from stream_app.errors import StreamAppError
from stream_app.kafka import clients
from stream_app.settings import Settings

DELIVERY_TIMEOUT_S = 120.0
"""Longer than any outage that faults can add up to."""
REQUEST_TIMEOUT_MS = 8_000
MAX_UNACKNOWLEDGED = 5_000
TICK_S = 0.02


class Feed(Background):
    """The producer's side of a run: sends events from ``start`` to ``stop``."""

    patience_s = DELIVERY_TIMEOUT_S

    def __init__(self, settings: Settings, workload: Workload, rate: float) -> None:
        """``settings`` name the broker without the proxy; ``rate``: records a second."""
        super().__init__()
        self._settings, self._workload, self.rate = settings, workload, rate
        self._clients = {topic: self._client() for topic in (*TOPICS, CONTENT_TOPIC)}
        self._paused: dict[str, list[Sent]] = {}
        self._lock = threading.RLock()
        self._counts = threading.Condition()
        self._given = self._acknowledged = 0

    # -- any thread

    @property
    def events(self) -> int:
        """Event records acknowledged by the broker so far."""
        return self._acknowledged

    def publish_contents(self) -> int:
        """Send the first contents; how many. Returns once they are acknowledged."""
        contents = self._workload.first_contents()
        self._send(contents)
        self._clients[CONTENT_TOPIC].flush(DELIVERY_TIMEOUT_S)
        return len(contents)

    def repeat(self, count: int) -> None:
        """A burst of events that were sent lately."""
        with self._lock:
            self._send(self._workload.repeats(count))

    def shuffle(self, count: int) -> None:
        """A burst of late events in an order of its own."""
        with self._lock:
            self._send(self._workload.shuffled(count))

    def burst(self, count: int) -> None:
        """This many events at once."""
        with self._lock:
            for _ in range(count):
                self._send(self._workload.take())

    def misplace(self, count: int) -> None:
        """This many events at once, where librdkafka's default partitioner puts them."""
        with self._lock:
            for _ in range(count):
                self._send(self._workload.take(), partitioner=crc32)

    def stamp(self, count: int, timestamp_ms: int) -> None:
        """This many events at once, with this Kafka timestamp, where the topic takes it."""
        with self._lock:
            for _ in range(count):
                self._send(self._workload.take(), timestamp_ms=timestamp_ms)

    def pause(self, topic: str) -> None:
        """Keep back what goes to ``topic``; returns once all that was sent there is acknowledged."""
        with self._lock:
            self._paused[topic] = []
        self._clients[topic].flush(DELIVERY_TIMEOUT_S)

    def resume(self, topic: str) -> None:
        """Go on, with a new producer: the topic may be another one of the same name."""
        with self._lock:
            self._clients[topic].close(DELIVERY_TIMEOUT_S)
            self._clients[topic] = self._client()
            self._send(self._paused.pop(topic))

    def stop(self) -> None:
        """End, and return once everything is acknowledged. Raises StreamAppError if it cannot be."""
        super().stop()
        for client in self._clients.values():
            with contextlib.suppress(KafkaError):
                client.flush(DELIVERY_TIMEOUT_S)
        with self._counts:
            self._counts.wait_for(
                lambda: self._acknowledged == self._given or self._error, DELIVERY_TIMEOUT_S
            )
        self.check()
        if missing := self._given - self._acknowledged:
            raise StreamAppError(f"{missing} records of the workload were never acknowledged")

    def close(self) -> None:
        """Close the connections, whatever is still under way."""
        self._ending.set()
        for client in self._clients.values():
            with contextlib.suppress(KafkaError):  # of what is still under way
                client.close(0)

    # -- the thread

    def _run(self) -> None:
        allowed, looked = 0.0, time.monotonic()
        while not self._ending.wait(TICK_S) and self._error is None:
            now = time.monotonic()
            # a broker that is away holds the stream back; what was not sent meanwhile follows
            allowed, looked = allowed + (now - looked) * self.rate, now
            with self._lock:
                while allowed >= 1 and self._given - self._acknowledged < MAX_UNACKNOWLEDGED:
                    self._send(self._workload.take())
                    allowed -= 1

    def _send(
        self,
        records: Iterable[Sent],
        *,
        partitioner: Callable[[bytes], int] | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        """``partitioner``: the partition is what it makes of the key, modulo their number."""
        for record in records:
            if (held := self._paused.get(record.topic)) is not None:
                held.append(record)
                continue
            counted = record.topic != CONTENT_TOPIC
            if counted:
                with self._counts:
                    self._given += 1
            client, topic = self._clients[record.topic], self._settings.topic_name(record.topic)
            partition = None
            if counted and partitioner is not None:
                partition = partitioner(record.key) % len(client.partitions_for(topic))
            future = client.send(
                topic, record.value, record.key, partition=partition, timestamp_ms=timestamp_ms
            )
            future.add_errback(self._refused)
            if counted:
                future.add_callback(self._took)

    def _took(self, _: object) -> None:
        with self._counts:
            self._acknowledged += 1
            self._counts.notify_all()

    def _refused(self, error: Exception) -> None:
        with self._counts:
            self._error = self._error or error
            self._counts.notify_all()

    def _client(self) -> Any:  # kafka-python has no types
        return clients.producer(
            self._settings,
            acks="all",
            linger_ms=2,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            max_block_ms=int(DELIVERY_TIMEOUT_S * 1000),
            delivery_timeout_ms=int(DELIVERY_TIMEOUT_S * 1000),
        )
