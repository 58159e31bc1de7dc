"""Which contents a step looks at where there are too many for all. Pure NumPy.

Half of the list are the ones that are most engaged with at each half-life, and the newest; at most a quarter
are neighbours of what the user engaged with last; the rest is drawn by lot, and each drawn one stands for as
many as were left out. Who learns at the same time has the first half and the lot in common.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.learning.activity import AGE, HALF_LIVES_H
from stream_app.learning.coengagement import CoEngagement
from stream_app.learning.history import UserHistory

RECENT = 8
"""Contents of a user whose neighbours are looked at."""


@dataclass(frozen=True)
class Pool:
    """What serves every user at one time, of N contents."""

    popular: NDArray[np.int64]
    """[p], rows that are everybody's candidates, ascending"""
    available: NDArray[np.bool_]
    """[N], whether a row may be a candidate"""
    rows: NDArray[np.int64]
    """[a], those that may"""
    most: int
    """Rows in a list"""

    def draw(self, random: np.random.Generator) -> Drawn:
        """What is common to some users' lists: popular ones, and a sample of all others."""
        most = self.most - self.most // 4 - len(self.popular) - 1
        places = random.integers(0, max(len(self.rows), 1), max(most, 0))
        drawn = np.setdiff1d(self.rows[places[: len(self.rows)]], self.popular)
        return Drawn(self, np.concatenate([self.popular, drawn]))

    def near(self, history: UserHistory, together: CoEngagement) -> NDArray[np.int64]:
        """Rows of the nearest neighbours of a user's last contents; some may be there twice."""
        most = self.most // 4
        rows = history.rows[:RECENT]
        near = together.neighbours[rows].ravel()
        strength = together.counts[:, rows].sum(axis=0).ravel()
        found = np.flatnonzero(near >= 0)
        if len(found) > most:
            found = found[np.argpartition(-strength[found], most - 1)[:most]]
        near = near[found]
        return near[self.available[near]].astype(np.int64)


class Drawn:
    """What is common to the lists of some users."""

    def __init__(self, pool: Pool, rows: NDArray[np.int64]) -> None:
        """``rows`` [n] begin with the popular ones."""
        self.rows = rows
        """[n], each once"""
        self._pool = pool
        self._order = np.argsort(rows)
        self._sorted = rows[self._order]

    def list(
        self,
        history: UserHistory,
        together: CoEngagement,
        chosen: int | None = None,
        shown: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """One user's list: the rows [k] that are on it as well, in front of them neighbours and what was
        ``shown``, and ``chosen``, where they are not there yet; and the logarithms [n + k] of how many
        contents each stands for: those that were drawn, for all that were left out."""
        pool = self._pool
        own = [pool.near(history, together)]
        if shown is not None:
            own.append(shown[pool.available[shown]])
        if chosen is not None:
            own.append(np.array([chosen]))
        rows = np.unique(np.concatenate(own))
        places = np.minimum(np.searchsorted(self._sorted, rows), len(self.rows) - 1)
        there = self._sorted[places] == rows if len(self.rows) else np.zeros(len(rows), np.bool_)
        also = rows[~there]
        offsets = np.zeros(len(self.rows) + len(also), np.float32)
        drawn = np.zeros(len(offsets), np.bool_)
        drawn[len(pool.popular) : len(self.rows)] = True
        drawn[self._order[places[there]]] = False  # each of the user's own stands for itself
        if count := np.count_nonzero(drawn):
            left_out = len(pool.rows) - (len(offsets) - count)
            offsets[drawn] = np.log(max(left_out / count, 1.0))
        return also, offsets


def pool_of(shared: NDArray[np.float32], available: NDArray[np.bool_], most: int) -> Pool:
    """Of contents with ``shared`` features [N, len(activity.NAMES)] that are ``available`` [N], for lists
    of ``most``."""
    rows = np.flatnonzero(available)
    sources = [*(shared[rows, h] for h in range(len(HALF_LIVES_H))), -shared[rows, AGE]]
    each = max(1, most // (2 * len(sources)))
    best = [rows[np.argpartition(-values, each - 1)[:each]] for values in sources if len(rows) > each]
    return Pool(np.unique(np.concatenate(best)) if best else rows, available, rows, most)
