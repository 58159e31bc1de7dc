"""Features of one user's candidates, and the groups that a user belongs to. Pure NumPy.

m = recent contents of the user, n = candidates, N = contents. Each feature of a candidate depends on
the user and on that candidate alone, never on which other candidates there are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.learning import activity
from stream_app.learning.activity import Catalogue, log_minutes
from stream_app.learning.coengagement import AFTER, NEAR, STRONGLY, TOGETHER, Among, CoEngagement
from stream_app.learning.habits import AgeHabits, age_bands
from stream_app.learning.history import SESSION_MS, UserHistory
from stream_app.topics import DAY_MS

PERSONAL = (
    "together_last",
    "together_short",
    "together_middle",
    "together_long",
    "together_given",
    "near_last",
    "near_short",
    "near_long",
    "after_last",
    "after_short",
    "together_strongly",
    "cosine_last",
    "cosine_short",
    "cosine_long",
    "best_match",
    "author",
    "age_habit",
    "age_distance",
    "age_distance_session",
    "age_follows",
    "age_follows_session",
)
NAMES = (*activity.NAMES, *PERSONAL)
"""Columns of :class:`CandidateFeatures`."""

HISTORY_BANDS = (1, 5, 20)
"""Contents engaged with from which on the next band begins: nothing, few, some, many."""
AWAY_BANDS_MS = (SESSION_MS, DAY_MS)
"""Time since the last interaction from which on the next band begins: in session, today, returning."""
NEVER_MS = np.iinfo(np.int64).max
BANDS = len(HISTORY_BANDS) + 1 + len(AWAY_BANDS_MS) + 1
"""Groups of users that may have weights of their own; everybody is in two of them."""

SHORT, MIDDLE, LONG = 0.7, 0.9, 0.98
"""Decay from one recent content to the one before; by places and not by time, for bursts differ."""
STRONG_DECAY = 0.95
SHRINK = 2.0
"""Users added to each count of readers, so that a pair of readers proves little."""
BEST_OF = 8
"""Recent contents among which the best match is looked for."""

NOTHING: NDArray[np.int64] = np.zeros(0, np.int64)


def bands(history: UserHistory, now: int) -> tuple[int, int]:
    """The user's two groups, each below BANDS: how much is known, and how long the user was away."""
    away = NEVER_MS if history.last is None else now - history.last
    known, since = bands_of(np.array(history.contents), np.array(away))
    return int(known), int(since)


def bands_of(contents: NDArray[np.int64], away_ms: NDArray[np.int64]) -> tuple[NDArray[np.intp], ...]:
    """The two groups of users by how many contents each has engaged with, and how long ago; NEVER_MS
    without any."""
    known = np.searchsorted(HISTORY_BANDS, contents, side="right")
    away = np.searchsorted(AWAY_BANDS_MS, away_ms, side="right")
    return known, len(HISTORY_BANDS) + 1 + away


class CandidateFeatures:
    """Features of lists at one time that have most of their contents in common: what does not depend on
    the user is computed once."""

    def __init__(
        self,
        shared: NDArray[np.float32],
        catalogue: Catalogue,
        together: CoEngagement,
        habits: AgeHabits,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        """The contents ``rows`` [n], each once, are on every list; None = all N of them.

        ``shared`` are :func:`activity.catalogue_features` [N, len(activity.NAMES)] of the whole catalogue.
        """
        self._shared, self._catalogue, self._together, self._habits = shared, catalogue, together, habits
        self._among = Among(len(together.users), rows, len(shared))
        whole = slice(len(shared)) if rows is None else rows
        self._common = shared[whole]
        self._vectors = _Centred(catalogue.vectors[whole], catalogue.mean)

    def of(self, history: UserHistory, also: NDArray[np.int64] = NOTHING) -> NDArray[np.float32]:
        """[n + k, len(NAMES)] of one user's list, with ``also`` [k] at its end: each once, none of which is
        on every list."""
        common = len(self._common)
        features = np.zeros((common + len(also), len(NAMES)), np.float32)
        own = features[:, : self._common.shape[1]]
        own[:common], own[common:] = self._common, self._shared[also]
        personal = features[:, own.shape[1] :]
        if not len(history.rows):
            return features
        with self._among.and_also(also) as among:
            personal[:, :11] = _collaborative(history, self._together, among)
            personal[:, 15] = _author(history, self._catalogue, among.rows)
        if self._catalogue.vectors.shape[1]:
            liked = _Liked(history, self._catalogue)
            personal[:common, 11:15] = liked.matches(self._vectors)
            if len(also):
                vectors = self._catalogue.vectors[also]
                personal[common:, 11:15] = liked.matches(_Centred(vectors, self._catalogue.mean))
        personal[:, 16:21] = _ages(history, self._catalogue, own[:, activity.AGE], self._habits)
        return features


def _collaborative(history: UserHistory, together: CoEngagement, among: Among) -> NDArray[np.float32]:
    """[n, 11]: ``Σ_k d^k · count[i_k, j] / (n[i_k]^a n[j]^b)``, i_k the k-th newest content; a = b = ½ is
    the cosine of the two contents' readers, a = 1 and b = 0 the share of i's readers who read j."""
    rows = history.rows
    place = np.arange(len(rows), dtype=np.float32)
    readers = together.users[rows] + SHRINK
    damped, given = readers**-0.5, 1 / readers
    after = 1 / (together.users[rows] + 1)
    strong = history.strong * STRONG_DECAY**place * (together.strong_users[rows] + SHRINK) ** -0.5
    last, short, middle, long = place == 0, SHORT**place, MIDDLE**place, LONG**place
    coefficients = {
        TOGETHER: [last * given, short * damped, middle * damped, long * damped, middle * given],
        NEAR: [last * given, short * given, middle * damped],
        AFTER: [last * after, short * after],
        STRONGLY: [strong],
    }
    sums = together.gather(
        rows, {channel: np.array(given, np.float32) for channel, given in coefficients.items()}, among
    )
    sums[[1, 2, 3, 7]] *= (together.users[among.rows] + SHRINK) ** -0.5
    sums[10] *= (together.strong_users[among.rows] + SHRINK) ** -0.5
    sums *= np.array([20, 10, 10, 10, 10, 50, 50, 10, 50, 50, 10], np.float32)[:, None]
    logs: NDArray[np.float32] = np.log1p(sums).T
    return logs


class _Centred:
    """Vectors [n, D] of candidates, as seen from the catalogue's mean: what all texts have in common tells
    nothing."""

    def __init__(self, vectors: NDArray[np.float32], mean: NDArray[np.float32]) -> None:
        self.vectors = vectors
        squares = 1 - 2 * (vectors @ mean) + mean @ mean  # |v - mean|² of unit vectors
        self.scale = np.any(vectors, axis=1) / np.sqrt(np.maximum(squares, np.float32(0.05)))
        """[n], one over the length from the mean; 0 for contents without a vector"""


class _Liked:
    """What one user likes, as directions from the catalogue's mean: the last content, two decayed sums of
    the recent ones, and the newest ones each."""

    def __init__(self, history: UserHistory, catalogue: Catalogue) -> None:
        recent = catalogue.vectors[history.rows]  # [m, D]
        encoded: NDArray[np.bool_] = np.any(recent, axis=1)
        recent = (recent - catalogue.mean) * encoded[:, None]  # the mean is no part of what has no vector
        place = np.arange(len(recent), dtype=np.float32)
        interests = np.stack([recent[0], (SHORT**place) @ recent, (STRONG_DECAY**place) @ recent])
        directions = np.concatenate([interests, recent[:BEST_OF][encoded[:BEST_OF]]])
        lengths = np.sqrt(np.einsum("kd,kd->k", directions, directions))
        self._directions = directions / np.maximum(lengths, 1e-6)[:, None]
        self._offset = self._directions @ catalogue.mean

    def matches(self, candidates: _Centred) -> NDArray[np.float32]:
        """[n, 4]: cosines with the last content and the two sums, and the best one with the newest. All are
        0 for contents without a vector, and of the user's those without count nowhere."""
        products = candidates.vectors @ self._directions.T - self._offset
        products *= candidates.scale[:, None]
        features = np.zeros((len(products), 4), np.float32)
        features[:, :3] = products[:, :3]
        if products.shape[1] > 3:
            features[:, 3] = products[:, 3:].max(axis=1)
        return features


def _author(history: UserHistory, catalogue: Catalogue, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """[n]: ``log(1 + 10 Σ_k d^k)`` over the recent contents of the candidate's author."""
    recent = catalogue.authors[history.rows]
    known = recent != 0
    features = np.zeros(len(rows), np.float32)
    if known.any():
        authors, inverse = np.unique(recent[known], return_inverse=True)
        sums = np.bincount(inverse, MIDDLE ** np.flatnonzero(known))
        own = catalogue.authors[rows]
        places = np.searchsorted(authors, own)
        places[places == len(authors)] = 0
        features = np.where(authors[places] == own, np.log1p(10 * sums[places]), 0).astype(np.float32)
    return features


def _ages(
    history: UserHistory, catalogue: Catalogue, age: NDArray[np.float32], habits: AgeHabits
) -> NDArray[np.float32]:
    """[n, 5]: does the user read what is new just now, or what is old? How old
    contents were when the user engaged with them is compared with the candidate's ``age`` [n]."""
    ages = log_minutes(history.times - catalogue.created_at[history.rows])  # [m]
    session = history.in_session(catalogue.now)
    band = age_bands(age)
    features = np.empty((len(age), 5), np.float32)
    features[:, 0] = habits.lifts(ages, history.session_weights())[band]
    features[:, 1] = np.abs(age - ages[0])
    features[:, 2] = features[:, 1] * session
    features[:, 3] = 0.1 * (ages[0] - habits.usual) * age
    features[:, 4] = features[:, 3] * session
    return features
