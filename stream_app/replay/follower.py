"""Reads a topic as it grows: what is committed now, then whatever has been added since."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError

from stream_app.errors import TopicMismatchError
from stream_app.kafka import clients
from stream_app.settings import Settings

POLL_MS = 100


class Follower:
    """Follows all partitions of one topic."""

    def __init__(self, settings: Settings, topic: str, *, from_now: bool = False) -> None:
        """From the topic's beginning, or with ``from_now`` only what comes from here on.

        ``topic`` is its full name. Raises TopicMismatchError, BrokerUnavailableError.
        """
        self._settings = settings
        self._topic = topic
        self._client = clients.consumer(settings)
        numbers = self._client.partitions_for_topic(topic)
        if not numbers:
            self.close()
            raise TopicMismatchError(
                f"topic {topic} does not exist: create it with `stream-app topics --create`"
            )
        self._partitions = [TopicPartition(topic, p) for p in numbers]
        self._client.assign(self._partitions)
        if from_now:
            with clients.naming_the_broker(settings):
                for tp, end in self._client.end_offsets(self._partitions).items():
                    self._client.seek(tp, end)
        else:
            self._client.seek_to_beginning(*self._partitions)

    def read(self) -> Iterator[Any]:
        """Committed records up to the end that the topic has now (kafka-python's; it has no types).

        The end is reached when the position has: transaction markers take offsets too."""
        patience = self._settings.kafka.request_timeout_s
        with clients.naming_the_broker(self._settings):
            ends = self._client.end_offsets(self._partitions)
            heard = time.monotonic()
            while any(self._client.position(tp) < ends[tp] for tp in self._partitions):
                batches = self._client.poll(timeout_ms=POLL_MS)
                if batches:
                    heard = time.monotonic()
                elif time.monotonic() - heard > patience:
                    raise KafkaTimeoutError(f"{self._topic} gave nothing for {patience:.0f} s")
                for records in batches.values():
                    yield from records

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
