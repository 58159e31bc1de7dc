"""The demo's small world: posts on twelve subjects, and people whose interests drift.

Pure and deterministic: the same arguments give the same steps, on a virtual clock that whoever feeds
the steps to Kafka keeps in step with the real one.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import count
from typing import Literal

import msgspec

Kind = Literal["content", "event", "undo", "duplicate", "malformed", "unknown"]
Drift = Literal["steady", "gradual", "abrupt"]

NAMES = (
    *("ada", "ben", "cleo", "dario", "elif", "finn", "greta", "hugo", "ines", "jonas"),
    *("kira", "luca", "mona", "nils", "olga", "pia", "rosa", "sven", "tara", "yara"),
)
DRIFTS: tuple[Drift, ...] = ("steady", "gradual", "abrupt")
DRIFT_SHARES = (0.4, 0.35, 0.25)
ACTIONS = (("like", 0.7), ("comment", 0.2), ("share", 0.1))

FIRST_POSTS = 0.7
"""Share of the posts that are there at the start; the others appear while the world runs."""
FIRST_POSTS_AGE_MS = 2 * 86_400_000
"""How far back the first posts go."""
FAVOURITE, SECOND = 0.75, 0.2
"""Shares of the favourite and of the second subject; the rest falls on any subject."""
FRESHNESS = 6.0
"""Mean place, counted from the newest, of the post that somebody engages with."""

# What real producers send besides good events; shares of all steps.
UNDO, DUPLICATE, MALFORMED, UNKNOWN = 0.02, 0.01, 0.005, 0.003
UNDO_AFTER_S, DUPLICATE_AFTER_S = 4.0, 1.0


class Post(msgspec.Struct, frozen=True):
    """One post as it stands in ``posts.jsonl``."""

    content_id: str
    subject: str
    author: str
    lang: str
    text: str
    title: str = ""


@dataclass(frozen=True)
class Step:
    """One record that the world sends."""

    at_ms: int
    """When, on the world's clock."""
    kind: Kind
    action: str
    """Name of the action; empty for content."""
    key: str
    """user_id, or content_id for content."""
    value: bytes
    content_id: str = ""
    """What the event is about; empty when the record does not say."""


@dataclass
class Person:
    """Somebody who engages with posts of their current subjects."""

    user_id: str
    languages: frozenset[str]
    activity: float
    drift: Drift
    before: tuple[str, str]
    """Favourite and second subject at the start."""
    after: tuple[str, str]
    """The same at the end."""
    turn: float
    """When an abrupt change happens, as a share of the world's time."""
    engaged: set[str] = field(default_factory=set)

    def mixture(self, progress: float) -> dict[str, float]:
        """Shares of the subjects when ``progress`` (0 to 1) of the world's time has gone.

        What is missing to 1 falls on any subject.
        """
        moved = {"steady": 0.0, "gradual": progress, "abrupt": float(progress >= self.turn)}[self.drift]
        shares: dict[str, float] = {}
        for subjects, part in ((self.before, 1.0 - moved), (self.after, moved)):
            for subject, share in zip(subjects, (FAVOURITE, SECOND), strict=True):
                if part > 0:
                    shares[subject] = shares.get(subject, 0.0) + part * share
        return shares


class World:
    """Posts and people for ``seconds`` of events at ``rate`` a second."""

    def __init__(self, seed: int, *, users: int, rate: float, seconds: float, first_event: int = 1) -> None:
        """``first_event`` numbers the events' ids."""
        self._random = random.Random(seed)  # noqa: S311  # a simulation, no secret
        self._rate, self._seconds = rate, seconds
        posts = read_posts()
        self.subjects = sorted({post.subject for post in posts})
        self.people = [self._person(number) for number in range(users)]
        order = self._random.sample(posts, len(posts))
        self._first, self._later = (
            order[: int(FIRST_POSTS * len(order))],
            order[int(FIRST_POSTS * len(order)) :],
        )
        self._published: dict[str, list[Post]] = {subject: [] for subject in self.subjects}
        self._event_numbers = count(first_event)

    @property
    def protagonist(self) -> Person:
        """The person whose story the demo tells: active, and changes subject half way."""
        return self.people[0]

    def first_posts(self, now_ms: int) -> list[Step]:
        """The posts that are there before anything happens, written over the days before ``now_ms``."""
        number = len(self._first)
        ages = (FIRST_POSTS_AGE_MS * (number - place) // number for place in range(number))
        return [
            self._publish(post, now_ms, now_ms - age) for post, age in zip(self._first, ages, strict=True)
        ]

    def steps(self, start_ms: int) -> Iterator[Step]:
        """Events and new posts in time order, from ``start_ms`` on; after ``first_posts``."""
        waiting: list[tuple[int, int, Step]] = []  # undos and duplicates still to be sent, by time
        ties = count()
        activity = [person.activity for person in self.people]
        clock, published = 0.0, 0
        while (clock := clock + self._random.expovariate(self._rate)) < self._seconds:
            now, progress = start_ms + int(1000 * clock), clock / self._seconds
            while waiting and waiting[0][0] <= now:
                yield heapq.heappop(waiting)[2]
            # the last post appears early enough to be engaged with
            while published < min(len(self._later), int(len(self._later) * progress / 0.9)):
                yield self._publish(self._later[published], now, now)
                published += 1
            step = self._engage(self._random.choices(self.people, activity)[0], now, progress)
            yield step
            if (follow_up := self._follow_up(step)) is not None:
                heapq.heappush(waiting, (follow_up.at_ms, next(ties), follow_up))
        while waiting:
            yield heapq.heappop(waiting)[2]

    def _person(self, number: int) -> Person:
        draw = self._random
        before = draw.sample(self.subjects, 2)
        after = draw.sample([subject for subject in self.subjects if subject not in before], 2)
        languages = {"en"} | ({draw.choice(("de", "es", "pt"))} if draw.random() < 0.4 else set())
        drift: Drift = draw.choices(DRIFTS, DRIFT_SHARES)[0]
        activity = draw.lognormvariate(0.0, 0.7)
        turn = draw.uniform(0.35, 0.65)
        if number == 0:
            drift, activity, turn = "abrupt", 2.5, 0.5
        return Person(
            f"{NAMES[number % len(NAMES)]}-{number:03d}",
            frozenset(languages),
            activity,
            drift,
            (before[0], before[1]),
            (after[0], after[1]),
            turn,
        )

    def _publish(self, post: Post, at_ms: int, created_ms: int) -> Step:
        self._published[post.subject].append(post)
        fields: dict[str, str | int] = {"text": post.text, "author": post.author, "created_at": created_ms}
        if post.title:
            fields = {"title": post.title, **fields}
        return Step(
            at_ms, "content", "", post.content_id, msgspec.json.encode(fields), content_id=post.content_id
        )

    def _engage(self, person: Person, now: int, progress: float) -> Step:
        """One engagement, or now and then the bad record that a real producer sends."""
        action = self._random.choices([name for name, _ in ACTIONS], [share for _, share in ACTIONS])[0]
        event_id = f"e{next(self._event_numbers):06d}"
        fault = self._random.random()
        if fault < UNKNOWN:
            content_id = f"withdrawn-{event_id}"
            value = _event(event_id, person.user_id, content_id, now)
            return Step(now, "unknown", action, person.user_id, value, content_id)
        post = self._choose(person, progress)
        value = _event(event_id, person.user_id, post.content_id, now)
        if fault < UNKNOWN + MALFORMED:
            return Step(now, "malformed", action, person.user_id, self._spoil(value, person.user_id, now))
        person.engaged.add(post.content_id)
        return Step(now, "event", action, person.user_id, value, post.content_id)

    def _choose(self, person: Person, progress: float) -> Post:
        """A post of one of the person's current subjects, preferably fresh and new to them."""
        mixture = person.mixture(progress)
        rest = max(0.0, 1.0 - sum(mixture.values()))
        weights = [mixture.get(subject, 0.0) + rest / len(self.subjects) for subject in self.subjects]
        for subject in self._random.choices(self.subjects, weights, k=3):
            readable = [post for post in reversed(self._published[subject]) if post.lang in person.languages]
            fresh = [post for post in readable if post.content_id not in person.engaged]
            if fresh:
                place = int(self._random.expovariate(1.0 / FRESHNESS))
                return fresh[min(place, len(fresh) - 1)]
        # has had everything on offer: comes back to something
        return self._random.choice([post for posts in self._published.values() for post in posts])

    def _follow_up(self, step: Step) -> Step | None:
        """An undo or an exact duplicate of an event, sent a little later."""
        if step.kind != "event":
            return None
        chance = self._random.random()
        if chance < UNDO and step.action == "like":
            at_ms = step.at_ms + int(1000 * self._random.uniform(0.5, UNDO_AFTER_S))
            event = msgspec.json.decode(step.value)
            value = msgspec.json.encode({**event, "undo": True, "occurred_at": at_ms})
            return Step(at_ms, "undo", step.action, step.key, value, step.content_id)
        if UNDO <= chance < UNDO + DUPLICATE:
            at_ms = step.at_ms + int(1000 * self._random.uniform(0.0, DUPLICATE_AFTER_S))
            return Step(at_ms, "duplicate", step.action, step.key, step.value, step.content_id)
        return None

    def _spoil(self, value: bytes, user_id: str, now: int) -> bytes:
        return self._random.choice(
            (
                value[: len(value) // 2],
                msgspec.json.encode({"user_id": user_id, "occurred_at": now}),
                msgspec.json.encode({"user_id": user_id, "content_id": 17, "occurred_at": now}),
                msgspec.json.encode(
                    {"user_id": user_id, "content_id": "cooking-01", "occurred_at": now + 86_400_000}
                ),
            )
        )


def read_posts() -> list[Post]:
    """The packaged posts, grouped by subject."""
    text = files("stream_app.demo").joinpath("posts.jsonl").read_text(encoding="utf-8")
    return [msgspec.json.decode(line, type=Post) for line in text.splitlines()]


def _event(event_id: str, user_id: str, content_id: str, now: int) -> bytes:
    return msgspec.json.encode(
        {"event_id": event_id, "user_id": user_id, "content_id": content_id, "occurred_at": now}
    )
