"""The learned ranker in the harness: it learns from every first engagement before its effects are counted."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from stream_app.evaluation.scorer import Scores, Touch, World
from stream_app.learning import activity
from stream_app.learning.coengagement import CoEngagement
from stream_app.learning.features import PERSONAL
from stream_app.learning.history import UserHistory
from stream_app.learning.model import Rates
from stream_app.learning.online import Candidates, Contents, Engagement, OnlineLearning, Recounted, same_batch

SEEN = 256
"""Contents that an interests record remembers as seen."""
PAIR_BYTES = 20
EVERY_PAIR = 1 << 30
"""Bytes that counting every pair of contents may take; where it takes more, NEIGHBOURS of each are kept."""
NEIGHBOURS = 512


def _named(*beginnings: str) -> tuple[str, ...]:
    return tuple(name for name in PERSONAL if name.startswith(beginnings))


STATISTICS = tuple(name for name in activity.NAMES if name not in ("age", "newer"))
LEFT_OUT: dict[str, dict[str, Any]] = {
    "item statistics": {"without": STATISTICS},
    "content age": {"without": ("age", "newer", "age_unnoticed")},
    "co-engagement": {"without": _named("together_", "near_", "after_")},
    "content": {"without": _named("cosine_", "best_match", "author")},
    "habits": {"without": _named("age_")},
    "persons": {"without": PERSONAL, "groups": False},
    "groups": {"groups": False},
    "hidden layer": {"hidden": 0},
}
"""What can be left out of :class:`LearnedRanker`, by name → how."""


class LearnedRanker:
    """The trainer's :class:`OnlineLearning` over what a live worker would know.

    A user's last ``recent`` interactions and SEEN contents are what the interests record would hold.
    """

    def __init__(
        self,
        world: World,
        recent: int = 64,
        neighbours: int | None = None,
        hidden: int = 64,
        seed: int = 0,
        without: Collection[str] = (),
        groups: bool = True,
    ) -> None:
        """``neighbours`` of each content are kept; None = as many as there are, while memory allows.

        ``without`` these features, ``hidden`` 0 or no ``groups``: see LEFT_OUT.
        """
        if neighbours is None:
            every = world.contents**2 * PAIR_BYTES <= EVERY_PAIR
            neighbours = world.contents if every else NEIGHBOURS
        self._world = world
        self.learning = OnlineLearning(
            Contents(world.created_at, world.authors, world.vectors),
            CoEngagement(world.contents, neighbours),
            hidden=hidden,
            seed=seed,
            without=without,
            rates=Rates() if groups else Rates(groups=0.0),
        )
        """What rankers would be told of it: the model, habits and co-engagement"""
        self.trainer = self.learning.trainer
        self._users = _Users(world.users, recent)
        self._counted: dict[tuple[int, int, int], int] = {}
        self._published = 0
        self._considered: tuple[tuple[int, int, int], Candidates] | None = None
        self._batch: list[Engagement | Recounted] = []
        self._known: dict[int, Candidates] = {}  # by place in the batch
        self._now = self._touches = 0

    def score(self, now: int, user: int, count: int) -> Scores:
        """Scores of the model as it is now, without what came within the same second."""
        self.settle(now)
        self._published = max(self._published, count)
        considered = self.learning.consider(now, self._users.history(user), count)
        self._considered = (now, user, count), considered
        return considered.scores

    def settle(self, now: int | None = None) -> None:
        """Learn from the batch, unless it may go on at ``now``; None = it does not."""
        if now is not None and same_batch(self._touches, self._now, now):
            return
        self.learning.learn(self._batch, self._now, self._published, self._known)
        self._batch, self._known, self._touches = [], {}, 0
        self._considered = None  # what was said then is no longer so

    def update(self, touch: Touch) -> None:
        """Put a first engagement with something known, and its counts, into the batch; learn from the one
        before where it belongs to another."""
        self.settle(touch.now)
        self._now, self._touches = touch.now, self._touches + 1
        row, time, weight = touch.content, touch.time, touch.weight
        count = int(np.searchsorted(self._world.due, touch.now, side="right"))
        self._published = count = max(count, self._published, row + 1)
        recounted, counts = self._recount(touch)
        self._batch += recounted
        if not touch.undo:
            if self._considered is not None and self._considered[0] == (touch.now, touch.user, count):
                self._known[len(self._batch)] = self._considered[1]
            known = np.array(self._users.known(touch.user), np.int64)
            history = self._users.history(touch.user)
            self._batch.append(Engagement(row, time, weight, touch.first, history, known, counts))
        self._considered = None
        self._users.add(touch)

    def _recount(self, touch: Touch) -> tuple[list[Recounted], bool]:
        """Which engagement no longer stands for its user, and whether this one does now: each counts once
        for a content and an action."""
        who = (touch.user, touch.content, touch.action)
        before = self._counted.get(who)
        counts = not touch.undo and (before is None or touch.time > before)
        recounted = []
        if before is not None and (counts or touch.undo):
            recounted.append(Recounted(touch.content, before, touch.weight, False))
            del self._counted[who]
        if counts:
            self._counted[who] = touch.time
        return recounted, counts


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
