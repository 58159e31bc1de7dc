"""The learned ranker in the harness: every first engagement is a step, before its effects are counted."""

from __future__ import annotations

import numpy as np

from stream_app.evaluation.scorer import Scores, Touch, World
from stream_app.learning.activity import HALF_LIVES_H, WEIGHTED, Catalogue, catalogue_features, log_minutes
from stream_app.learning.coengagement import CoEngagement
from stream_app.learning.features import BANDS, NAMES, bands, candidate_features
from stream_app.learning.habits import AgeHabits
from stream_app.learning.history import STRONG_WEIGHT, UserHistory
from stream_app.learning.model import Floats, SoftmaxRanker
from stream_app.learning.trainer import OnlineTrainer

HOUR_MS = 3_600_000.0
SEEN = 256
"""Contents that an interests record remembers as seen."""


class LearnedRanker:
    """Features, model and trainer of :mod:`stream_app.learning` over what a live worker would know.

    A user's last ``recent`` interactions and SEEN contents are what the interests record would hold.
    """

    def __init__(
        self, world: World, recent: int = 64, neighbours: int = 512, hidden: int = 64, seed: int = 0
    ) -> None:
        self._world = world
        self.trainer = OnlineTrainer(SoftmaxRanker(NAMES, BANDS, hidden, seed), seed)
        self._together = CoEngagement(world.contents, neighbours)
        self._habits = AgeHabits()
        self._users = _Users(world.users, recent)
        self._half_lives_ms = np.array(HALF_LIVES_H, np.float32)[:, None] * np.float32(HOUR_MS)
        self._counts = np.zeros((len(HALF_LIVES_H), world.contents), np.float32)
        self._weights = np.zeros((len(WEIGHTED), world.contents), np.float32)
        self._engaged_at = np.zeros(world.contents, np.int64)
        self._sum = np.zeros(world.vectors.shape[1], np.float32)
        self._published = 0
        self._scored: tuple[int, int, int] | None = None
        self._features: Floats = np.zeros((0, len(NAMES)), np.float32)
        self._scores: Floats = np.zeros(0, np.float32)

    def score(self, now: int, user: int, count: int) -> Scores:
        """Scores of the model as it is now."""
        history = self._users.history(user)
        self._features = self._of(now, history, count)
        self._scores = self.trainer.model.score(self._features, bands(history, now))
        self._scored = (now, user, count)
        return self._scores

    def update(self, touch: Touch) -> None:
        """Learn from a first engagement with something known, then count it."""
        history = self._users.history(touch.user)
        if touch.first and touch.weight >= 0:
            # the first engagement of all publishes: nobody chose
            if touch.weight > 0 and self._engaged_at[touch.content]:
                self._learn(touch, history)
            age = touch.now - self._world.created_at[touch.content : touch.content + 1]
            self._habits.learn(float(log_minutes(age)[0]))
            others = history.rows != touch.content
            strong = touch.weight >= STRONG_WEIGHT
            self._together.learn(touch.content, strong, history.rows[others], history.strong[others])
        elif touch.weight >= STRONG_WEIGHT and not touch.undo:
            self._strengthen(touch.content, history)
        self._count(touch)
        self._users.add(touch)

    def _learn(self, touch: Touch, history: UserHistory) -> None:
        count = int(np.searchsorted(self._world.due, touch.now, side="right"))
        count = max(count, self._published, touch.content + 1)
        if self._scored != (touch.now, touch.user, count):
            self.score(touch.now, touch.user, count)
        candidates = np.ones(count, np.bool_)
        candidates[self._users.known(touch.user)] = False
        groups = bands(history, touch.now)
        self.trainer.learn(self._features, self._scores, candidates, groups, touch.content)
        self._scored = None  # the model is another one now

    def _strengthen(self, content: int, history: UserHistory) -> None:
        """A content that the user knew already is engaged with strongly for the first time."""
        place = np.flatnonzero(history.rows == content)
        if len(place) and not history.strong[place[0]]:
            others = history.rows != content
            self._together.strengthen(content, history.rows[others], history.strong[others])

    def _of(self, now: int, history: UserHistory, count: int) -> Floats:
        """[count, F]"""
        world = self._world
        if count > self._published:
            self._sum += world.vectors[self._published : count].sum(axis=0)
            self._published = count
        age = (now - self._engaged_at[:count]).astype(np.float32)
        left = np.exp2(-np.maximum(age, 0) / self._half_lives_ms)
        catalogue = Catalogue(
            now=now,
            engaged=np.maximum(self._counts[:, :count] * left, 0),
            weighted=np.maximum(self._weights[:, :count] * left[list(WEIGHTED)], 0),
            engaged_at=self._engaged_at[:count],
            readers=self._together.users[:count],
            created_at=world.created_at[:count],
            authors=world.authors[:count],
            vectors=world.vectors[:count],
            mean=self._sum / np.float32(max(self._published, 1)),
        )
        return candidate_features(
            catalogue_features(catalogue), history, catalogue, self._together, self._habits
        )

    def _count(self, touch: Touch) -> None:
        content, time = touch.content, max(touch.time, int(self._engaged_at[touch.content]))
        half_lives = self._half_lives_ms[:, 0]
        left = np.exp2(-np.float32(time - self._engaged_at[content]) / half_lives)
        new = np.exp2(-np.float32(time - touch.time) / half_lives) * np.float32(-1 if touch.undo else 1)
        counted, places = touch.weight >= 0, list(WEIGHTED)
        self._counts[:, content] = self._counts[:, content] * left + new * counted
        weighted = self._weights[:, content] * left[places] + new[places] * np.float32(touch.weight)
        self._weights[:, content] = weighted
        self._engaged_at[content] = time


class _Users:
    """The last R interactions of each user, and all that each has engaged with."""

    def __init__(self, users: int, recent: int) -> None:
        self._rows = np.full((users, recent), -1, np.int64)
        self._times = np.zeros((users, recent), np.int64)
        self._weights = np.zeros((users, recent), np.float32)
        self._totals = [0] * users
        self._known: dict[int, list[int]] = {}

    def known(self, user: int) -> list[int]:
        """Contents the user has engaged with."""
        return self._known.get(user, [])

    def history(self, user: int) -> UserHistory:
        """The recent contents, newest first."""
        total, recent = self._totals[user], self._rows.shape[1]
        oldest_first = np.arange(max(total - recent, 0), total) % recent
        columns = (self._rows, self._times, self._weights)
        rows, times, weights = (column[user, oldest_first] for column in columns)
        known = self.known(user)
        seen = np.array(known[-SEEN:], np.int64)
        return UserHistory.of_record(rows, times, weights, seen, len(known))

    def add(self, touch: Touch) -> None:
        """Note one interaction; an undo voids those with its content."""
        if touch.undo:
            self._weights[touch.user, self._rows[touch.user] == touch.content] = -1
            return
        if touch.first:
            self._known.setdefault(touch.user, []).append(touch.content)
        slot = self._totals[touch.user] % self._rows.shape[1]
        self._rows[touch.user, slot] = touch.content
        self._times[touch.user, slot] = touch.time
        self._weights[touch.user, slot] = touch.weight
        self._totals[touch.user] += 1
