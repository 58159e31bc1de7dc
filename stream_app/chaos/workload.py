"""What is sent during a chaos run: an endless stream of events and contents, a pure function of the seed.

Likes, comments and shares with undos (also ahead of their originals), repeats, late events, events
without id or time, records that are no events, events on contents that come only later and on
contents that never come.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

USERS = 1_500
CONTENTS = 300
"""Contents published before the first event."""
EVENTS_PER_CONTENT = 600
"""After so many events one more content is published."""
TOPICS = ("likes", "comments", "shares")
CONTENT_TOPIC = "content"
DAY_MS = 86_400_000
SPAN_MS = 30 * DAY_MS
"""Late events lie up to this far back."""
STEP_MS = 2
"""Event time between two events: behind the clock at any rate below 500 a second."""
REMEMBERED = 4_000
HELD_MOST = 200
"""An original that its undo has overtaken follows within so many events."""

# what part of all events is something special
LATE, UNDO, OVERTAKEN, REPEAT, MALFORMED, EARLY, NEVER, NAMELESS, TIMELESS = (
    *(0.25, 0.03, 0.01, 0.02, 0.005, 0.01, 0.003, 0.05, 0.02),
)
WORDS = (
    *("river", "engine", "garden", "orbit", "bread", "violin", "market", "winter", "signal", "harbour"),
    *(
        "coffee",
        "theatre",
        "climate",
        "railway",
        "forest",
        "painting",
        "vaccine",
        "football",
        "novel",
        "bridge",
    ),
)


class Sent(NamedTuple):
    """One record to produce."""

    topic: str
    """Without prefix."""
    key: bytes
    value: bytes


class Workload:
    """Draws records one after the other."""

    def __init__(self, seed: int, base_ms: int) -> None:
        """``base_ms``: the time of the run's start, Unix ms; every event time is relative to it."""
        self._rng = random.Random(seed)  # noqa: S311 - replayable on purpose
        self._base_ms = base_ms
        self._number = 0
        self._contents = 0
        self._past: deque[Sent] = deque(maxlen=REMEMBERED)
        self._undoable: deque[tuple[str, bytes, dict[str, object]]] = deque(maxlen=REMEMBERED)
        self._held: list[tuple[int, Sent]] = []

    def first_contents(self) -> list[Sent]:
        """What is published before the first event."""
        return [self._content() for _ in range(CONTENTS)]

    def take(self, *, late: bool = False) -> Iterator[Sent]:
        """One step: usually one event, sometimes a content or a record that was held back as well.

        ``late``: the event lies back in time.
        """
        self._number += 1
        if self._number % EVENTS_PER_CONTENT == 0:
            yield self._content()
        while self._held and self._held[0][0] <= self._number:
            yield self._keep(self._held.pop(0)[1])
        yield self._keep(self._event(late))

    def repeats(self, count: int) -> list[Sent]:
        """Up to ``count`` of the events sent lately, once more."""
        return self._rng.sample(list(self._past), min(count, len(self._past)))

    def shuffled(self, count: int) -> list[Sent]:
        """``count`` late events with all that belongs to them, in an order of their own."""
        burst = [sent for _ in range(count) for sent in self.take(late=True)]
        self._rng.shuffle(burst)
        return burst

    def _event(self, late: bool) -> Sent:
        rng, chance = self._rng, self._rng.random()
        if chance < REPEAT and self._past:
            return rng.choice(self._past)
        chance -= REPEAT
        if chance < MALFORMED:
            return self._malformed()
        chance -= MALFORMED
        if chance < UNDO and self._undoable:
            return self._undo(*rng.choice(self._undoable))
        topic, user, fields = self._new(late or rng.random() < LATE)
        sent = Sent(topic, user, _json(fields))
        if "event_id" not in fields:
            return sent
        if rng.random() < OVERTAKEN and "occurred_at" in fields:
            self._held.append((self._number + rng.randrange(1, HELD_MOST), sent))
            self._held.sort(key=lambda due: due[0])
            return self._undo(topic, user, fields)
        if "occurred_at" in fields:
            self._undoable.append((topic, user, fields))
        return sent

    def _new(self, late: bool) -> tuple[str, bytes, dict[str, object]]:
        rng = self._rng
        user = f"user-{rng.randrange(USERS)}"
        now_ms = self._base_ms + STEP_MS * self._number
        fields: dict[str, object] = {
            "event_id": f"e{self._number}",
            "user_id": user,
            "content_id": self._content_id(),
            "occurred_at": now_ms - (rng.randrange(SPAN_MS) if late else 0),
        }
        if rng.random() < NAMELESS:
            del fields["event_id"]
        if rng.random() < TIMELESS:
            del fields["occurred_at"]
        return rng.choice(TOPICS), user.encode(), fields

    def _undo(self, topic: str, user: bytes, fields: dict[str, object]) -> Sent:
        time = fields["occurred_at"]
        assert isinstance(time, int)  # noqa: S101 - for the type checker: only such are kept
        return Sent(topic, user, _json({**fields, "occurred_at": time + 1_000, "undo": True}))

    def _malformed(self) -> Sent:
        topic, user, fields = self._new(late=False)
        good = _json(fields)
        broken = (
            b"",
            good[: self._rng.randrange(1, len(good))],
            _json({**fields, "user_id": 5}),
            _json({**fields, "user_id": "somebody else"}),
            _json({name: value for name, value in fields.items() if name != "content_id"}),
            _json({**fields, "occurred_at": self._base_ms + 400 * DAY_MS}),
            _json({**fields, "content_id": "x" * 2_000}),
            good.replace(b'"user-', b'"\xff\xfe'),
        )
        return Sent(topic, user, self._rng.choice(broken))

    def _content_id(self) -> str:
        chance = self._rng.random()
        if chance < NEVER:
            return f"never-{self._rng.randrange(1_000)}"
        if chance < NEVER + EARLY:
            return f"content-{self._contents + self._rng.randrange(2)}"
        return f"content-{self._rng.randrange(self._contents)}"

    def _content(self) -> Sent:
        number, rng = self._contents, self._rng
        self._contents += 1
        text = " ".join(rng.choice(WORDS) for _ in range(8))
        fields = {
            "content_id": f"content-{number}",
            "title": f"{number} {text}",
            "author": f"author-{number % 40}",
            "created_at": self._base_ms - rng.randrange(SPAN_MS),
        }
        return Sent(CONTENT_TOPIC, f"content-{number}".encode(), _json(fields))

    def _keep(self, sent: Sent) -> Sent:
        self._past.append(sent)
        return sent


def _json(fields: dict[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()
