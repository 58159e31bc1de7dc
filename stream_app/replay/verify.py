"""Every user's state computed from the log alone, compared with what stands on ``interests``.

This is the definition written down once more, in float64 and one event at a time, on purpose without a line
of the arithmetic that it checks::

    S = Σᵢ wᵢ · 2^(-(t_ref - tᵢ)/h) · eᵢ        mass = Σᵢ |wᵢ| · 2^(-(t_ref - tᵢ)/h)

over what stands of a user's accepted events; t_ref is the newest of their times. Of one id of an action the
newest original stands; once taken back, only one that is later than every undo and not the only one. An
event counts as accepted unless it is a dead letter. What is seen as a repeat, or can be undone, is
bounded in the product by ``interests.recent``; here it is not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_app.content import vectors
from stream_app.content.model import model_id
from stream_app.errors import StreamAppError
from stream_app.events.dead_letters import PREFIX
from stream_app.interests.record import InterestRecord, decode
from stream_app.kafka import clients
from stream_app.replay.formats import LogRecord
from stream_app.settings import Settings

TOLERANCE = 1e-5
DAY_MS = 86_400_000


class Verified(msgspec.Struct, kw_only=True):
    """The outcome of a comparison; what stands under ``verified`` in a summary."""

    users: int
    """Users compared: in the log and on ``interests``."""
    max_relative_error: float
    """Largest of all users' vectors and masses, relative to the expected ones."""
    missing: int
    """Users without a record, though they have an accepted event and have not faded."""
    surplus: int
    """Users with a record, but without an accepted event in the log."""
    differing: int
    """Users whose error is above TOLERANCE, or whose t_ref is another."""

    @property
    def equal(self) -> bool:
        """The topic says what the log says."""
        return not (self.missing or self.surplus or self.differing)


class _Event(msgspec.Struct):
    user_id: str
    content_id: str
    event_id: str | None = None
    occurred_at: datetime | int | None = None
    undo: bool | None = None


@dataclass(slots=True)
class _Engagement:
    topic: str
    content: bytes
    time: int
    weight: float


_Name = tuple[str, str | int]


@dataclass(slots=True)
class _User:
    t_ref: int = 0
    standing: dict[_Name, _Engagement] = field(default_factory=dict)
    """What stands, by topic and event id; an event without one has a number of its own."""
    sent: dict[_Name, list[_Engagement]] = field(default_factory=dict)
    undone: dict[_Name, int] = field(default_factory=dict)
    """The newest undo's time, ms"""
    later: list[tuple[str, bytes]] = field(default_factory=list)
    """Undos without event id for which nothing stood yet: tried again when all has been sent."""


@dataclass(slots=True)
class _Expected:
    t_ref: int
    mass: float
    vector: NDArray[np.float64]


def verify(settings: Settings, records: Iterable[LogRecord]) -> Verified:
    """Compare ``interests`` with these records of a log, all of whose events are settled.

    Holds all distinct events in memory. Raises StreamAppError when the log cannot say what the state must be.
    """
    expected = _expected(settings, records)
    found = {
        user: decode(value) for user, value in _newest(settings, "interests").items() if value is not None
    }
    newest = max((state.t_ref for state in expected.values()), default=0)
    half_life_ms = settings.interests.half_life_days * DAY_MS

    def faded(state: _Expected) -> bool:
        half_lives = (newest - state.t_ref) / half_life_ms
        return state.mass * math.pow(2.0, -half_lives) < settings.interests.min_mass

    both = expected.keys() & found.keys()
    errors = [_error(expected[user], found[user]) for user in both]
    return Verified(
        users=len(both),
        max_relative_error=max(errors, default=0.0),
        missing=sum(not faded(expected[user]) for user in expected.keys() - found.keys()),
        surplus=len(found.keys() - expected.keys()),
        differing=sum(
            error > TOLERANCE or expected[user].t_ref != found[user].t_ref
            for user, error in zip(both, errors, strict=True)
        ),
    )


def _error(expected: _Expected, found: InterestRecord) -> float:
    """The larger relative error of vector and mass; infinite when they cannot be compared."""
    if found.vector.shape != expected.vector.shape:
        return math.inf
    length = float(np.linalg.norm(expected.vector)) or 1.0  # all undone: then the error is absolute
    vector = float(np.linalg.norm(found.vector - expected.vector)) / length
    mass = abs(found.mass - expected.mass) / (expected.mass or 1.0)
    worst = max(vector, mass)
    return worst if math.isfinite(vector + mass) else math.inf


def _expected(settings: Settings, records: Iterable[LogRecord]) -> dict[bytes, _Expected]:
    contents = _contents(settings)
    dimensions = settings.content.dimensions
    half_life_ms = settings.interests.half_life_days * DAY_MS
    states = {}
    for key, user in _users(settings, records).items():
        total = np.zeros(dimensions)
        mass = 0.0
        for event in user.standing.values():
            if (vector := contents.get(event.content)) is None:
                raise StreamAppError(
                    "--verify: the log has accepted events on contents that are no longer on "
                    "content-vectors; their users' state cannot be recomputed"
                )
            left = event.weight * 2.0 ** (-(user.t_ref - event.time) / half_life_ms)
            total += left * vector
            mass += abs(left)
        states[key] = _Expected(user.t_ref, mass, total)
    return states


def _contents(settings: Settings) -> dict[bytes, NDArray[np.float64]]:
    """Each content's newest vector by the configured encoder, of deleted ones too; zeros without text."""
    model = model_id(settings)
    nothing = np.zeros(settings.content.dimensions)
    found = {}
    for key, value in _newest(settings, "content-vectors", keep_deleted=True).items():
        place = vectors.split_key(key)
        if value is not None and place is not None and place.former is None:
            record = vectors.decode(value)
            if record.model == model and (place.code is not None or place.content_id not in found):
                vector = record.vector.astype(np.float64)
                found[place.content_id] = vector if vector.size else nothing
    return found


def _users(settings: Settings, records: Iterable[LogRecord]) -> dict[bytes, _User]:
    """Users with an accepted event, and which of their events stand."""
    weights = {action.topic: action.weight for action in settings.events.actions}
    rejected = _dead_letters(settings)
    read = msgspec.json.Decoder(_Event).decode
    users: dict[bytes, _User] = {}
    for number, record in enumerate(records):
        if not record.is_event or record.value is None:
            continue
        letter = (settings.topic_name(record.topic), record.key, record.value)
        if rejected[letter] > 0:
            rejected[letter] -= 1
            continue
        try:
            event = read(record.value)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue  # a dead letter too long to be kept whole, by which it would have been recognised
        time = event.occurred_at
        if time is None:
            raise StreamAppError(
                "--verify: the log has events without occurred_at, so it does not say what the state must be"
            )
        if isinstance(time, datetime):
            time = round(time.timestamp() * 1000)
        user = users.setdefault(event.user_id.encode(), _User())
        engagement = _Engagement(record.topic, event.content_id.encode(), time, weights[record.topic])
        _take(user, event, engagement, number)
    for user in users.values():
        for topic, content in user.later:
            _take_back_latest(user, topic, content)
    return users


def _take(user: _User, event: _Event, engagement: _Engagement, number: int) -> None:
    """One accepted event of a user, in the log's order."""
    name = (engagement.topic, number if event.event_id is None else event.event_id)
    user.t_ref = max(user.t_ref, engagement.time)
    if event.undo and event.event_id is None:
        if not _take_back_latest(user, engagement.topic, engagement.content, engagement.time):
            user.later.append((engagement.topic, engagement.content))
        return
    if event.undo:
        user.undone[name] = max(engagement.time, user.undone.get(name, engagement.time))
    else:
        user.sent.setdefault(name, []).append(engagement)
    _settle(user, name)


def _settle(user: _User, name: _Name) -> None:
    """What stands of one id."""
    user.standing.pop(name, None)
    sent = user.sent.get(name, [])
    newest = max(sent, key=lambda one: one.time, default=None)
    if newest is None:
        return
    undone = user.undone.get(name)
    if undone is None or (newest.time > undone and len({one.time for one in sent}) > 1):
        user.standing[name] = newest


def _take_back_latest(user: _User, topic: str, content: bytes, time: int | None = None) -> bool:
    """Undo the newest standing event of this action on this content; of two, the one that came last."""
    latest: _Name | None = None
    for name, event in user.standing.items():
        if (event.topic, event.content) == (topic, content) and (
            latest is None or event.time >= user.standing[latest].time
        ):
            latest = name
    if latest is None:
        return False
    newest = user.standing.pop(latest).time
    user.undone[latest] = max(newest, newest if time is None else time)
    return True


def _dead_letters(settings: Settings) -> Counter[tuple[str, bytes | None, bytes | None]]:
    """How often each (topic, key, value) was dead-lettered."""
    letters: Counter[tuple[str, bytes | None, bytes | None]] = Counter()
    for record in clients.read_topic(settings, settings.topic_name("events-dlq")):
        topic = dict(record.headers).get(f"{PREFIX}topic") or b""
        letters[topic.decode(errors="replace"), record.key, record.value] += 1
    return letters


def _newest(settings: Settings, topic: str, *, keep_deleted: bool = False) -> dict[bytes, bytes | None]:
    """The newest value of each key; with ``keep_deleted`` the last one before a deletion."""
    newest: dict[bytes, bytes | None] = {}
    for record in clients.read_topic(settings, settings.topic_name(topic)):
        if record.key is not None and not (keep_deleted and record.value is None):
            newest[record.key] = record.value
    return newest
