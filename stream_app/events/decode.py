"""From raw records of one partition to columns: decoding and validation in one pass; no bad record raises.

The JSON is typed in one go by msgspec; the loop below only looks at what a type cannot say. Whatever
fails is named on the slow path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_app.events.dead_letters import origin_of
from stream_app.events.faults import DECODING_ERRORS, UnfitError, check_id, check_readable, explain
from stream_app.events.mending import read_mended
from stream_app.events.reasons import Reason
from stream_app.events.schema import IDS, Event
from stream_app.events.times import EARLIEST_MS, LATEST_MS, unit, wall_clock
from stream_app.hashing import action_code, action_mask, key64
from stream_app.kafka.records import Record
from stream_app.settings import Settings
from stream_app.topics import DAY_MS, is_copy_topic


@dataclass(slots=True)
class Rejected:
    """One record that is no event."""

    index: int
    """Into the input records."""
    reason: Reason
    detail: str
    """One short sentence, never with user data."""


@dataclass(slots=True)
class DecodedBatch:
    """The accepted events as columns (E events, in input order) and the rejected records.

    Each input record is in exactly one of ``source`` and ``rejected``."""

    source: NDArray[np.int64]
    """[E], index into the input records"""
    users: list[bytes]
    """[E], UTF-8 user ids"""
    contents: list[bytes]
    """[E], UTF-8 content ids"""
    actions: NDArray[np.int64]
    """[E], index into ``settings.events.actions``"""
    events: NDArray[np.uint64]
    """[E], key64 of the event id, or of "topic-partition-offset-timestamp" where none was given, combined
    with the action (:func:`action_mask`): ids are unique for each action"""
    named: NDArray[np.bool_]
    """[E], an event id was given"""
    times: NDArray[np.int64]
    """[E], event time, ms"""
    undo: NDArray[np.bool_]
    """[E]"""
    received: NDArray[np.int64]
    """[E], Kafka timestamp of the first arrival, ms; now, where that lies in the future"""
    rejected: list[Rejected]


class EventDecoder:
    """Decodes record batches of the event topics and of the topics of copies."""

    def __init__(self, settings: Settings) -> None:
        events = settings.events
        self._read = msgspec.json.Decoder(Event).decode
        self._action_by_topic = {settings.topic_name(a.topic): i for i, a in enumerate(events.actions)}
        self._masks = np.array([action_mask(action_code(a.name)) for a in events.actions], np.uint64)
        self._max_bytes = events.max_bytes
        self._max_id_bytes = events.max_id_bytes
        self._max_future_ms = int(events.max_future_s * 1000)
        self._max_age_ms = int(events.max_age_days * DAY_MS)

    def decode(
        self,
        records: Sequence[Record],
        topic: str,
        partition: int,
        stream_time_ms: int | None,
        now_ms: int | None = None,
    ) -> DecodedBatch:
        """Columns of the records of one partition of ``topic`` (its full name).

        ``stream_time_ms`` is the newest accepted event time before this batch, None when there is none
        yet. No event time is taken that is later than ``now_ms`` (missing: this machine's clock) by more
        than ``events.max_future_s``. Raises KeyError if ``topic`` carries no events; no record makes it
        raise.
        """
        now = wall_clock() if now_ms is None else now_ms
        copied = topic not in self._action_by_topic and is_copy_topic(topic)
        action = -1 if copied else self._action_by_topic[topic]
        read, max_bytes, max_id, future = self._read, self._max_bytes, self._max_id_bytes, self._max_future_ms
        oldest, latest = EARLIEST_MS, min(now + future, LATEST_MS)
        if stream_time_ms is not None:
            oldest = max(oldest, stream_time_ms - self._max_age_ms)
        users: list[bytes] = []
        contents: list[bytes] = []
        actions: list[int] = []
        events: list[int] = []
        unnamed: list[int] = []
        times: list[int] = []
        undoing: list[int] = []
        received: list[int] = []
        rejected: list[Rejected] = []
        for index, record in enumerate(records):
            try:
                value = record.value
                if not value:
                    check_readable(record)
                    raise UnfitError(Reason.EMPTY, "the value is null or has no bytes")
                if len(value) > max_bytes:
                    raise UnfitError(Reason.OVERSIZED, f"{len(value)} bytes, at most {max_bytes} are taken")
                arrival, place = record.timestamp, None
                if copied:
                    place = origin_of(record, topic, partition)
                    if place.topic not in self._action_by_topic:
                        raise UnfitError(Reason.BAD_ORIGIN, "headers name no topic of a configured action")
                    action, arrival = self._action_by_topic[place.topic], place.timestamp
                try:
                    event = read(value)
                except DECODING_ERRORS as error:
                    event = read_mended(read, value, error, IDS)
                if not value.isascii():
                    value.decode()  # msgspec skips ignored fields without looking at their encoding
                user, content = event.user_id.encode(), event.content_id.encode()
                if not (
                    len(user) <= max_id
                    and len(content) <= max_id
                    and event.user_id.isprintable()
                    and event.content_id.isprintable()
                ):
                    check_id("user_id", event.user_id, max_id)
                    check_id("content_id", event.content_id, max_id)
                name = event.event_id
                if not name:
                    # with its time: offsets start at 0 again when the topic is deleted and made anew
                    if place is None:
                        name_key = key64(f"{topic}-{partition}-{record.offset}-{arrival}")
                    else:
                        name_key = key64(f"{place.topic}-{place.partition}-{place.offset}-{arrival}")
                else:
                    encoded = name.encode()
                    if not (0 < len(encoded) <= max_id and name.isprintable()):
                        check_id("event_id", name, max_id)
                    name_key = key64(encoded)
                time = event.occurred_at
                if time is None:
                    time = arrival
                elif type(time) is not int:
                    time = round(time.timestamp() * 1000)  # type: ignore[union-attr]  # a datetime: not None, not int
                if not oldest <= time <= arrival + future or time > latest:
                    raise _misplaced(time, arrival, now, future, event.occurred_at is None)
            except UnfitError as fault:
                rejected.append(Rejected(index, fault.reason, fault.detail))
                continue
            except DECODING_ERRORS as error:
                rejected.append(Rejected(index, *explain(error, "occurred_at", record.value or b"")))
                continue
            if event.undo is True:
                undoing.append(len(users))
            if not name:
                unnamed.append(len(users))
            users.append(user)
            contents.append(content)
            if copied:
                actions.append(action)
            events.append(name_key)
            times.append(time)
            received.append(arrival)
        source = np.arange(len(records), dtype=np.int64)
        if rejected:
            source = np.delete(source, [one.index for one in rejected])
        of_actions = np.array(actions, np.int64) if copied else np.full(len(source), action, np.int64)
        return DecodedBatch(
            source,
            users,
            contents,
            of_actions,
            np.array(events, np.uint64) ^ self._masks[of_actions],
            _all_but(unnamed, len(source)),
            np.array(times, np.int64),
            ~_all_but(undoing, len(source)),
            np.minimum(np.array(received, np.int64), now),
            rejected,
        )


def _all_but(places: list[int], count: int) -> NDArray[np.bool_]:
    marks = np.ones(count, np.bool_)
    marks[places] = False
    return marks


def _misplaced(time: int, arrival: int, now: int, future_ms: int, missing: bool) -> UnfitError:
    """The fault of an event time outside its limits."""
    if missing and time < EARLIEST_MS:
        return UnfitError(
            Reason.BAD_TIMESTAMP, "occurred_at is missing and the Kafka timestamp is before the year 2000"
        )
    if not -(1 << 63) <= time < 1 << 63:
        return UnfitError(Reason.BAD_TIMESTAMP, "occurred_at is no 64-bit number of milliseconds")
    if missing and time > now:
        return UnfitError(
            Reason.TIMESTAMP_IN_FUTURE,
            f"occurred_at is missing and the Kafka timestamp is {time - now} ms ahead of now",
        )
    if time > LATEST_MS:
        return UnfitError(Reason.TIMESTAMP_IN_FUTURE, f"the event time is after the year 2200{unit(time)}")
    if time > arrival + future_ms:
        return UnfitError(
            Reason.TIMESTAMP_IN_FUTURE, f"{time - arrival} ms after the Kafka timestamp, at most {future_ms}"
        )
    if time > now:
        return UnfitError(Reason.TIMESTAMP_IN_FUTURE, f"{time - now} ms ahead of now, at most {future_ms}")
    if time < EARLIEST_MS:
        return UnfitError(
            Reason.TOO_OLD,
            f"the event time is before the year 2000; numbers are Unix milliseconds{unit(time)}",
        )
    return UnfitError(Reason.TOO_OLD, "older than events.max_age_days before stream time")
