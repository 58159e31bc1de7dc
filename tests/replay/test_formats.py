"""Recorded logs: what is read, in which order, and what a bad file says."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from stream_app.errors import ConfigurationError
from stream_app.replay.formats import (
    DESKDROP_ACTIONS,
    LogRecord,
    detect,
    open_log,
    with_actions_of,
)
from stream_app.settings import Settings, load

EXAMPLE = Path(__file__).parents[2] / "examples" / "deskdrop.toml"


def jsonl(path: Path, *lines: str) -> Path:
    text = "\n".join(lines) + "\n"
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def read(path: Path, limit: int | None = None) -> list[LogRecord]:
    return list(open_log(path, detect(path), limit).records)


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    path = jsonl(
        tmp_path / name,
        '{"topic":"content","value":{"content_id":"c1","title":"Ré","created_at":1467331200000}}',
        "",
        '{"topic": "likes", "value": {"user_id": "u1",  "occurred_at": "2016-07-01T00:10:00Z"}}',
        '{"topic":"likes","key":"other","value":{"user_id":"u1"}}',
        '{"topic":"likes","key":null,"value":[1,{"a":2}]}',
        '{"topic":"content","key":"c1","value":null}',
    )
    assert read(path) == [
        LogRecord(
            "content",
            b"c1",
            '{"content_id":"c1","title":"Ré","created_at":1467331200000}'.encode(),
            1467331200000,
        ),
        LogRecord(
            "likes",
            b"u1",
            b'{"user_id": "u1",  "occurred_at": "2016-07-01T00:10:00Z"}',
            1467331800000,
        ),
        LogRecord("likes", b"other", b'{"user_id":"u1"}', None),
        LogRecord("likes", None, b'[1,{"a":2}]', None),
        LogRecord("content", b"c1", None, None),
    ]


def test_a_limit_counts_events_only(tmp_path: Path) -> None:
    content = '{"topic":"content","value":{"content_id":"c"}}'
    event = '{"topic":"likes","value":{"user_id":"u"}}'
    path = jsonl(tmp_path / "log.jsonl", content, event, content, event, content, event)
    assert [r.topic for r in read(path, 2)] == ["content", "likes", "content", "likes", "content"]


def test_the_fraction_reaches_one(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "log.jsonl", '{"topic":"likes","value":{}}')
    log = open_log(path, "jsonl")
    assert len(list(log.records)) == 1
    assert log.fraction() == 1.0


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"topic":"likes"}',
        '{"topic":1,"value":{}}',
        '{"topic":"likes","value":{},"x":1}',
        "[" * 9999,
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = jsonl(tmp_path / "log.jsonl", '{"topic":"likes","value":{}}', line)
    with pytest.raises(ConfigurationError, match=r"log\.jsonl, line 2: "):
        read(path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"topic":"likes","value":{}}\n' * 1000)[:-20])
    with pytest.raises(ConfigurationError, match=r"log\.jsonl\.gz"):
        read(path)


@pytest.mark.parametrize("name", ["missing.jsonl", "events.csv", "."])
def test_what_is_no_log_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "events.csv").touch()
    with pytest.raises(ConfigurationError, match="--log"):
        detect(tmp_path / name)


def deskdrop(folder: Path, articles: list[tuple[str, ...]], events: list[tuple[str, ...]]) -> Path:
    heads = {
        "articles.csv.gz": ("content_id", "title", "published_at", "lang"),
        "events.csv.gz": ("timestamp", "event_type", "content_id", "user_id", "session_id"),
    }
    for (name, head), rows in zip(heads.items(), (articles, events), strict=True):
        with gzip.open(folder / name, "wt", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([head, *rows])
    return folder


def value(record: LogRecord) -> dict[str, Any]:
    assert record.value is not None
    found: dict[str, Any] = json.loads(record.value)
    return found


def test_deskdrop(tmp_path: Path) -> None:
    path = deskdrop(
        tmp_path,
        [
            ("-9", "Late, é", "300", ""),  # first event before publication
            ("7", "Undated", "", "pt"),
            ("8", "Never seen", "", ""),
            ("5", "After the end", "900", ""),
        ],
        [
            ("100", "VIEW", "7", "-1", "s"),
            ("200", "COMMENT CREATED", "-9", "-1", "s"),
            ("200", "COMMENT CREATED", "-9", "-1", "s"),
            ("400", "FOLLOW", "7", "2", "s"),
        ],
    )
    records = read(path)
    assert [(r.topic, r.time_ms) for r in records] == [
        ("content", 100_000),
        ("content", 100_000),
        ("views", 100_000),
        ("content", 200_000),
        ("comments", 200_000),
        ("comments", 200_000),
        ("follows", 400_000),
    ]
    assert value(records[3]) == {"content_id": "-9", "title": "Late, é", "created_at": 300_000}
    assert value(records[0])["created_at"] == value(records[1])["created_at"] == 100_000
    assert value(records[6]) == {
        "event_id": "deskdrop-4",
        "user_id": "2",
        "content_id": "7",
        "occurred_at": 400_000,
    }
    assert records[6].key == b"2"
    names = [value(r)["event_id"] for r in records if r.is_event]
    assert len(set(names)) == 4
    assert [r.time_ms for r in read(path, 1)] == [100_000] * 3


def test_deskdrop_of_other_columns_is_refused(tmp_path: Path) -> None:
    path = deskdrop(tmp_path, [], [("100", "SNEEZE", "7", "1", "s")])
    with pytest.raises(ConfigurationError, match="SNEEZE"):
        read(path)


def test_the_example_configuration_has_the_logs_actions() -> None:
    settings = load(str(EXAMPLE), {})
    assert settings.events.actions == DESKDROP_ACTIONS
    assert with_actions_of(Settings(), "deskdrop").events.actions == DESKDROP_ACTIONS
    assert with_actions_of(settings, "jsonl") is settings
