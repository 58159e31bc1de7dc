"""A recorded log as columns: what was published when, who engaged with what, and which touches count.

The records are decoded and judged by the same code as live ones; a record's arrival is its own time,
so the clock of an evaluation is the log's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.content.schema import ContentDecoder, Text
from stream_app.events.decode import EventDecoder
from stream_app.events.times import LATEST_MS
from stream_app.hashing import key64
from stream_app.kafka.records import Record, arrived
from stream_app.replay.formats import LogRecord
from stream_app.settings import Settings
from stream_app.topics import DAY_MS

STRONG_WITHIN_MS = 7 * DAY_MS
STRONG_WEIGHT = 1.0
"""An engagement of at least this weight is a strong one: a like is, a view is not."""


@dataclass(frozen=True)
class Catalogue:
    """The N contents of a log, in the order in which they come out: at any time the first so many are
    published, and those alone may be scored."""

    ids: list[bytes]
    texts: list[Text]
    due: NDArray[np.int64]
    """[N], ms, ascending: when a content comes out; its publication, or its first event if earlier"""
    created_at: NDArray[np.int64]
    """[N], ms, as its record says"""
    authors: NDArray[np.uint64]
    """[N], key64(author); 0 = unknown"""
    withdrawn: NDArray[np.int64]
    """[N], ms: when it was deleted; the largest int64 = never"""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class EvaluationLog:
    """E events in the log's order. Exact repeats (time, action, content, user) are left out."""

    catalogue: Catalogue
    user_ids: list[bytes]
    """[U], in the order of their first events"""
    records: list[LogRecord]
    """[E], as they would be produced"""
    users: NDArray[np.int64]
    """[E], 0..U-1"""
    contents: NDArray[np.int64]
    """[E], 0..N-1"""
    actions: NDArray[np.int64]
    """[E], index into ``settings.events.actions``"""
    weights: NDArray[np.float64]
    """[E], of the actions"""
    times: NDArray[np.int64]
    """[E], ms, event time"""
    now: NDArray[np.int64]
    """[E], ms, stream time: the newest event time so far"""
    undo: NDArray[np.bool_]
    """[E]"""
    published: NDArray[np.int64]
    """[E], how many contents are published when the event comes, its own among them"""
    first: NDArray[np.bool_]
    """[E], a user's first engagement with a content"""
    touch: NDArray[np.bool_]
    """[E], a target: a first engagement of positive weight which is not the content's first of all: that one
    published it, and nobody could have been shown it"""
    strong: NDArray[np.bool_]
    """[E], a touch that turns into an engagement of weight ≥ STRONG_WEIGHT within STRONG_WITHIN_MS"""
    history: NDArray[np.int64]
    """[E], how many contents the user had engaged with before"""
    skipped: int
    """Records that were no events, came too late, or name a content that the log does not have"""

    def __len__(self) -> int:
        return len(self.times)


def columns(records: Sequence[LogRecord], settings: Settings) -> EvaluationLog:
    """The log of these records, contents and events in time order. ``settings`` name its actions."""
    arrivals = _arrivals(records)
    events = sum(record.is_event for record in records)
    decoded = _decoded(records, arrivals, settings)
    order = np.argsort(decoded.at, kind="stable")
    at, times, actions = (column[order] for column in (decoded.at, decoded.times, decoded.actions))
    undo = decoded.undo[order]
    users_of = [decoded.users[i] for i in order.tolist()]
    contents_of = [decoded.contents[i] for i in order.tolist()]

    first_seen: dict[bytes, int] = {}
    now = np.maximum.accumulate(times) if len(times) else times
    for content, time in zip(contents_of, now.tolist(), strict=True):
        first_seen.setdefault(content, time)
    catalogue = _catalogue(records, arrivals, settings, first_seen)
    row_of = {content: row for row, content in enumerate(catalogue.ids)}
    contents = np.array([row_of.get(content, -1) for content in contents_of], np.int64)
    names: dict[bytes, int] = {}
    users = np.array([names.setdefault(user, len(names)) for user in users_of], np.int64)

    keep = (contents >= 0) & (times >= now - int(settings.events.max_age_days * DAY_MS))
    keep[keep] &= now[keep] < catalogue.withdrawn[contents[keep]]
    fit = int(keep.sum())
    keep &= ~_repeated(keep, times, actions, contents, users, undo)
    at, users, contents, actions = at[keep], users[keep], contents[keep], actions[keep]
    times, now, undo = times[keep], now[keep], undo[keep]
    weights = np.array([action.weight for action in settings.events.actions], np.float64)[actions]
    first, touch, strong, history = _touches(users, contents, weights, times, undo)
    return EvaluationLog(
        catalogue=catalogue,
        user_ids=list(names),
        records=[records[i] for i in at.tolist()],
        users=users,
        contents=contents,
        actions=actions,
        weights=weights,
        times=times,
        now=now,
        undo=undo,
        published=np.maximum.accumulate(
            np.maximum(np.searchsorted(catalogue.due, now, side="right"), contents + 1)
        )
        if len(now)
        else now,
        first=first,
        touch=touch,
        strong=strong,
        history=history,
        skipped=events - fit,
    )


@dataclass(slots=True)
class _Decoded:
    """Accepted events, topic by topic."""

    at: NDArray[np.int64]
    """Into the records"""
    times: NDArray[np.int64]
    actions: NDArray[np.int64]
    undo: NDArray[np.bool_]
    users: list[bytes]
    contents: list[bytes]


def _decoded(records: Sequence[LogRecord], arrivals: Sequence[Record], settings: Settings) -> _Decoded:
    """What the live decoder accepts."""
    by_topic: dict[str, list[int]] = {action.topic: [] for action in settings.events.actions}
    for i, record in enumerate(records):
        if record.topic in by_topic:
            by_topic[record.topic].append(i)
    decoder = EventDecoder(settings)
    batches = [
        (
            np.array(at, np.int64),
            decoder.decode([arrivals[i] for i in at], settings.topic_name(topic), 0, None, LATEST_MS),
        )
        for topic, at in by_topic.items()
    ]
    return _Decoded(
        np.concatenate([at[batch.source] for at, batch in batches]),
        np.concatenate([batch.times for _, batch in batches]),
        np.concatenate([batch.actions for _, batch in batches]),
        np.concatenate([batch.undo for _, batch in batches]),
        [user for _, batch in batches for user in batch.users],
        [content for _, batch in batches for content in batch.contents],
    )


def _arrivals(records: Sequence[LogRecord]) -> list[Record]:
    """A record that does not say when it happened arrives with the one before it; contents come late
    enough for any creation date, as in a replay."""
    arrivals: list[Record] = []
    last = 0
    for offset, record in enumerate(records):
        last = max(last, record.time_ms or 0)
        time = (record.time_ms or last) if record.is_event else LATEST_MS
        arrivals.append(arrived(record.topic, 0, offset, time, record.key, record.value))
    return arrivals


def _catalogue(
    records: Sequence[LogRecord],
    arrivals: Sequence[Record],
    settings: Settings,
    first_seen: dict[bytes, int],
) -> Catalogue:
    """Contents by their first version: a later one is not known yet when they come out."""
    decoder = ContentDecoder(settings, lambda: LATEST_MS)  # a log knows no now
    texts: dict[bytes, Text] = {}
    due: dict[bytes, int] = {}
    withdrawn: dict[bytes, int] = {}
    last = min((record.time_ms for record in records if record.time_ms), default=0)
    for record, arrival in zip(records, arrivals, strict=True):
        last = max(last, record.time_ms or 0)
        if record.is_event:
            continue
        for content, text in decoder.decode([arrival]).newest.items():
            if text is None:
                withdrawn.setdefault(content, last)
            elif content not in texts:
                unknown = text.created_at == arrival.timestamp
                texts[content] = dataclasses.replace(text, created_at=last) if unknown else text
                out = last if record.time_ms is None else record.time_ms
                due[content] = min(out, first_seen.get(content, out))
    ids = sorted(texts, key=due.__getitem__)
    never = np.iinfo(np.int64).max
    return Catalogue(
        ids=ids,
        texts=[texts[content] for content in ids],
        due=np.array([due[content] for content in ids], np.int64),
        created_at=np.array([texts[content].created_at for content in ids], np.int64),
        authors=np.array([key64(a) if (a := texts[content].author) else 0 for content in ids], np.uint64),
        withdrawn=np.array([withdrawn.get(content, never) for content in ids], np.int64),
    )


def _repeated(keep: NDArray[np.bool_], *names: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Whether the same names came before in an event that is kept."""
    repeated = np.zeros(len(keep), np.bool_)
    seen: set[tuple[object, ...]] = set()
    for i, name in enumerate(zip(*(column.tolist() for column in names), strict=True)):
        if keep[i]:
            repeated[i] = name in seen
            seen.add(name)
    return repeated


def _touches(
    users: NDArray[np.int64],
    contents: NDArray[np.int64],
    weights: NDArray[np.float64],
    times: NDArray[np.int64],
    undo: NDArray[np.bool_],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    """First engagements, targets, those that are strong, and each event's history length."""
    first, touch, strong = (np.zeros(len(users), np.bool_) for _ in range(3))
    history = np.zeros(len(users), np.int64)
    began: dict[tuple[int, int], int] = {}
    known: set[int] = set()
    lengths: dict[int, int] = {}
    for i, (user, content) in enumerate(zip(users.tolist(), contents.tolist(), strict=True)):
        history[i] = lengths.get(user, 0)
        if undo[i]:
            continue
        begin = began.setdefault((user, content), i)
        if begin == i:
            lengths[user] = lengths.get(user, 0) + 1
            first[i] = True
            touch[i] = content in known and weights[i] > 0
            known.add(content)
        if weights[i] >= STRONG_WEIGHT and times[i] - times[begin] <= STRONG_WITHIN_MS:
            strong[begin] = touch[begin]
    return first, touch, strong, history
