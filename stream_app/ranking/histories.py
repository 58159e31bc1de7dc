"""What the learned ranker reads of a micro-batch of users, as arrays ready for the device (NumPy).

B users, M recent contents of a user at most. Ragged histories are padded to the longest of the batch;
padding has weight zero everywhere, so that a user's numbers do not depend on whom they are padded with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.interests.record import InterestRecord, by_arrival, seen_by_arrival
from stream_app.learning.activity import log_minutes
from stream_app.learning.engagements import history_of, standing
from stream_app.learning.features import LONG, MIDDLE, SHORT, SHRINK, STRONG_DECAY, bands
from stream_app.learning.habits import BANDS, AgeHabits
from stream_app.learning.history import NOBODY, UserHistory
from stream_app.ranking.users import RowsOf

_LAST = np.iinfo(np.int64).max  # no author's key; what stands after the user's authors, in order


@dataclass(frozen=True)
class HistoryBatch:
    """B users, newest contents first."""

    rows: NDArray[np.int64]
    """[B, M], rows of the index; 0 where padded"""
    lengths: NDArray[np.int64]
    """[B], contents of each history"""
    coefficients: NDArray[np.float32]
    """[B, 11, M], of each recent content in the eleven collaborative features"""
    authors: NDArray[np.int64]
    """[B, A], the recent contents' authors, ascending, each once; then padding"""
    author_values: NDArray[np.float32]
    """[B, A], the feature of a candidate of that author"""
    lifts: NDArray[np.float32]
    """[B, BANDS], see :meth:`AgeHabits.lifts`"""
    last_age: NDArray[np.float32]
    """[B], logarithmic age that the newest content had"""
    follows: NDArray[np.float32]
    """[B], a tenth of how much older that was than what everybody reads"""
    session: NDArray[np.float32]
    """[B], 1 while the user's session goes on"""
    groups: NDArray[np.int64]
    """[B, 2], see :func:`stream_app.learning.features.bands`"""


def histories(records: Sequence[InterestRecord | None], rows_of: RowsOf) -> list[UserHistory]:
    """Each user's history by the record; NOBODY where there is none."""
    rings = [by_arrival(r) if r is not None else None for r in records]
    seen = [seen_by_arrival(r) if r is not None else None for r in records]
    keys = [ring["content"] for ring in rings if ring is not None] + [s for s in seen if s is not None]
    rows = rows_of(np.concatenate(keys)) if keys else np.zeros(0, np.int64)
    place, later = 0, sum(len(ring) for ring in rings if ring is not None)
    found = []
    for record, ring, seen_keys in zip(records, rings, seen, strict=True):
        if record is None or ring is None or seen_keys is None:
            found.append(NOBODY)
            continue
        found.append(
            history_of(
                ring,
                rows[place : place + len(ring)],
                standing(ring, record.t_ref),
                rows[later : later + len(seen_keys)],
                int(record.header["seen_total"]),
            )
        )
        place, later = place + len(ring), later + len(seen_keys)
    return found


def gather(
    users: Sequence[UserHistory],
    now: int,
    created_at: NDArray[np.int64],
    authors: NDArray[np.uint64],
    readers: NDArray[np.float32],
    habits: AgeHabits,
) -> HistoryBatch:
    """The batch of these users at ``now`` (ms). ``created_at`` [N] ms, ``authors`` [N] and ``readers``
    [2, N] (all, strong ones) are the catalogue's."""
    b = len(users)
    lengths = np.array([len(user.rows) for user in users], np.int64)
    m = max(int(lengths.max(initial=0)), 1)
    rows, strong = np.zeros((b, m), np.int64), np.zeros((b, m), np.bool_)
    author_keys = np.full((b, m), _LAST)
    author_values = np.zeros((b, m), np.float32)
    lifts, ages = np.zeros((b, BANDS), np.float32), np.zeros((b, 2), np.float32)
    session = np.zeros(b, np.float32)
    for i, user in enumerate(users):
        n = len(user.rows)
        if not n:
            continue
        rows[i, :n], strong[i, :n] = user.rows, user.strong
        user_ages = log_minutes(user.times - created_at[user.rows])
        lifts[i] = habits.lifts(user_ages, user.session_weights())
        ages[i] = user_ages[0], 0.1 * (user_ages[0] - habits.usual)
        session[i] = user.in_session(now)
        keys, values = _authors(authors[user.rows])
        author_keys[i, : len(keys)], author_values[i, : len(keys)] = keys, values
    return HistoryBatch(
        rows=rows,
        lengths=lengths,
        coefficients=_coefficients(rows, strong, lengths, readers),
        authors=author_keys,
        author_values=author_values,
        lifts=lifts,
        last_age=ages[:, 0],
        follows=ages[:, 1],
        session=session,
        groups=np.array([bands(user, now) for user in users], np.int64).reshape(b, 2),
    )


def _coefficients(
    rows: NDArray[np.int64],
    strong: NDArray[np.bool_],
    lengths: NDArray[np.int64],
    readers: NDArray[np.float32],
) -> NDArray[np.float32]:
    """[B, 11, M], as in :mod:`stream_app.learning.features`, by the names there: together_last, _short,
    _middle, _long, _given, near_last, _short, _long, after_last, after_short, together_strongly."""
    place = np.arange(rows.shape[1], dtype=np.float32)
    shrunk = readers[0, rows] + SHRINK  # [B, M]
    damped, given, after = shrunk**-0.5, 1 / shrunk, 1 / (readers[0, rows] + 1)
    last = place == 0
    coefficients = np.stack(
        [
            last * given,
            SHORT**place * damped,
            MIDDLE**place * damped,
            LONG**place * damped,
            MIDDLE**place * given,
            last * given,
            SHORT**place * given,
            MIDDLE**place * damped,
            last * after,
            SHORT**place * after,
            strong * STRONG_DECAY**place * (readers[1, rows] + SHRINK) ** -0.5,
        ],
        axis=1,
    ).astype(np.float32)
    coefficients *= (place < lengths[:, None])[:, None]
    return coefficients


def _authors(recent: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The authors of recent contents, ascending as signed numbers, and what their contents get."""
    known = np.flatnonzero(recent)
    authors, inverse = np.unique(recent[known].view(np.int64), return_inverse=True)
    sums = np.bincount(inverse, MIDDLE**known, len(authors))
    return authors, np.log1p(10 * sums).astype(np.float32)
