"""What is evaluated: anything that scores the published contents for a user and learns from events.

To add a ranker, write a class with the two methods of :class:`Scorer` and run it::

    log = columns(list(open_log(path, "deskdrop").records), settings)
    outcome = prequential.run(log, MyRanker(World.of(log, vectors)))
    metrics.summary(outcome)["any"]["ndcg@10"]

The rules of the game, which :func:`stream_app.evaluation.prequential.run` keeps:

1. Contents are numbered in the order in which they come out; ``score`` is asked for the first ``count``,
   which are published. Whatever else the World knows of later ones must not be looked at.
2. ``score`` is called before ``update`` of the same event, and for targets only; ``update`` is called
   for every event, in the log's order, during the warm-up too.
3. What the user has engaged with, and what was deleted, is taken out by the harness. Equal scores are
   ordered by a seeded lot. ``-inf`` means: not recommended, whatever else there is.
4. ``score`` may return a view of its own state: the harness does not write to it.
5. Randomness comes from a seed given to the constructor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stream_app.evaluation.log import EvaluationLog

Scores = NDArray[np.float64] | NDArray[np.float32]


class Touch(NamedTuple):
    """One event."""

    place: int
    """Into the log"""
    time: int
    """ms, event time"""
    now: int
    """ms, stream time"""
    user: int
    content: int
    action: int
    """Index into ``settings.events.actions``"""
    weight: float
    undo: bool
    first: bool
    """The user had not engaged with this content before"""


def touches(log: EvaluationLog) -> Iterator[Touch]:
    """All events, in the log's order."""
    columns = (log.times, log.now, log.users, log.contents, log.actions, log.weights, log.undo, log.first)
    for place, row in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        yield Touch(place, *row)


@dataclass(frozen=True)
class World:
    """What is known of N contents and U users beside the events."""

    users: int
    due: NDArray[np.int64]
    """[N], ms, ascending"""
    created_at: NDArray[np.int64]
    """[N], ms"""
    authors: NDArray[np.uint64]
    """[N]; 0 = unknown"""
    vectors: NDArray[np.float32]
    """[N, D], unit vectors of the texts; D = 0 where they were not encoded"""

    @classmethod
    def of(cls, log: EvaluationLog, vectors: NDArray[np.float32] | None = None) -> World:
        """The world of a log; ``vectors`` [N, D]."""
        c = log.catalogue
        none = np.zeros((len(c), 0), np.float32)
        return cls(len(log.user_ids), c.due, c.created_at, c.authors, none if vectors is None else vectors)

    @property
    def contents(self) -> int:
        """N"""
        return len(self.due)


class Scorer(Protocol):
    """One way to recommend."""

    def score(self, now: int, user: int, count: int) -> Scores:
        """[count], higher is better, of the contents 0..count-1 for ``user`` at stream time ``now`` (ms)."""

    def update(self, touch: Touch) -> None:
        """Take in one event."""


Maker = Callable[[World], Scorer]
"""A new scorer that knows nothing yet."""
