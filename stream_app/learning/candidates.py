"""Which contents a step looks at where there are too many for all. Pure NumPy.

Half of the list are the ones that are most engaged with at each half-life, and the newest; a quarter are
neighbours of what the user engaged with last; the rest is drawn by lot, and each drawn one stands for as
many as were left out.
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

    def draw(
        self,
        history: UserHistory,
        together: CoEngagement,
        chosen: int | None,
        random: np.random.Generator,
        shown: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """One user's candidates: rows [n], each once, those ``shown`` among it, ``chosen`` the last; and the
        logarithms [n] of how many contents each stands for. What was shown may make the list longer."""
        hard = np.union1d(self.popular, self._near(history, together))
        if shown is not None:
            hard = np.union1d(hard, shown[self.available[shown]])
        hard = hard[hard != chosen]
        places = random.integers(0, max(len(self.rows), 1), max(self.most - len(hard) - 1, 0))
        drawn = np.setdiff1d(
            self.rows[places[: len(self.rows)]], np.append(hard, -1 if chosen is None else chosen)
        )
        rows = np.concatenate([hard, drawn, [] if chosen is None else [chosen]]).astype(np.int64)
        offsets = np.zeros(len(rows), np.float32)
        if len(drawn):
            left_out = len(self.rows) - len(hard)
            offsets[len(hard) : len(hard) + len(drawn)] = np.log(max(left_out / len(drawn), 1.0))
        return rows, offsets

    def _near(self, history: UserHistory, together: CoEngagement) -> NDArray[np.int64]:
        most = self.most // 4
        rows = history.rows[:RECENT]
        near = together.neighbours[rows].ravel()
        strength = together.counts[:, rows].sum(axis=0).ravel()
        found = np.flatnonzero(near >= 0)
        if len(found) > most:
            found = found[np.argpartition(-strength[found], most - 1)[:most]]
        near = near[found]
        return near[self.available[near]].astype(np.int64)


def pool_of(shared: NDArray[np.float32], available: NDArray[np.bool_], most: int) -> Pool:
    """Of contents with ``shared`` features [N, len(activity.NAMES)] that are ``available`` [N], for lists
    of ``most``."""
    rows = np.flatnonzero(available)
    sources = [*(shared[rows, h] for h in range(len(HALF_LIVES_H))), -shared[rows, AGE]]
    each = max(1, most // (2 * len(sources)))
    best = [rows[np.argpartition(-values, each - 1)[:each]] for values in sources if len(rows) > each]
    return Pool(np.unique(np.concatenate(best)) if best else rows, available, rows, most)
