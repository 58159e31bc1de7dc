"""``stream-app dlq redrive`` on real Kafka: what is produced, what is refused, and a kill in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stream_app.cli import build_parser
from stream_app.commands import dlq
from stream_app.commands.dlq_redrive import CHUNK_LETTERS
from stream_app.demo.roles import environment
from stream_app.errors import ConfigurationError, FencedError, StreamAppError
from stream_app.events.dead_letters import Origin, dead_letter, our_headers
from stream_app.events.reasons import Reason
from stream_app.kafka import clients
from stream_app.settings import Settings
from tests.events.test_dlq_command import Consumed

NOW = 1_780_000_000_000
VALUE = b'{"user_id":"u5","content_id":"c1"}'


def put(
    settings: Settings,
    *offsets: int,
    topic: str = "likes",
    reason: Reason = Reason.UNKNOWN_CONTENT,
    key: bytes | None = b"u5",
    value: bytes | None = VALUE,
    partition: int = 1,
    redrives: int = 0,
    age_s: int = 0,
) -> None:
    """Dead letters, so old, of records that first arrived at these offsets."""
    written_ms = time.time_ns() // 1_000_000 - 1000 * age_s
    with clients.producer(settings) as client:
        for offset in offsets:
            origin = Origin(settings.topic_name(topic), partition, offset, NOW, 7, 0, redrives)
            letter = dead_letter(Consumed(key, value, offset, NOW), origin, reason, "", written_ms)
            client.send(
                settings.topic_name("events-dlq"), letter[1], letter[0], letter[2], partition=offset % 2
            )


def run(settings: Settings, *line: str) -> int:
    return dlq.run(build_parser().parse_args(["dlq", *line]), settings)


def redrive(settings: Settings, capsys: pytest.CaptureFixture[str], *line: str) -> dict[str, Any]:
    run(settings, "redrive", *line, "--json")
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def copies(settings: Settings, topic: str = "events-retry") -> list[tuple[int, int]]:
    """(partition, offset of first arrival) of the copies, sorted."""
    found = clients.read_topic(settings, settings.topic_name(topic))
    return sorted((r.partition, int(our_headers(r)["offset"])) for r in found if our_headers(r))


@pytest.mark.usefixtures("topics")
def test_what_is_asked_for_is_redriven_once(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    put(settings, 1, 2, 3)
    put(settings, 4, reason=Reason.TOO_OLD, age_s=1800)
    put(settings, 6, reason=Reason.TOO_OLD, age_s=7200)
    put(settings, 5, topic="shares", partition=0)
    wanted = {"redriven": 4, "redriven_before": 0, "refused": {}, "dry_run": True}
    assert redrive(settings, capsys, "--reason", "unknown_content", "--dry-run") == wanted
    assert copies(settings) == []
    assert redrive(settings, capsys, "--topic", "shares")["redriven"] == 1
    assert copies(settings) == [(1, 5)]  # where the user lives
    assert redrive(settings, capsys, "--reason", "unknown_content", "--limit", "2")["redriven"] == 2
    assert redrive(settings, capsys, "--until", "3h")["redriven"] == 0
    done = redrive(settings, capsys, "--reason", "unknown_content", "--reason", "too_old", "--since", "1h")
    assert (done["redriven"], done["redriven_before"]) == (2, 3)
    assert copies(settings) == [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5)]
    assert redrive(settings, capsys, "--until", "1h")["redriven"] == 1
    again = redrive(settings, capsys, "--all")
    assert (again["redriven"], again["redriven_before"]) == (0, 6)
    assert len(copies(settings)) == 6


@pytest.mark.usefixtures("topics")
def test_letters_that_had_their_chance_are_not_counted_any_more(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    put(settings, 2, 3)
    assert run(settings, "redrive", "0", "0") == 0
    assert capsys.readouterr().out.split() == ["1", "redriven"]
    assert run(settings, "count", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"unknown_content": 1}
    assert run(settings, "count", "--json", "--redriven") == 0
    assert json.loads(capsys.readouterr().out) == {"unknown_content": 2}
    assert run(settings, "list") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "likes/1/3" in line
    assert run(settings, "list", "--redriven", "--json") == 0
    listed = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert sorted((x["offset"], x["partition"], x["redriven"]) for x in listed) == [
        (0, 0, True),
        (0, 1, False),
    ]
    with pytest.raises(StreamAppError, match="partition 0, offset 1"):  # the mark of the redrive
        run(settings, "show", "0", "1")


@pytest.mark.usefixtures("topics")
def test_refusals_are_counted_and_told(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    put(settings, 1, redrives=3)
    put(settings, 3, value=b"")
    put(settings, 5, topic="views")
    put(settings, 7, topic="content", partition=2)
    put(settings, 9, value=b"x" * 1_500_000)
    put(settings, 11)
    done = redrive(settings, capsys, "--all")
    kinds = {"too_often", "no_value", "foreign", "no_partition", "truncated"}
    assert done == {"redriven": 1, "redriven_before": 0, "refused": dict.fromkeys(kinds, 1), "dry_run": False}
    assert copies(settings) == [(1, 11)]
    assert run(settings, "redrive", "1", "0") == 1
    shown = capsys.readouterr()
    assert "1 0  refused: The record has had `events.max_redrives` second chances." in shown.err
    assert shown.out.split() == ["0", "redriven", "1", "refused:", "too_often"]


@pytest.mark.usefixtures("topics")
def test_nothing_is_done_when_it_is_not_clear_which_letters(settings: Settings) -> None:
    put(settings, 2)
    with pytest.raises(ConfigurationError, match="or --all"):
        run(settings, "redrive")
    with pytest.raises(ConfigurationError, match="PARTITION OFFSET"):
        run(settings, "redrive", "0")
    with pytest.raises(StreamAppError, match="partition 0, offset 77"):
        run(settings, "redrive", "0", "0", "0", "77")
    assert copies(settings) == []


@pytest.mark.usefixtures("topics")
def test_a_content_is_redriven_unless_a_newer_one_stands(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    content = settings.topic_name("content")
    with clients.producer(settings) as client:
        for offset, key in enumerate([b"a", b"b", b"c", b"b"]):
            sent = client.send(content, b'{"text":"%d"}' % offset, key, partition=1).get(10)
            assert sent.offset == offset
    for offset, key in enumerate([b"a", b"b", b"c"]):
        put(settings, offset, topic="content", key=key, value=b'{"text":"old"}', reason=Reason.BAD_TIMESTAMP)
    done = redrive(settings, capsys, "--topic", "content")
    assert (done["redriven"], done["refused"]) == (2, {"superseded": 1})
    newest = {r.key: r.value for r in clients.read_topic(settings, content)}
    assert newest == {b"a": b'{"text":"old"}', b"b": b'{"text":"3"}', b"c": b'{"text":"old"}'}
    assert copies(settings, "content") == [(1, 0), (1, 2)]
    assert redrive(settings, capsys, "--all")["redriven"] == 0


@pytest.mark.usefixtures("topics")
def test_a_letter_that_was_written_twice_has_one_chance(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    put(settings, 2, 2, 4, 2)
    done = redrive(settings, capsys, "--all")
    assert (done["redriven"], done["redriven_before"]) == (2, 2)
    put(settings, 2, 4)  # as an erasure of somebody else writes them anew
    done = redrive(settings, capsys, "--all")
    assert (done["redriven"], done["redriven_before"]) == (0, 6)
    assert copies(settings) == [(1, 2), (1, 4)]


DYING = """
import os, signal, sys
import aiokafka
from stream_app import cli
from stream_app.kafka.transactions import Transactions

step, number = sys.argv[1], int(sys.argv[2])
calls = 0

def dying(original, before):
    async def call(self, *args, **kwargs):
        global calls
        calls += 1
        if before and calls == number:
            if step == "sent":
                await self.flush()  # everything stands on the broker, but for the end of the transaction
            os.kill(os.getpid(), signal.SIGKILL)
        result = await original(self, *args, **kwargs)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

owner, name = {
    "before": (Transactions, "commit"),
    "sent": (aiokafka.AIOKafkaProducer, "commit_transaction"),
    "after": (Transactions, "commit"),
}[step]
setattr(owner, name, dying(getattr(owner, name), step != "after"))
sys.exit(cli.run(["dlq", "redrive", "--all"]))
"""


@pytest.mark.usefixtures("topics")
@pytest.mark.parametrize("step", ["before", "sent", "after"])
def test_killed_in_the_middle_it_goes_on_where_it_was(
    settings: Settings, step: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    letters = 3 * CHUNK_LETTERS + 7
    put(settings, *range(letters))
    killed = subprocess.run(
        [sys.executable, "-c", DYING, step, "2"],
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = redrive(settings, capsys, "--all")
    chunks = 2 if step == "after" else 1
    assert done["redriven_before"] == chunks * CHUNK_LETTERS
    assert done["redriven"] == letters - chunks * CHUNK_LETTERS
    assert Counter(copies(settings)) == dict.fromkeys([(1, n) for n in range(letters)], 1)


@pytest.mark.usefixtures("topics")
def test_of_two_at_a_time_the_later_goes_on_and_the_earlier_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(settings, *range(2 * CHUNK_LETTERS))
    rival: list[int] = []
    plain = dlq.Progress.show

    def show(self: Any, text: str, *args: Any, **kwargs: Any) -> None:
        plain(self, text, *args, **kwargs)
        if not rival:  # after the first chunk of the first one
            rival.append(0)
            command = [sys.executable, "-m", "stream_app", "dlq", "redrive", "--all"]
            rival[0] = subprocess.run(command, env=environment(settings), timeout=60, check=False).returncode

    monkeypatch.setattr(dlq.Progress, "show", show)
    with pytest.raises(FencedError, match="has taken over"):
        run(settings, "redrive", "--all")
    assert rival == [0]
    assert Counter(copies(settings)) == dict.fromkeys([(1, n) for n in range(2 * CHUNK_LETTERS)], 1)
