"""What the ranker reads of one user: the recent interactions, each content once. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STRONG_WEIGHT = 1.0
"""An interaction of at least this weight is a strong one: a like is, a view is not."""

SESSION_MS = 1_800_000
"""Half an hour without an interaction ends a session."""
SESSION_DECAY, BREAK_DECAY = 0.7, 0.3
"""Weight of an interaction relative to the next newer one, within a session and across its end."""


@dataclass(frozen=True)
class UserHistory:
    """One user's m recent contents, newest first."""

    rows: NDArray[np.int64]
    """[m], rows of the content index, each once"""
    times: NDArray[np.int64]
    """[m], ms, of the newest interaction with each"""
    strong: NDArray[np.bool_]
    """[m], whether any of the interactions was strong"""
    contents: int
    """How many contents the user has engaged with, as far as known; at least m"""

    @classmethod
    def of_interactions(
        cls,
        rows: NDArray[np.int64],
        times: NDArray[np.int64],
        weights: NDArray[np.float32],
        contents: int,
    ) -> UserHistory:
        """From a record's interactions, oldest first: ``rows`` [n] (-1 = a content that is not known),
        ``times`` [n] ms, ``weights`` [n]; those of negative weight do not count."""
        counts = (rows >= 0) & (weights >= 0)
        newest_first = rows[counts][::-1]
        unique, at, inverse = np.unique(newest_first, return_index=True, return_inverse=True)
        strong = np.zeros(len(unique), np.bool_)
        np.logical_or.at(strong, inverse, weights[counts][::-1] >= STRONG_WEIGHT)
        order = np.argsort(at)
        return cls(unique[order], times[counts][::-1][at[order]], strong[order], max(contents, len(unique)))

    @property
    def last(self) -> int | None:
        """Time of the newest interaction, ms; None without any."""
        return int(self.times[0]) if len(self.times) else None

    def in_session(self, now: int) -> bool:
        """Whether the newest interaction is of the session that goes on at ``now`` (ms)."""
        return self.last is not None and now - self.last < SESSION_MS

    def session_weights(self) -> NDArray[np.float32]:
        """[m], weights that fall with every interaction and with every end of a session."""
        ended = np.cumsum(np.diff(self.times, prepend=self.times[:1]) <= -SESSION_MS)
        weights: NDArray[np.float32] = SESSION_DECAY ** np.arange(len(self.times)) * BREAK_DECAY**ended
        return weights.astype(np.float32)


NOBODY = UserHistory(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_), 0)
"""Somebody of whom nothing is known."""
