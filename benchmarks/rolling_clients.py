"""Who uses the product while it is restarted: a subscriber of slates, and a platform that asks for them."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import random
import threading
import time
from collections.abc import Sequence

import msgspec
from kafka import TopicPartition
from kafka.errors import KafkaError
from rolling_freshness import Cause, Requests, Seen

from stream_app.chaos.background import Background
from stream_app.chaos.crew import Crew, Slot
from stream_app.chaos.workload import USERS
from stream_app.errors import StreamAppError
from stream_app.kafka import clients
from stream_app.recommendations.slate import milliseconds
from stream_app.settings import Settings

POLL_MS = 50
ANSWER_TIMEOUT_S = 5.0


class _Cause(msgspec.Struct):
    topic: str
    partition: int
    offset: int
    received_at: str


class _Slate(msgspec.Struct):
    caused_by: _Cause | None = None


class Subscriber(Background):
    """Reads committed slates in a thread of its own, and notes when each came."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._seen: list[Seen] = []
        self._error: Exception | None = None
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise StreamAppError when it has ended by itself."""
        if self._error is not None:
            raise StreamAppError(f"slates cannot be read: {self._error!r}") from self._error

    @property
    def seen(self) -> list[Seen]:
        """All slates so far that an event caused."""
        with self._lock:
            return list(self._seen)

    def _run(self) -> None:
        topic = self._settings.topic_name("recommendations")
        try:
            with contextlib.closing(clients.consumer(self._settings)) as consumer:
                consumer.assign(
                    [TopicPartition(topic, p) for p in range(self._settings.kafka.shared_partitions)]
                )
                while not self._ending.is_set():
                    polled, now = consumer.poll(timeout_ms=POLL_MS), time.time()
                    found = [_seen(r.value, now) for records in polled.values() for r in records if r.value]
                    with self._lock:
                        self._seen += [slate for slate in found if slate is not None]
        except (KafkaError, StreamAppError, msgspec.MsgspecError) as error:
            self._error = error


def _seen(value: bytes, now: float) -> Seen | None:
    cause = msgspec.json.decode(value, type=_Slate).caused_by
    if cause is None:
        return None
    where: Cause = (cause.topic, cause.partition, cause.offset)
    return Seen(where, milliseconds(cause.received_at) / 1000, now)


class Asker(Background):
    """Asks the replicas that are ready in turn for slates, as behind a load balancer that looks at
    ``/readyz`` several times a second; in a thread of its own, a connection for each request."""

    def __init__(self, crew: Crew, rate: float, seed: int) -> None:
        """``rate``: requests a second."""
        super().__init__()
        self.requests = Requests()
        self.seconds: list[float] = []
        """That answers with status 200 took."""
        self.refusals: dict[str, int] = {}
        """How often a request failed, by what came instead of an answer."""
        self._crew, self._pause_s = crew, 1.0 / rate
        self._random = random.Random(seed)  # noqa: S311  # a simulation, no secret
        self._turn = itertools.count()

    def _run(self) -> None:
        while not self._ending.wait(self._pause_s):
            ready = [slot for slot in self._crew.of("serve") if slot.ready]
            self.requests.sent += 1
            self.requests.nobody += not ready
            turn = next(self._turn)
            first, *others = ready[turn % len(ready) :] + ready[: turn % len(ready)] if ready else [None]
            if first is None or not self._answered(first):
                self.requests.failed += 1
                self.requests.failed_again += not self._any(others)

    def _any(self, slots: Sequence[Slot | None]) -> bool:
        return any(slot is not None and self._answered(slot) for slot in slots)

    def _answered(self, slot: Slot) -> bool:
        began = time.monotonic()
        connection = http.client.HTTPConnection(
            slot.settings.serving.host, slot.settings.serving.port, timeout=ANSWER_TIMEOUT_S
        )
        try:
            connection.request("GET", f"/v1/users/user-{self._random.randrange(USERS)}/slate")
            answer = connection.getresponse()
            answer.read()
            instead = None if answer.status == http.client.OK else f"status {answer.status}"
        except (OSError, http.client.HTTPException) as error:
            instead = type(error).__name__
        finally:
            connection.close()
        if instead is None:
            self.seconds.append(time.monotonic() - began)
        else:
            self.refusals[instead] = self.refusals.get(instead, 0) + 1
        return instead is None
