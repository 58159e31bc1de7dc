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


def event(user: str, name: str, minute: int, topic: str = "views", **fields: object) -> LogRecord:
    """An engagement at that minute."""
    time = BEGIN_MS + minute * MINUTE_MS
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
