"""Small logs for tests of the evaluation."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np

from stream_app.evaluation.log import EvaluationLog, columns
from stream_app.replay.formats import DESKDROP_ACTIONS, LogRecord
from stream_app.settings import Events, Settings

SETTINGS = Settings(events=Events(actions=DESKDROP_ACTIONS))
BEGIN_MS = 1_460_000_000_000
MINUTE_MS = 60_000
DAY_MS = 1440 * MINUTE_MS


def content(name: str, minute: int = 0, **fields: object) -> LogRecord:
    """A content created at that minute."""
    time = BEGIN_MS + minute * MINUTE_MS
    value = {"content_id": name, "title": f"about {name}", "created_at": time, **fields}
    return LogRecord("content", name.encode(), msgspec.json.encode(value), time)


def deletion(name: str, minute: int) -> LogRecord:
    """A content's end."""
    return LogRecord("content", name.encode(), None, BEGIN_MS + minute * MINUTE_MS)


def event(user: str, name: str, minute: float, topic: str = "views", **fields: object) -> LogRecord:
    """An engagement at that minute."""
    time = BEGIN_MS + round(minute * MINUTE_MS)
    value = {"user_id": user, "content_id": name, "occurred_at": time, **fields}
    return LogRecord(topic, user.encode(), msgspec.json.encode(value), time)


def read(records: Iterable[LogRecord]) -> EvaluationLog:
    """The log of these records."""
    return columns(list(records), SETTINGS)


def walks(users: int = 40, contents: int = 200, events: int = 3_000, seed: int = 5) -> EvaluationLog:
    """Users who walk through a ring of contents, each step one further on: who knows a user's last step
    knows the next one. Contents are equally popular and all published at the beginning."""
    rng = np.random.default_rng(seed)
    records = [content(f"c{i}") for i in range(contents)]
    records += [event("publisher", f"c{i}", 0) for i in range(contents)]
    at = rng.integers(0, contents, users)
    for minute in range(1, events + 1):
        user = int(rng.integers(users))
        records.append(event(f"u{user}", f"c{at[user]}", minute))
        at[user] = (at[user] + 1) % contents
    return read(records)


def fashions(users: int = 20, contents: int = 60, seed: int = 5) -> list[LogRecord]:
    """Every day another content is in fashion: all users come to it that day, in an order drawn by lot. In
    the end everybody has touched everything, so what a user touches when is all that there is to learn."""
    rng = np.random.default_rng(seed)
    records = [content(f"c{i}") for i in range(contents)]
    records += [event("publisher", f"c{i}", 0) for i in range(contents)]
    for day in range(contents):
        minutes = np.sort(rng.choice(1400, users, replace=False)) + 1440 * day + 1
        for minute, user in zip(minutes.tolist(), rng.permutation(users).tolist(), strict=True):
            records.append(event(f"u{user}", f"c{day}", minute))
    return records


def shuffled_futures(records: list[LogRecord], after: float, seed: int = 6) -> list[LogRecord]:
    """The same log, but from the part ``after`` on each user's contents change places in time."""
    rng = np.random.default_rng(seed)
    events = [i for i, record in enumerate(records) if record.is_event]
    later: dict[bytes | None, list[int]] = {}
    for i in events[int(after * len(events)) :]:
        later.setdefault(records[i].key, []).append(i)
    changed = list(records)
    for places in later.values():
        values = [msgspec.json.decode(records[i].value or b"") for i in places]
        for i, value, other in zip(places, values, rng.permutation(len(places)).tolist(), strict=True):
            new = value | {"content_id": values[other]["content_id"]}
            changed[i] = LogRecord(
                records[i].topic, records[i].key, msgspec.json.encode(new), records[i].time_ms
            )
    return changed
