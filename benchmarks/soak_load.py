"""The soak's load: events at a steady rate over a fixed population, contents that come and go."""

from __future__ import annotations

import random
import time
from collections import deque

import msgspec
from kafka import KafkaProducer

from stream_app.demo.world import read_posts
from stream_app.kafka import clients
from stream_app.settings import Settings

TOPICS = ("likes", "likes", "likes", "comments", "shares")
UNDO, DUPLICATE, MALFORMED, UNKNOWN = 0.02, 0.01, 0.005, 0.005
"""Shares of what real producers send besides good events."""
FOLLOW_UP_AFTER = 200
"""Events between one and its undo or duplicate."""
YOUNG, OLD = 20, 20
"""Contents not engaged with: those that may not be encoded yet, and those about to be deleted."""
WORDS = 40
FIRST_ROUND_S = 30.0
"""Events start this long after the first contents, which are encoded meanwhile."""


class Load:
    """What is due by a time of the soak's own clock goes out by :meth:`feed`."""

    def __init__(
        self, settings: Settings, seed: int, *, rate: float, users: int, contents: int, churn: float
    ) -> None:
        """``rate`` events a second, ``churn`` contents a second that appear, and as many that go."""
        self.events = 0
        """Event records sent."""
        self.contents = 0
        """Contents ever sent."""
        self.failed = 0
        """Records that the broker did not take."""
        self.pause_s = min(0.02, 1.0 / rate)
        self._settings = settings
        self._random = random.Random(seed)  # noqa: S311  # a simulation, no secret
        self._rate, self._users, self._size, self._churn = rate, users, contents, churn
        self._words = [word for post in read_posts() for word in post.text.split()]
        self._standing: deque[str] = deque()
        self._sent: deque[tuple[str, bytes, bytes]] = deque(maxlen=FOLLOW_UP_AFTER)
        self._producer: KafkaProducer | None = None

    def open(self) -> None:
        """Connect."""
        self._producer = clients.producer(self._settings, compression_type=None)

    def feed(self, seconds: float) -> None:
        """Send what is due ``seconds`` after the start."""
        while len(self._standing) < self._size:
            self._appear()
        while self.contents < self._size + self._churn * seconds:
            self._appear()
            self._send("content", self._standing.popleft().encode(), None)
        while self.events < self._rate * (seconds - FIRST_ROUND_S):
            self._engage()

    def close(self) -> None:
        """Send what is on its way; the connection ends."""
        if self._producer is not None:
            self._producer.close(10.0)

    def _appear(self) -> None:
        content_id = f"content-{self.contents:07d}"
        self.contents += 1
        self._standing.append(content_id)
        text = " ".join(self._random.choices(self._words, k=WORDS))
        fields = {"text": text, "author": f"author-{self.contents % 100}", "created_at": _now_ms()}
        self._send("content", content_id.encode(), msgspec.json.encode(fields))

    def _engage(self) -> None:
        chance = self._random.random()
        follow_up = UNDO + DUPLICATE
        if chance < follow_up and len(self._sent) == FOLLOW_UP_AFTER:
            topic, user, value = self._sent[0]
            if chance < UNDO:
                value = msgspec.json.encode(
                    {**msgspec.json.decode(value), "undo": True, "occurred_at": _now_ms()}
                )
        else:
            number = self._random.randrange(YOUNG, len(self._standing) - OLD)
            content_id = self._standing[len(self._standing) - 1 - number]
            if follow_up <= chance < follow_up + UNKNOWN:
                content_id = f"never-{self.events}"
            topic, user = self._random.choice(TOPICS), b"user-%05d" % self._random.randrange(self._users)
            fields = {
                "event_id": f"e{self.events}",
                "user_id": user.decode(),
                "content_id": content_id,
                "occurred_at": _now_ms(),
            }
            value = msgspec.json.encode(fields)
            if follow_up + UNKNOWN <= chance < follow_up + UNKNOWN + MALFORMED:
                value = value[: len(value) // 2]
            else:
                self._sent.append((topic, user, value))
        self.events += 1
        self._send(topic, user, value)

    def _send(self, topic: str, key: bytes, value: bytes | None) -> None:
        assert self._producer is not None, "open first"  # noqa: S101  # a caller's mistake
        self._producer.send(self._settings.topic_name(topic), key=key, value=value).add_errback(
            self._count_failure
        )

    def _count_failure(self, _error: BaseException) -> None:
        self.failed += 1


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
