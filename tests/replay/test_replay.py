"""Producing a log to real Kafka, and the accounts that replay keeps of it."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from stream_app.cli import build_parser
from stream_app.commands import replay
from stream_app.errors import ConfigurationError, TopicMismatchError
from stream_app.hashing import key64
from stream_app.interests.statistics_record import OUTCOMES_KEY, Outcomes
from stream_app.kafka import clients
from stream_app.kafka.admin import ensure_topics
from stream_app.replay.accounting import Accounts, Summary, read_outcomes
from stream_app.replay.formats import LogRecord
from stream_app.replay.producer import Produced, produce
from stream_app.settings import Settings

NOW_S = int(time.time())
"""Slates of long ago would be deleted by retention under the test's eyes."""


def event(user: str, time_ms: int | None = None) -> LogRecord:
    return LogRecord("likes", user.encode(), json.dumps({"user_id": user}).encode(), time_ms)


def put_outcomes(settings: Settings, partition: int, outcomes: Outcomes, *, commit: bool = True) -> None:
    """As an interests worker does it: in a transaction, so that a marker follows the record."""
    with contextlib.closing(
        clients.producer(settings, transactional_id=f"{settings.kafka.app_id}-test")
    ) as client:
        client.init_transactions()
        client.begin_transaction()
        topic = settings.topic_name("content-stats")
        client.send(topic, b"statistics", b"some content", partition=partition)
        client.send(topic, msgspec.json.encode(outcomes), OUTCOMES_KEY, partition=partition)
        client.flush()
        if commit:
            client.commit_transaction()
        else:
            client.abort_transaction()


def put_slates(settings: Settings, slates: Sequence[tuple[bytes, dict[str, object] | None]]) -> None:
    with contextlib.closing(clients.producer(settings)) as client:
        for key, slate in slates:
            value = None if slate is None else json.dumps(slate).encode()
            client.send(settings.topic_name("recommendations"), value, key, timestamp_ms=NOW_S * 1000 + 250)
        client.flush()


def caused(milliseconds: int) -> dict[str, object]:
    second = datetime.fromtimestamp(NOW_S, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return {"user_id": "u", "caused_by": {"received_at": f"{second}.{milliseconds:03d}Z"}}


def test_produced_in_order_under_the_users_key(settings: Settings) -> None:
    ensure_topics(settings)
    seen: list[int] = []
    records = [LogRecord("content", b"c1", b"{}", None), *(event(f"u{i % 5}", i) for i in range(500))]
    produced = produce(settings, records, progress=lambda so_far: seen.append(so_far.events))
    assert (produced.events, produced.contents) == (500, 1)
    assert produced.users == {key64(f"u{i}") for i in range(5)}
    assert seen == list(range(501))
    sent: dict[bytes, set[int]] = {}
    for record in clients.read_topic(settings, settings.topic_name("likes")):
        assert json.loads(record.value) == {"user_id": record.key.decode()}
        sent.setdefault(record.key, set()).add(record.partition)
    assert sorted(sent) == [b"u0", b"u1", b"u2", b"u3", b"u4"]
    assert all(len(partitions) == 1 for partitions in sent.values())


def test_speed_paces_by_log_time(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_topics(settings)
    clock = [1000.0]
    monkeypatch.setattr("stream_app.replay.producer.monotonic", lambda: clock[0])
    monkeypatch.setattr("stream_app.replay.producer.sleep", lambda s: clock.__setitem__(0, clock[0] + s))
    due: list[float] = []

    def note(so_far: Produced) -> None:
        if so_far.events > len(due):
            due.append(clock[0] - 1000)

    produce(settings, [event("u", 50_000), event("u", None), event("u", 60_000)], speed=10.0, progress=note)
    assert due == pytest.approx([0.0, 0.0, 1.0])


def test_a_topic_of_no_action_is_named(settings: Settings) -> None:
    ensure_topics(settings)
    with pytest.raises(ConfigurationError, match="'views'"):
        produce(settings, [LogRecord("views", b"u", b"{}", None)])


def test_accounts_are_the_difference_to_the_start(settings: Settings) -> None:
    ensure_topics(settings)
    put_outcomes(settings, 0, Outcomes(applied=10, dead_lettered=2, retrying=1))
    put_slates(settings, [(b"old", caused(0)), (b"gone", caused(0)), (b"gone", None)])
    with contextlib.closing(Accounts(settings)) as accounts:
        users = {key64(u) for u in ("old", "gone", "new", "late")}
        assert accounts.summary(7, users) == Summary(
            produced=7,
            applied=0,
            duplicates=0,
            dead_lettered=0,
            retrying=0,
            active_users=4,
            users_with_slate=1,
            slates=0,
            freshness_ms=accounts.summary(0, set()).freshness_ms,
        )
        put_outcomes(settings, 0, Outcomes(applied=13, dead_lettered=2, duplicates=1, retrying=2))
        put_outcomes(settings, 1, Outcomes(applied=2))
        put_outcomes(settings, 1, Outcomes(applied=999), commit=False)
        put_slates(settings, [(b"new", caused(150)), (b"new", caused(50)), (b"\x00cold-start", caused(0))])
        put_slates(settings, [(b"stranger", {"caused_by": None})])
        summary = accounts.summary(7, users)
        assert (summary.applied, summary.duplicates, summary.dead_lettered, summary.retrying) == (5, 1, 0, 1)
        assert summary.accounted == 7
        assert not summary.settled
        assert (summary.users_with_slate, summary.slates) == (2, 3)
        assert summary.freshness_ms.p50 == pytest.approx(150)
        assert summary.freshness_ms.p99 == pytest.approx(199)
        assert msgspec.json.decode(msgspec.json.encode(summary), type=Summary) == summary
        put_outcomes(settings, 0, Outcomes(applied=14, dead_lettered=2, duplicates=1, retrying=1))
        summary = accounts.wait(7, {key64("new")}, patience_s=30, progress=lambda _: None)
        assert summary.complete
    assert read_outcomes(settings) == Outcomes(applied=16, dead_lettered=2, duplicates=1, retrying=1)


def test_missing_topics_are_named(settings: Settings) -> None:
    with pytest.raises(TopicMismatchError, match="content-stats"):
        Accounts(settings)


def arguments(*line: str) -> argparse.Namespace:
    return build_parser().parse_args(["replay", *line])


def test_the_command_without_workers_says_what_is_open(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"topic":"likes","value":{"user_id":"u","content_id":"c"}}\n' * 3)
    file = tmp_path / "summary.json"
    line = ["--log", str(log), "--timeout", "0.3", "--summary", str(file)]
    assert replay.run(arguments(*line), settings) == 1
    assert "3 events have no final outcome" in capsys.readouterr().err
    summary = json.loads(file.read_text())
    assert summary["produced"] == 3
    assert summary["freshness_ms"] == {"p50": None, "p99": None}
    assert replay.run(arguments(*line, "--no-wait", "--limit", "2"), settings) == 0
    assert json.loads(file.read_text())["produced"] == 2
