"""``stream-app dlq`` against dead letters on real Kafka."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass

import pytest

from stream_app.cli import build_parser
from stream_app.commands import dlq
from stream_app.errors import StreamAppError
from stream_app.events.dead_letters import Origin, dead_letter
from stream_app.events.reasons import Reason
from stream_app.kafka import clients
from stream_app.kafka.admin import ensure_topics
from stream_app.settings import Settings


@dataclass
class Consumed:
    key: bytes | None
    value: bytes | None
    offset: int = 5
    timestamp: int = 1_780_000_000_000
    headers: tuple[tuple[str, bytes | None], ...] = (("trace", b"\x1b]0;x\x07"),)


def put(settings: Settings, *letters: tuple[Reason, Consumed]) -> None:
    with contextlib.closing(clients.producer(settings)) as client:
        for reason, record in letters:
            origin = Origin("likes", 1, record.offset, record.timestamp, 0, 0)
            key, value, headers = dead_letter(
                record, origin, reason, "what was wrong", time.time_ns() // 1_000_000
            )
            client.send(settings.topic_name("events-dlq"), value, key, headers, partition=0)
        client.flush()


def run(settings: Settings, *line: str) -> int:
    return dlq.run(build_parser().parse_args(["dlq", *line]), settings)


def test_list_count_and_show(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    ensure_topics(settings)
    put(
        settings,
        (Reason.BAD_TYPE, Consumed(b"u1", b"[\x1b[2J\xff \xc3\xa9]", 7)),
        (Reason.EMPTY, Consumed(None, b"")),
        (Reason.BAD_TYPE, Consumed(b"u3", b"x" * 5000)),
    )
    assert run(settings, "count") == 0
    assert capsys.readouterr().out.split() == ["2", "bad_type", "1", "empty", "3", "in", "all"]
    assert run(settings, "count", "--json", "--since", "1h") == 0
    assert json.loads(capsys.readouterr().out) == {"bad_type": 2, "empty": 1}
    assert run(settings, "list", "--reason", "bad_type", "--limit", "1") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "bad_type" in line
    assert "from likes/1/7  what was wrong" in line
    assert run(settings, "list", "--json", "--since", "2999-01-01") == 0
    assert capsys.readouterr().out == ""
    assert run(settings, "list", "--json") == 0
    letters = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [(x["reason"], x["bytes"], x["origin"]["topic"]) for x in letters] == [
        ("bad_type", 10, "likes"),
        ("empty", 0, "likes"),
        ("bad_type", 5000, "likes"),
    ]
    assert run(settings, "show", "0", "0") == 0
    shown = capsys.readouterr().out
    assert "value  [\\x1b[2J\\xff é]\n" in shown
    assert "header trace = \\x1b]0;x\\x07\n" in shown
    assert "header stream-app-reason = bad_type\n" in shown
    assert run(settings, "show", "0", "1") == 0
    assert "key    null" in capsys.readouterr().out
    assert run(settings, "show", "0", "2") == 0
    assert "… (5,000 bytes)" in capsys.readouterr().out
    with pytest.raises(StreamAppError, match="partition 0, offset 3"):
        run(settings, "show", "0", "3")


@pytest.mark.parametrize("text", ["yesterday", "", "7x", "d", "1e999d"])
def test_no_moment(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(Settings(), "list", "--since", text)
    assert "neither a time nor a span" in capsys.readouterr().err
