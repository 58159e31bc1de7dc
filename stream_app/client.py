"""For programs on the platform's side: send events, follow slates. Needs neither torch nor Faust.

    with EventProducer() as producer:
        like = producer.like("ana", "post-1")
        producer.undo(like)

    for update in Subscriber(group="home-page"):
        show(update.user_id, update.slate)

Settings are those of the workers (:func:`stream_app.settings.load`): broker, TLS and SASL, topics, actions.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec
from kafka import ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import KafkaError

from stream_app.content.schema import Content
from stream_app.errors import ConfigurationError, DeliveryError
from stream_app.events.faults import UnfitError, check_id
from stream_app.kafka import clients
from stream_app.recommendations import slate as slates
from stream_app.recommendations.slate import COLD_START_USER, Slate
from stream_app.settings import Settings, load

log = logging.getLogger(__name__)

COLD_START_USER_ID = COLD_START_USER.decode()
"""``user_id`` of the slate for users who have none."""

IN_ORDER = {"enable_idempotence": False, "acks": "all", "max_in_flight_requests_per_connection": 1}
"""Idempotence would end the producer for good at the first record that a broker refuses, say for its size.
Event ids recognise what is sent twice, and one request at a time keeps the order."""
POLL_MS = 200
COMMIT_INTERVAL_S = 1.0


class SentEvent(NamedTuple):
    """What was sent, to take it back or to send it again."""

    action: str
    user_id: str
    content_id: str
    event_id: str
    occurred_at: int
    """Unix milliseconds"""


class EventProducer:
    """Sends events and contents. One may be shared by threads, as kafka-python's producer may.

    Sending does not wait: what could not be delivered is raised as DeliveryError by the next ``flush`` or
    ``close``. Within a delivery the library tries again by itself; a program that sends an event anew
    gives it the same ``event_id``, by which it counts once.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Connects. Raises ConfigurationError, BrokerUnavailableError, AccessError."""
        self._settings = load() if settings is None else settings
        self._topics = {a.name: self._settings.topic_name(a.topic) for a in self._settings.events.actions}
        self._contents = self._settings.topic_name("content")
        self._shown = self._settings.topic_name("impressions")
        self._lock = threading.Lock()
        self._failed = 0
        self._failure: BaseException | None = None  # the first one
        self._producer = clients.producer(self._settings, **IN_ORDER)

    def like(self, user: str, content: str, **options: Any) -> SentEvent:
        """``send("like", …)``"""
        return self.send("like", user, content, **options)

    def comment(self, user: str, content: str, **options: Any) -> SentEvent:
        """``send("comment", …)``"""
        return self.send("comment", user, content, **options)

    def share(self, user: str, content: str, **options: Any) -> SentEvent:
        """``send("share", …)``"""
        return self.send("share", user, content, **options)

    def send(
        self,
        action: str,
        user: str,
        content: str,
        *,
        event_id: str | None = None,
        occurred_at: datetime | int | None = None,
        text: str | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> SentEvent:
        """Send an event of any configured action.

        ``event_id`` is made up unless it is given; ``occurred_at`` (an aware datetime, or Unix
        milliseconds) is now unless it is given; ``headers`` are the record's, such as ``traceparent``.
        Raises ConfigurationError for an action that is not configured, ValueError for ids and times that the
        workers would refuse.
        """
        event = SentEvent(action, user, content, event_id or uuid.uuid4().hex, _milliseconds(occurred_at))
        self._send(event, {} if text is None else {"text": text}, headers)
        return event

    def undo(self, event: SentEvent) -> None:
        """Take an event back (unlike, deleted comment). It may be sent before the event itself arrives."""
        self._send(event, {"undo": True})

    def shown(
        self,
        user: str,
        contents: Sequence[str],
        *,
        slate_id: str | None = None,
        shown_at: datetime | int | None = None,
    ) -> None:
        """Say what was really shown: content ids, the topmost first. ``slate_id`` is that of the slate they
        came from; ``shown_at`` is as ``occurred_at`` for events. Sent twice, it counts once.

        Raises ValueError for what the workers would refuse.
        """
        fields: dict[str, Any] = {
            "user_id": user,
            "items": list(contents),
            "shown_at": _milliseconds(shown_at),
        }
        if slate_id is not None:
            fields["slate_id"] = slate_id
        most = self._settings.impressions.max_contents
        if not 0 < len(fields["items"]) <= most:
            raise ValueError(
                f"{len(contents)} contents: at least one, at most impressions.max_contents ({most})"
            )
        for field, text in (("user_id", user), *(("content_id", content_id) for content_id in contents)):
            self._check(field, text)
        value = msgspec.json.encode(fields)
        if len(value) > self._settings.events.max_bytes:
            raise ValueError(f"the impression has {len(value)} bytes, at most events.max_bytes are taken")
        self._hand_over(self._shown, user, value)

    def publish(self, content_id: str, content: Content) -> None:
        """Publish or replace a content. Raises ValueError for what the content worker would refuse."""
        self._check("content_id", content_id)
        fields = {name: value for name, value in msgspec.structs.asdict(content).items() if value is not None}
        value = msgspec.json.encode(fields)
        if len(value) > self._settings.content.max_bytes:
            raise ValueError(f"the content has {len(value)} bytes, at most content.max_bytes are taken")
        self._hand_over(self._contents, content_id, value)

    def delete(self, content_id: str) -> None:
        """Delete a content: it leaves every slate."""
        self._check("content_id", content_id)
        self._hand_over(self._contents, content_id, None)

    def flush(self) -> None:
        """Return once everything that was sent stands on Kafka. Raises DeliveryError when something does
        not, after ``kafka.request_timeout_s`` at most twice over."""
        try:
            self._producer.flush(2 * self._settings.kafka.request_timeout_s)
        except KafkaError as error:
            self._note(error)
        self._raise()

    def close(self) -> None:
        """Flush, then disconnect; may be called more than once. Raises DeliveryError."""
        try:
            self.flush()
        finally:
            self._producer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:  # the program's own error is the one to be told
            self._producer.close()

    def _send(
        self, event: SentEvent, more: dict[str, Any], headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        if event.action not in self._topics:
            known = ", ".join(self._topics)
            raise ConfigurationError(f"{event.action!r} is no action: events.actions has {known}")
        for name in ("user_id", "content_id", "event_id"):
            self._check(name, getattr(event, name))
        fields = event._asdict() | more
        topic = self._topics[fields.pop("action")]
        value = msgspec.json.encode(fields)
        if len(value) > self._settings.events.max_bytes:
            raise ValueError(f"the event has {len(value)} bytes, at most events.max_bytes are taken")
        self._hand_over(topic, event.user_id, value, headers)

    def _hand_over(
        self, topic: str, key: str, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        with clients.naming_the_broker(self._settings):
            sent = self._producer.send(topic, key=key.encode(), value=value, headers=list(headers))
        sent.add_errback(self._note)

    def _check(self, field: str, text: str) -> None:
        try:
            check_id(field, text, self._settings.events.max_id_bytes)
        except UnfitError as error:
            raise ValueError(error.detail) from None

    def _note(self, error: BaseException) -> None:
        """Called by the library's thread."""
        with self._lock:
            self._failed += 1
            self._failure = self._failure or error

    def _raise(self) -> None:
        with self._lock:
            failed, self._failed = self._failed, 0
            failure, self._failure = self._failure, None
        if failure is not None:
            raise DeliveryError(
                f"{failed} records may not stand on Kafka ({type(failure).__name__}): send them again, "
                "events with the same event_id"
            ) from failure


def _milliseconds(time_: datetime | int | None) -> int:
    """Unix milliseconds; None is now."""
    if time_ is None:
        return time.time_ns() // 1_000_000
    if isinstance(time_, int):
        return time_
    if time_.tzinfo is None:
        raise ValueError(f"{time_} has no time zone: give an aware datetime, or Unix milliseconds")
    return round(time_.timestamp() * 1000)


class Update(NamedTuple):
    """What becomes of one user's slate."""

    user_id: str
    """COLD_START_USER_ID: of everybody who has no slate"""
    slate: Slate | None
    """None: withdrawn, since the user has faded or was erased; show the slate of COLD_START_USER_ID. Where
    nothing is left that the user has not engaged with there is a slate without items"""
    headers: tuple[tuple[str, bytes], ...] = ()
    """Of its record: ``traceparent``, where workers trace events"""


class Subscriber:
    """Iterates over slates as they are published, and over their withdrawals. For one thread.

    Without a ``group`` it starts with everybody's newest slate, each time; that is for a program that holds
    them all. The members of a group share the users among them and go on where the group was.

    An update counts as done when the next one is asked for, also when that is in a later loop: a loop may
    be left and entered again, and goes on with the update after the last one. What is done is committed;
    after a crash or ``close`` the others come again, the last one in hand among them.
    """

    def __init__(
        self, settings: Settings | None = None, *, group: str | None = None, idle_s: float | None = None
    ) -> None:
        """Connects. ``idle_s``: iterating ends when nothing came for so long; for ever without.

        Raises ConfigurationError, BrokerUnavailableError, AccessError.
        """
        settings = load() if settings is None else settings
        self._topic = settings.topic_name("recommendations")
        self._group, self._idle_s = group, idle_s
        self._waiting: deque[ConsumerRecord] = deque()  # fetched, and not handed out yet
        self._in_hand: ConsumerRecord | None = None
        self._done: dict[TopicPartition, OffsetAndMetadata] = {}
        self._committed = time.monotonic()
        self.rejected = 0
        """Records that are no slates, and were skipped."""
        self._consumer = clients.consumer(settings, group_id=group)
        self._consumer.subscribe([self._topic], listener=_Rebalance(self))

    def __iter__(self) -> Iterator[Update]:
        """Updates, one user's in their order."""
        self._finish()  # the last one of an earlier loop
        moved = time.monotonic()
        while self._waiting or self._idle_s is None or time.monotonic() - moved < self._idle_s:
            while self._waiting:
                self._in_hand = self._waiting.popleft()
                if (update := self._update(self._in_hand)) is not None:
                    yield update
                self._finish()
                moved = time.monotonic()
            # nothing is in hand, nor waits: partitions may go to another member here
            for records in self._consumer.poll(timeout_ms=POLL_MS).values():
                self._waiting.extend(records)
            self._commit(COMMIT_INTERVAL_S)

    def close(self) -> None:
        """Commit what is done, and disconnect; may be called more than once."""
        try:
            self._commit(0.0)
        finally:
            self._waiting.clear()
            self._in_hand, self._done = None, {}
            self._consumer.close(autocommit=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _update(self, record: ConsumerRecord) -> Update | None:
        try:
            user = record.key.decode()
            slate = None if record.value is None else slates.decode(record.value)
            return Update(user, slate, tuple(record.headers))
        except (AttributeError, UnicodeDecodeError, msgspec.DecodeError):
            self.rejected += 1
            log.warning("%s[%d] offset %d is no slate", record.topic, record.partition, record.offset)
            return None

    def _finish(self) -> None:
        """What is in hand is done."""
        if self._in_hand is not None:
            record, self._in_hand = self._in_hand, None
            tp = TopicPartition(record.topic, record.partition)
            self._done[tp] = OffsetAndMetadata(record.offset + 1, "", -1)
            self._commit(COMMIT_INTERVAL_S)

    def _commit(self, interval_s: float) -> None:
        """What is done, unless that was less than ``interval_s`` ago. A commit that fails is tried again
        with the next: at worst something comes twice."""
        if self._group is None or not self._done or time.monotonic() - self._committed < interval_s:
            return
        self._committed = time.monotonic()
        try:
            self._consumer.commit(self._done)
            self._done = {}
        except KafkaError as error:
            log.warning("the position of group %s could not be committed: %r", self._group, error)


class _Rebalance(ConsumerRebalanceListener):  # type: ignore[misc]  # untyped base
    """Partitions that go to another member go with their position."""

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber

    def on_partitions_revoked(self, revoked: Any) -> None:
        """Called while nothing is in hand, nor waits: within the poll."""
        self._subscriber._commit(0.0)
        self._subscriber._done.clear()

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Reading goes on where the group was."""
