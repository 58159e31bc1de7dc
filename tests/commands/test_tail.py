"""``tail``: slates in the order in which they arrive, with the titles that ``content`` gives them."""

from __future__ import annotations

import argparse
import contextlib
import json
import threading

import pytest

from stream_app.commands import tail
from stream_app.errors import TopicMismatchError
from stream_app.kafka import clients
from stream_app.recommendations.readable import Titles
from stream_app.settings import Settings
from tests.commands.records import slate


def write(settings: Settings, *records: tuple[str, str, bytes | None]) -> None:
    """Topic, key, value."""
    with contextlib.closing(clients.producer(settings)) as producer:
        for topic, key, value in records:
            producer.send(settings.topic_name(topic), value, key.encode()).get(10)


def arguments(**changes: object) -> argparse.Namespace:
    defaults = {"user": None, "from_beginning": True, "limit": 1, "json": False}
    return argparse.Namespace(**defaults | changes)


@pytest.mark.usefixtures("topics")
def test_from_the_beginning_with_titles_and_reasons(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        settings,
        ("recommendations", "ana", slate("ana", "c2", "c3")),
        ("content", "c1", b'{"title": "Salt the pasta water"}'),
        ("content", "c2", b'{"title": "Rest the roast chicken"}'),
        ("content", "c3", b"no json"),
    )
    assert tail.run(arguments(), settings) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ana  (personal, 2023-11-14T22:13:20.030Z, caused by likes 1/42)"
    assert lines[1] == "  1. “Rest the roast chicken”  0.900"
    assert lines[2] == "        75% for your like of “Salt the pasta water”"
    assert lines[3] == "  2. c3  0.800"


@pytest.mark.usefixtures("topics")
def test_one_user_as_json_and_records_that_are_no_slates(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        settings,
        ("recommendations", "ben", slate("ben", "c1")),
        ("recommendations", "ana", b"{"),
        ("recommendations", "ana", None),
        ("recommendations", "ana", slate("ana", "c2")),
        ("recommendations", "ana", slate("ana", "c3")),
    )
    assert tail.run(arguments(user="ana", json=True, limit=2), settings) == 0
    shown = capsys.readouterr()
    slates = [json.loads(line) for line in shown.out.splitlines()]
    assert [s["items"][0]["content_id"] for s in slates] == ["c2", "c3"]
    assert "is no slate" in shown.err


@pytest.mark.usefixtures("topics")
def test_without_from_beginning_only_what_arrives_later(settings: Settings) -> None:
    write(settings, ("recommendations", "ana", slate("ana", "old")))
    followed = tail.follow(settings, Titles(), from_beginning=False)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(next(followed)[1]))
    reader.start()
    number = 0
    while reader.is_alive() and number < 100:  # whenever the reader is ready, a later slate comes
        number += 1
        write(settings, ("recommendations", "ana", slate("ana", f"new-{number}")))
        reader.join(0.1)
    assert not reader.is_alive()
    assert b'"new-' in received[0]


def test_a_missing_topic_is_named(settings: Settings) -> None:
    with pytest.raises(TopicMismatchError, match=r"\.content does not exist"):
        tail.run(arguments(), settings)


def test_titles_are_bounded_and_the_unused_go_first() -> None:
    titles = Titles(limit=2)
    titles.learn(b"a", b'{"title": "A"}')
    titles.learn(b"b", b'{"text": "B"}')
    assert titles.of("a") == "“A”"
    titles.learn(b"c", b'{"title": "C"}')
    assert [titles.of(name) for name in ("a", "b", "c")] == ["“A”", "b", "“C”"]
    titles.learn(b"c", None)
    assert titles.of("c") == "c"
    assert len(titles) == 1
