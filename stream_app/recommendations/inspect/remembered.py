"""What the inspection page shows of a user: the newest record, the slate, and the slate before it.

A ranker remembers those whom it ranked last; anybody else is looked up on the topics, which reads one
partition of each from its beginning: right for a person who asks, and nothing else.
"""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from stream_app.kafka import clients
from stream_app.kafka.records import Record
from stream_app.recommendations import slate as slates
from stream_app.recommendations.pipeline import Change
from stream_app.recommendations.slate import COLD_START_USER, Slate
from stream_app.settings import Settings

LOOK_UP_S = 20.0
"""A person does not wait longer."""


class SlowError(Exception):
    """The topics could not be read within LOOK_UP_S."""


@dataclass(slots=True)
class Seen:
    """One user."""

    record: bytes | None = None
    """Interest record, as it stands on ``interests``"""
    slate: Slate | None = None
    before: Slate | None = None
    """The slate that ``slate`` took the place of"""


class Remembered:
    """The ``capacity`` users ranked last; one thread uses it."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._users: OrderedDict[bytes, Seen] = OrderedDict()

    def __len__(self) -> int:
        return len(self._users)

    def received(self, records: Iterable[Record]) -> None:
        """Records of ``interests``, of users; who has gone is forgotten at once."""
        for record in records:
            if record.key is None:
                continue
            if record.value is None:
                self._users.pop(record.key, None)
            else:
                self._user(record.key).record = record.value

    def published(self, changes: Sequence[Change]) -> None:
        """Slates that stand on the topic now."""
        for change in changes:
            if change.user == COLD_START_USER:
                continue
            if change.slate is None:
                if (seen := self._users.get(change.user)) is not None:
                    seen.slate = seen.before = None
                continue
            seen = self._user(change.user)
            seen.slate, seen.before = change.slate, seen.slate

    def get(self, user: bytes) -> Seen | None:
        """None when the user is not remembered, or not wholly."""
        seen = self._users.get(user)
        return seen if seen is not None and seen.record is not None and seen.slate is not None else None

    def anyone(self) -> bytes | None:
        """Some user, drawn at random; None when there is none."""
        return random.choice(list(self._users)) if self._users else None  # noqa: S311  # to look at

    def _user(self, user: bytes) -> Seen:
        seen = self._users.get(user)
        if seen is None:
            if len(self._users) >= self._capacity:
                self._users.popitem(last=False)
            seen = self._users[user] = Seen()
        self._users.move_to_end(user)
        return seen


def look_up(settings: Settings, user: bytes) -> Seen | None:
    """What stands on the topics of a user; None when there is nothing. Blocking.

    The slate before is there until the broker compacts its log. Raises SlowError, BrokerUnavailableError,
    AccessError.
    """
    seen, deadline = Seen(), time.monotonic() + LOOK_UP_S
    for topic in ("interests", "recommendations"):
        for record in clients.read_topic(settings, settings.topic_name(topic), key=user):
            if time.monotonic() > deadline:
                raise SlowError
            if record.key != user:
                continue
            if topic == "interests":
                seen.record = record.value
            elif record.value is None:
                seen.slate = seen.before = None
            else:
                seen.slate, seen.before = _slate(record.value), seen.slate
    return seen if seen.record is not None or seen.slate is not None else None


def _slate(value: bytes) -> Slate | None:
    try:
        return slates.decode(value)
    except msgspec.DecodeError:
        return None
