"""Features of one user's candidates, and the groups that a user belongs to. Pure NumPy.

m = recent contents of the user, n = candidates, N = contents. Each feature of a candidate depends on
the user and on that candidate alone, never on which other candidates there are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.learning import activity
from stream_app.learning.activity import Catalogue, log_minutes
from stream_app.learning.coengagement import AFTER, NEAR, STRONGLY, TOGETHER, CoEngagement
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
"""Columns of :func:`candidate_features`."""

HISTORY_BANDS = (1, 5, 20)
"""Contents engaged with from which on the next band begins: nothing, few, some, many."""
AWAY_BANDS_MS = (SESSION_MS, DAY_MS)
"""Time since the last interaction from which on the next band begins: in session, today, returning."""
BANDS = len(HISTORY_BANDS) + 1 + len(AWAY_BANDS_MS) + 1
"""Groups of users that may have weights of their own; everybody is in two of them."""

SHORT, MIDDLE, LONG = 0.7, 0.9, 0.98
"""Decay from one recent content to the one before; by places and not by time, for bursts differ."""
STRONG_DECAY = 0.95
SHRINK = 2.0
"""Users added to each count of readers, so that a pair of readers proves little."""
BEST_OF = 8
"""Recent contents among which the best match is looked for."""


def bands(history: UserHistory, now: int) -> tuple[int, int]:
    """The user's two groups, each below BANDS: how much is known, and how long the user was away."""
    known = int(np.searchsorted(HISTORY_BANDS, history.contents, side="right"))
    away = len(AWAY_BANDS_MS)
    if history.last is not None:
        away = int(np.searchsorted(AWAY_BANDS_MS, now - history.last, side="right"))
    return known, len(HISTORY_BANDS) + 1 + away


def candidate_features(
    shared: NDArray[np.float32],
    history: UserHistory,
    catalogue: Catalogue,
    together: CoEngagement,
    habits: AgeHabits,
    rows: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """[n, len(NAMES)] of the contents ``rows`` [n], each once, for one user; None = of all N contents.

    ``shared`` are :func:`activity.catalogue_features` [N, len(activity.NAMES)] of the whole catalogue.
    """
    own = shared if rows is None else shared[rows]
    features = np.zeros((len(own), len(NAMES)), np.float32)
    features[:, : own.shape[1]] = own
    personal = features[:, own.shape[1] :]
    if not len(history.rows):
        return features
    personal[:, :11] = _collaborative(history, together, len(shared), rows)
    personal[:, 11:15] = _content(history, catalogue, rows)
    personal[:, 15] = _author(history, catalogue, rows)
    personal[:, 16:21] = _ages(history, catalogue, own[:, activity.AGE], habits)
    return features


def _collaborative(
    history: UserHistory, together: CoEngagement, high: int, among: NDArray[np.int64] | None
) -> NDArray[np.float32]:
    """[n, 11]: ``Σ_k d^k · count[i_k, j] / (n[i_k]^a n[j]^b)``, i_k the k-th newest content; a = b = ½ is
    the cosine of the two contents' readers, a = 1 and b = 0 the share of i's readers who read j."""
    rows = history.rows
    own = slice(high) if among is None else among
    place = np.arange(len(rows), dtype=np.float32)
    readers = together.users[rows] + SHRINK
    damped, given = readers**-0.5, 1 / readers
    last = place == 0
    sums = together.gather(
        TOGETHER,
        rows,
        np.stack(
            [
                last * given,
                SHORT**place * damped,
                MIDDLE**place * damped,
                LONG**place * damped,
                MIDDLE**place * given,
            ]
        ).astype(np.float32),
        high,
        among,
    )
    near = together.gather(
        NEAR,
        rows,
        np.stack([last * given, SHORT**place * given, MIDDLE**place * damped]).astype(np.float32),
        high,
        among,
    )
    after = 1 / (together.users[rows] + 1)
    follow = together.gather(
        AFTER, rows, np.stack([last * after, SHORT**place * after]).astype(np.float32), high, among
    )
    strong = history.strong * STRONG_DECAY**place * (together.strong_users[rows] + SHRINK) ** -0.5
    strongly = together.gather(STRONGLY, rows, strong[None].astype(np.float32), high, among)
    own_damped = (together.users[own] + SHRINK) ** -0.5
    sums[1:4] *= own_damped
    near[2] *= own_damped
    strongly *= (together.strong_users[own] + SHRINK) ** -0.5
    sums *= np.array([20, 10, 10, 10, 10], np.float32)[:, None]
    near *= np.array([50, 50, 10], np.float32)[:, None]
    follow *= 50
    strongly *= 10
    logs: NDArray[np.float32] = np.log1p(np.concatenate([sums, near, follow, strongly])).T
    return logs


def _content(
    history: UserHistory, catalogue: Catalogue, rows: NDArray[np.int64] | None
) -> NDArray[np.float32]:
    """[n, 4]: cosines with the last content, two decayed sums of the recent ones, and the best match among
    the newest. The catalogue's mean is subtracted: what all texts have in common tells nothing. All are 0 for
    contents without a vector, and of the user's those without count nowhere."""
    mean = catalogue.mean
    vectors = catalogue.vectors if rows is None else catalogue.vectors[rows]
    features = np.zeros((len(vectors), 4), np.float32)
    if not vectors.shape[1]:
        return features
    recent = catalogue.vectors[history.rows]  # [m, D]
    encoded: NDArray[np.bool_] = np.any(recent, axis=1)
    recent = (recent - mean) * encoded[:, None]  # the mean is no part of what has no vector
    place = np.arange(len(recent), dtype=np.float32)
    interests = np.stack([recent[0], (SHORT**place) @ recent, (STRONG_DECAY**place) @ recent])
    directions = np.concatenate([interests, recent[:BEST_OF]])
    lengths = np.sqrt(np.einsum("kd,kd->k", directions, directions))
    directions /= np.maximum(lengths, 1e-6)[:, None]
    offset = directions @ mean
    own = 1 - 2 * (vectors @ mean) + mean @ mean  # |v - mean|² of unit vectors
    products = (vectors @ directions.T - offset) / np.sqrt(np.maximum(own, 0.05))[:, None]
    products *= np.any(vectors, axis=1, keepdims=True)
    features[:, :3] = products[:, :3]
    best = products[:, 3:][:, encoded[:BEST_OF]]
    if best.shape[1]:
        features[:, 3] = best.max(axis=1)
    return features


def _author(
    history: UserHistory, catalogue: Catalogue, rows: NDArray[np.int64] | None
) -> NDArray[np.float32]:
    """[n]: ``log(1 + 10 Σ_k d^k)`` over the recent contents of the candidate's author."""
    recent = catalogue.authors[history.rows]
    own = catalogue.authors if rows is None else catalogue.authors[rows]
    known = recent != 0
    features = np.zeros(len(own), np.float32)
    if known.any():
        authors, inverse = np.unique(recent[known], return_inverse=True)
        sums = np.bincount(inverse, MIDDLE ** np.flatnonzero(known))
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
