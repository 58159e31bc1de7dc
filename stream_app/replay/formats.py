"""Recorded logs as iterators of records: our JSON lines, and the Deskdrop CSV files.

**JSON lines** (``.jsonl``, ``.jsonl.gz``): one object a line, in the order of its time (without ``--speed``
contents go first, see :mod:`stream_app.replay.contents_first`)::

    {"topic": "content", "value": {"content_id": "c1", "title": "Rain at last", "created_at": 1467331200000}}
    {"topic": "likes", "value": {"user_id": "u1", "content_id": "c1", "occurred_at": "2016-07-01T00:10:00Z"}}
    {"topic": "content", "key": "c1", "value": null}

``topic`` is an event topic's name without ``kafka.topic_prefix``, or ``content``. ``value`` is sent byte
for byte as it stands, null as a tombstone. ``key`` may be left out: it is the value's ``user_id``,
or ``content_id`` for a content. ``--speed`` paces by the value's ``occurred_at``, or ``created_at``.

**Deskdrop**: a directory with ``articles.csv.gz`` and ``events.csv.gz``.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from io import BufferedReader
from itertools import islice
from operator import length_hint
from pathlib import Path
from typing import Literal

import msgspec

from stream_app.errors import ConfigurationError
from stream_app.settings import Action, Settings

Format = Literal["jsonl", "deskdrop"]

CONTENT_TOPIC = "content"

DESKDROP_ACTIONS = (
    Action(name="view", topic="views", weight=0.3),
    Action(name="like", topic="likes", weight=1.0),
    Action(name="bookmark", topic="bookmarks", weight=2.0),
    Action(name="comment", topic="comments", weight=2.0),
    Action(name="follow", topic="follows", weight=3.0),
)
"""Actions of the Deskdrop log; ``examples/deskdrop.toml`` has the same."""

_DESKDROP_TOPICS = {
    "VIEW": "views",
    "LIKE": "likes",
    "BOOKMARK": "bookmarks",
    "COMMENT CREATED": "comments",
    "FOLLOW": "follows",
}


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One record of a log, ready to be produced."""

    topic: str
    """Name without the prefix."""
    key: bytes | None
    value: bytes | None
    time_ms: int | None
    """When it happened in the log's time; None when the log does not say."""

    @property
    def is_event(self) -> bool:
        """An event, not a content."""
        return self.topic != CONTENT_TOPIC


@dataclass(frozen=True)
class Log:
    """A log being read, once."""

    records: Iterator[LogRecord]
    fraction: Callable[[], float]
    """How much of it has been read, 0 to 1."""


def detect(path: Path) -> Format:
    """The format of what is at ``path``. Raises ConfigurationError when it is none."""
    if (path / "events.csv.gz").is_file() and (path / "articles.csv.gz").is_file():
        return "deskdrop"
    if path.is_file() and path.name.endswith((".jsonl", ".jsonl.gz")):
        return "jsonl"
    raise ConfigurationError(
        f"--log {path}: neither a file named .jsonl or .jsonl.gz, nor a directory with events.csv.gz and "
        "articles.csv.gz"
    )


def with_actions_of(settings: Settings, log_format: Format) -> Settings:
    """Settings whose actions are those of a log of this format; JSON lines have the configured ones."""
    if log_format == "jsonl":
        return settings
    events = msgspec.structs.replace(settings.events, actions=DESKDROP_ACTIONS)
    return msgspec.structs.replace(settings, events=events)


def open_log(path: Path, log_format: Format, limit: int | None = None) -> Log:
    """The log's records in the order to be produced, with at most ``limit`` events.

    Raises ConfigurationError, while reading too, naming file and line of what cannot be read.
    """
    return _deskdrop(path, limit) if log_format == "deskdrop" else _json_lines(path, limit)


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    topic: str
    value: msgspec.Raw
    key: str | msgspec.UnsetType | None = msgspec.UNSET


class _Fields(msgspec.Struct):
    """What is read of a value, if it is there and of the right type."""

    user_id: str | None = None
    content_id: str | None = None
    occurred_at: datetime | int | None = None
    created_at: datetime | int | None = None


def _json_lines(path: Path, limit: int | None) -> Log:
    try:
        raw = path.open("rb")
        size = max(path.stat().st_size, 1)
    except OSError as error:
        raise ConfigurationError(f"--log {path}: {error.strerror}") from None
    return Log(_parsed_lines(path, raw, limit), lambda: 1.0 if raw.closed else raw.tell() / size)


def _parsed_lines(path: Path, raw: BufferedReader, limit: int | None) -> Iterator[LogRecord]:
    read = msgspec.json.Decoder(_Line).decode
    events = 0
    with raw, gzip.open(raw) if path.name.endswith(".gz") else raw as lines:
        for number, text in enumerate(_lines(path, lines), 1):
            if text.isspace():
                continue
            try:
                record = _record(read(text))
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise ConfigurationError(f"--log {path}, line {number}: {error}") from None
            if record.is_event:
                if events == limit:
                    return
                events += 1
            yield record


def _lines(path: Path, lines: Iterable[bytes]) -> Iterator[bytes]:
    try:
        yield from lines
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigurationError(f"--log {path}: {error}") from None


def _record(line: _Line) -> LogRecord:
    raw = bytes(line.value)
    value = None if raw == b"null" else raw
    try:
        fields = msgspec.json.decode(value, type=_Fields) if value is not None else _Fields()
    except (msgspec.MsgspecError, ValueError, RecursionError):
        fields = _Fields()  # a bad event in a log is sent as it is: rejecting it is the worker's part
    if line.topic == CONTENT_TOPIC:
        key, time = fields.content_id, fields.created_at
    else:
        key, time = fields.user_id, fields.occurred_at
    if line.key is not msgspec.UNSET:
        key = line.key
    if key is None and value is None:
        raise ValueError("neither a key nor a value")
    if isinstance(time, datetime):
        time = round(time.timestamp() * 1000)
    return LogRecord(line.topic, None if key is None else key.encode(), value, time)


def _deskdrop(path: Path, limit: int | None) -> Log:
    """Contents and events merged in time order. A content comes at its publication, or just before its
    first event if that is earlier or there is no publication date; contents after the last event are
    left out."""
    try:
        rows = list(islice(_rows(path / "events.csv.gz"), limit))
        articles = list(_rows(path / "articles.csv.gz"))
        first_seen: dict[str, int] = {}
        events = []
        for number, row in enumerate(rows, 1):
            time_ms = int(row["timestamp"]) * 1000
            first_seen.setdefault(row["content_id"], time_ms)
            # rows repeat in this log: each is an event of its own, named by its number
            event = {
                "event_id": f"deskdrop-{number}",
                "user_id": row["user_id"],
                "content_id": row["content_id"],
                "occurred_at": time_ms,
            }
            events.append(_encoded(_DESKDROP_TOPICS[row["event_type"]], row["user_id"], event, time_ms))
        begin = min((r.time_ms or 0 for r in events), default=0)
        end = max((r.time_ms or 0 for r in events), default=0)
        contents = []
        for row in articles:
            content_id = row["content_id"]
            created = int(row["published_at"] or 0) * 1000 or first_seen.get(content_id, begin)
            due = min(created, first_seen.get(content_id, created))
            if due <= end:
                content = {"content_id": content_id, "title": row["title"], "created_at": created}
                contents.append(_encoded(CONTENT_TOPIC, content_id, content, due))
    except (OSError, EOFError, zlib.error, KeyError, ValueError, csv.Error) as error:
        raise ConfigurationError(f"--log {path}: not the Deskdrop files: {error!r}") from None
    # stable: at the same time contents stay before events, and events in the order of the file
    records = sorted(contents + events, key=lambda r: r.time_ms or 0)
    remaining = iter(records)
    return Log(remaining, lambda: 1 - length_hint(remaining) / max(len(records), 1))


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _encoded(topic: str, key: str, value: dict[str, object], time_ms: int) -> LogRecord:
    return LogRecord(topic, key.encode(), msgspec.json.encode(value), time_ms)
