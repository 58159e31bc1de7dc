"""``show``: the newest record of the user's partition, and nothing else's."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys

import pytest

from stream_app.commands import show
from stream_app.demo.roles import environment
from stream_app.kafka import clients
from stream_app.settings import Settings
from tests.commands.records import VECTOR, interest_record, slate

pytestmark = pytest.mark.usefixtures("topics")


def write(settings: Settings, *records: tuple[str, str, bytes | None]) -> None:
    """Topic, key, value."""
    with contextlib.closing(clients.producer(settings)) as producer:
        for topic, key, value in records:
            producer.send(settings.topic_name(topic), value, key.encode()).get(10)


def run(settings: Settings, user: str, *, as_json: bool) -> int:
    return show.run(argparse.Namespace(user=user, json=as_json), settings)


def fill(settings: Settings) -> None:
    old = bytearray(interest_record())
    write(
        settings,
        ("content", "c1", b'{"title": "Salt the pasta water", "text": "Taste it."}'),
        ("content", "c2", b'{"text": "A bell, a smile and a slow pass."}'),
        ("interests", "ana", bytes(old[:-8]) + b"\x00" * 8),
        ("interests", "ana", interest_record()),
        ("interests", "ben", interest_record()),
        ("interests", "ben", None),
        ("recommendations", "ana", slate("ana", "c9")),
        ("recommendations", "ana", slate("ana", "c2", "c3")),
    )


def test_json_has_state_slate_and_vector(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    fill(settings)
    assert run(settings, "ana", as_json=True) == 0
    shown = json.loads(capsys.readouterr().out)
    state = shown["state"]
    assert state["mass"] == 3.5
    assert state["vector"] == VECTOR.tolist()
    assert state["vector_norm"] == pytest.approx(5.0)
    assert state["t_ref"] == "2023-11-14T22:13:20.000Z"
    assert state["last_event"] == {
        "topic": settings.topic_name("shares"),
        "action": "share",
        "partition": 1,
        "offset": 42,
        "occurred_at": "2023-11-14T22:13:20.000Z",
        "received_at": "2023-11-14T22:13:20.005Z",
    }
    share, comment, like = state["recent"]
    assert (share["content_id"], share["remaining_weight"]) == (None, 3.0)
    assert (comment["content_id"], comment["state"], comment["remaining_weight"]) == ("c2", "undone", 0.0)
    assert (like["content_id"], like["weight"]) == ("c1", 1.0)
    assert like["remaining_weight"] == pytest.approx(0.5)
    assert like["age_s"] == 7 * 86_400
    assert [item["content_id"] for item in shown["slate"]["items"]] == ["c2", "c3"]


def test_text_names_titles_ages_and_reasons(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    fill(settings)
    assert run(settings, "ana", as_json=False) == 0
    text = capsys.readouterr().out
    assert "mass           3.5000 from 2 contributions" in text
    assert "vector norm    5.0000 in 8 dimensions" in text
    assert "like          7.0 d   +0.500  “Salt the pasta water”" in text
    assert "[undone]" in text
    assert "1. “A bell, a smile and a slow pass.”  0.900" in text
    assert "75% for your like of “Salt the pasta water”" in text


@pytest.mark.parametrize("user", ["ben", "nobody"])
def test_a_user_without_state_is_said_so(
    settings: Settings, capsys: pytest.CaptureFixture[str], user: str
) -> None:
    """Ben's newest record is a tombstone; the other never had one."""
    fill(settings)
    assert run(settings, user, as_json=False) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"user {user} has no state on {settings.topic_name('interests')}" in shown.err


def test_control_characters_of_others_do_not_reach_the_terminal(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(settings)
    write(settings, ("content", "c1", b'{"title": "red \\u001b[31m alert"}'))
    assert run(settings, "ana", as_json=False) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "locale", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_a_terminal_of_few_letters_is_shown_any_user(settings: Settings, locale: dict[str, str]) -> None:
    user = "usér😀"
    write(settings, ("interests", user, interest_record()))

    def shown(*options: str) -> bytes:
        done = subprocess.run(
            [sys.executable, "-m", "stream_app", "show", user, *options],
            env=environment(settings) | locale,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout

    assert b"us\\u00e9r\\ud83d\\ude00" in shown()
    assert json.loads(shown("--json"))["user_id"] == user
