"""Sends the records of a log to their topics, in order, as fast as possible or at a multiple of log time."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

from kafka.errors import KafkaError

from stream_app.errors import ConfigurationError, StreamAppError
from stream_app.hashing import key64
from stream_app.kafka import clients
from stream_app.replay.formats import CONTENT_TOPIC, LogRecord
from stream_app.settings import Settings

MAX_UNACKNOWLEDGED = 20_000  # the client itself buffers without a bound


@dataclass
class Produced:
    """What has been sent so far."""

    events: int = 0
    contents: int = 0
    users: set[int] = field(default_factory=set)
    """key64 of the event keys"""
    content_keys: set[int] = field(default_factory=set)
    """key64 of the contents' keys"""

    def add(self, record: LogRecord) -> None:
        """Count one more record."""
        if not record.is_event:
            self.contents += 1
            if record.key is not None:
                self.content_keys.add(key64(record.key))
            return
        self.events += 1
        if record.key is not None:
            self.users.add(key64(record.key))


def produce(
    settings: Settings,
    records: Iterable[LogRecord],
    *,
    speed: float | None = None,
    so_far: Produced | None = None,
    progress: Callable[[Produced], None] = lambda _: None,
) -> Produced:
    """Send all records and return once each is acknowledged. Kafka timestamps are now.

    ``speed``: log seconds a second; None sends as fast as possible. ``so_far``: what was sent earlier, to be
    counted on. Raises ConfigurationError for a topic that carries no events, BrokerUnavailableError,
    StreamAppError when the broker refuses a record.
    """
    topics = {name: settings.topic_name(name) for name in (CONTENT_TOPIC, *event_topics(settings))}
    produced = so_far or Produced()
    pace = _Pace(speed)
    waiting: deque[Any] = deque()  # kafka-python has no types
    try:
        with (
            clients.naming_the_broker(settings),
            contextlib.closing(clients.producer(settings, linger_ms=20)) as client,
        ):
            for record in records:
                if record.topic not in topics:
                    raise ConfigurationError(
                        f"the log has events for topic {record.topic!r}, which is no configured action's "
                        f"({', '.join(event_topics(settings))}); Deskdrop: --config examples/deskdrop.toml"
                    )
                while (wait := pace.until(record.time_ms)) > 0:
                    sleep(min(wait, 0.5))
                    progress(produced)
                waiting.append(client.send(topics[record.topic], record.value, record.key))
                produced.add(record)
                if len(waiting) > MAX_UNACKNOWLEDGED:
                    waiting.popleft().get()
                progress(produced)
            client.flush()
            for future in waiting:
                future.get()
    except KafkaError as error:
        raise StreamAppError(f"the broker refused a record: {error!r}") from error
    return produced


def event_topics(settings: Settings) -> list[str]:
    """Names of the event topics, without prefix."""
    return [action.topic for action in settings.events.actions]


class _Pace:
    """When a record is due: log time mapped to the clock, from the first record on."""

    def __init__(self, speed: float | None) -> None:
        self._speed = speed
        self._began = monotonic()
        self._first_ms: int | None = None

    def until(self, time_ms: int | None) -> float:
        """Seconds left until a record of this log time is due."""
        if self._speed is None or time_ms is None:
            return 0.0
        if self._first_ms is None:
            self._first_ms = time_ms
        return self._began + (time_ms - self._first_ms) / 1000 / self._speed - monotonic()
