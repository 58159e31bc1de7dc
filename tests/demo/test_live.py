"""What the demo shows: figures and one user's story, from real topics."""

from __future__ import annotations

import contextlib
import io
import time

import pytest

from stream_app.demo.live import Live, Screen
from stream_app.kafka import clients
from stream_app.settings import Settings
from tests.commands.records import slate


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError("not a real one")


@pytest.mark.usefixtures("topics")
def test_story_and_figures(settings: Settings) -> None:
    with (
        contextlib.closing(Live(settings, None)) as live,
        contextlib.closing(clients.producer(settings)) as producer,
    ):
        live.content_sent(b"c1", b'{"title": "Salt the pasta water"}')
        live.content_sent(b"c2", b'{"title": "Rest the roast chicken"}')
        for _ in range(3):
            live.event_sent("like", "ben", "c2")
        assert live.story() == []
        for _ in range(8):  # enough to become the one whose story is told
            live.event_sent("like", "ana", "c1")
        topic = settings.topic_name("recommendations")
        for user in ("ben", "ana"):
            producer.send(topic, slate(user, "c2"), user.encode()).get(10)
        deadline = time.monotonic() + 20
        while "2 slates" not in live.figures() and time.monotonic() < deadline:
            live.check()
            time.sleep(0.05)
        assert "11 events" in live.figures()
        assert "2 slates" in live.figures()
        assert "freshness p50" in live.figures()
        assert live.story() == [
            "ana engaged with (newest last)",
            "       like     “Salt the pasta water”",
            "and now gets",
            "  1. “Rest the roast chicken”  0.900",
            "        75% for your like of “Salt the pasta water”",
        ]
        screen = Screen(terminal := Terminal())
        screen.show(live)
        screen.say("a line that stays")
        drawn = len(live.story()) + 2
        assert f"\x1b[{drawn}A\x1b[J" + "a line that stays\n" in terminal.getvalue()
        plain = Screen(stream := io.StringIO())
        plain.show(live)
        plain.show(live)  # too soon: nothing
        assert stream.getvalue().count("\n") == 1
        assert "\x1b" not in stream.getvalue()
