"""What the ranker reads of one user: the recent interactions, each content once. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STRONG_WEIGHT = 1.0
"""An interaction of at least this weight is a strong one: a like is, a view is not."""

LONGEST = 128
"""Contents of a history at most."""
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
    """[m], ms, of the newest interaction with each; the oldest known time where it is too long ago"""
    strong: NDArray[np.bool_]
    """[m], whether any of the interactions was strong, as far as they are remembered"""
    contents: int
    """How many contents the user has engaged with, as far as known; at least m"""

    @classmethod
    def of_record(
        cls,
        rows: NDArray[np.int64],
        times: NDArray[np.int64],
        weights: NDArray[np.float32],
        seen: NDArray[np.int64],
        contents: int,
    ) -> UserHistory:
        """From what an interests record has: interactions with ``rows`` [n] at ``times`` [n] (ms) of
        ``weights`` [n], and the contents ``seen`` [s], each oldest first. -1 = a content that is not known.

        What repeats push out of the interactions is still among the seen. Contents whose interactions all
        have negative weights do not count, those of any weight that have left the interactions do.
        """
        most: dict[int, float] = {}
        newest: dict[int, int] = {}
        oldest = 0
        columns = (rows, times, weights)
        for row, time, weight in zip(*(column[::-1].tolist() for column in columns), strict=True):
            if row >= 0:
                most[row] = max(most.get(row, weight), weight)
                newest.setdefault(row, time)
                oldest = time
        kept = [row for row in most if most[row] >= 0]
        older = [row for row in seen[::-1].tolist() if row >= 0 and row not in most]
        return cls(
            np.array((kept + older)[:LONGEST], np.int64),
            np.array(([newest[row] for row in kept] + [oldest] * len(older))[:LONGEST], np.int64),
            np.array(
                ([most[row] >= STRONG_WEIGHT for row in kept] + [False] * len(older))[:LONGEST], np.bool_
            ),
            contents,
        )

    @property
    def last(self) -> int | None:
        """Time of the newest interaction, ms; None without any."""
        return int(self.times[0]) if len(self.times) else None

    def in_session(self, now: int) -> bool:
        """Whether the newest interaction is of the session that goes on at ``now`` (ms)."""
        return self.last is not None and now - self.last < SESSION_MS

    def session_weights(self) -> NDArray[np.float32]:
        """[m], see :func:`session_weights`."""
        return session_weights(self.times)


def session_weights(times: NDArray[np.int64]) -> NDArray[np.float32]:
    """[..., m], weights that fall with every interaction and with every end of a session; ``times`` [..., m]
    ms, newest first."""
    ended = np.cumsum(np.diff(times, prepend=times[..., :1]) <= -SESSION_MS, axis=-1)
    weights: NDArray[np.float32] = SESSION_DECAY ** np.arange(times.shape[-1]) * BREAK_DECAY**ended
    return weights.astype(np.float32)


NOBODY = UserHistory(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_), 0)
"""Somebody of whom nothing is known."""
