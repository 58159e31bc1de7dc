"""What the learned ranker reads of a micro-batch of users, as arrays ready for the device (NumPy).

B users, M recent contents of a user at most. Ragged histories are padded to the longest of the batch;
padding has weight zero everywhere, so that a user's numbers do not depend on whom they are padded with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.interests.record import InterestRecord, by_arrival, joined, seen_by_arrival
from stream_app.learning.activity import log_minutes
from stream_app.learning.engagements import standing
from stream_app.learning.features import LONG, MIDDLE, NEVER_MS, SHORT, SHRINK, STRONG_DECAY, bands_of
from stream_app.learning.habits import BANDS, AgeHabits, age_bands
from stream_app.learning.history import LONGEST, SESSION_MS, STRONG_WEIGHT, session_weights
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


@dataclass(frozen=True)
class Histories:
    """:class:`stream_app.learning.history.UserHistory` of B users, padded."""

    rows: NDArray[np.int64]
    """[B, M], rows of the index, newest contents first; 0 where padded"""
    times: NDArray[np.int64]
    """[B, M], ms; 0 where padded"""
    strong: NDArray[np.bool_]
    """[B, M]"""
    present: NDArray[np.bool_]
    """[B, M], False where padded"""
    lengths: NDArray[np.int64]
    """[B], contents of each history"""
    contents: NDArray[np.int64]
    """[B], how many contents each user has engaged with"""

    @classmethod
    def of(cls, records: Sequence[InterestRecord | None], rows_of: RowsOf) -> Histories:
        """What :func:`stream_app.learning.engagements.history_of` makes of each record, all at once; nothing
        where there is none."""
        b, several = len(records), [(user, one) for user, one in enumerate(records) if one is not None]
        users = np.array([user for user, _ in several], np.int64)
        contents, t_refs = np.zeros(b, np.int64), np.array([one.t_ref for _, one in several], np.int64)
        contents[users] = [int(one.header["seen_total"]) for _, one in several]
        rings, seen = [by_arrival(one) for _, one in several], [seen_by_arrival(one) for _, one in several]
        of_ring, of_seen = (np.array([len(one) for one in own], np.int64) for own in (rings, seen))
        ring = joined([own[::-1] for own in rings])
        keys = [ring["content"], *(own[::-1] for own in seen)]
        rows, who = rows_of(np.concatenate(keys)), np.repeat(np.tile(users, 2), np.append(of_ring, of_seen))
        # what was taken back, or waits for its original, is as if it had been disliked: no history
        weights = np.where(standing(ring, np.repeat(t_refs, of_ring)), ring["weight"], np.float32(-1))

        known = np.flatnonzero(rows >= 0)
        pairs = who[known] * (rows.max(initial=0) + 1) + rows[known]
        own = np.searchsorted(known, len(ring))  # interactions come first, then what is seen alone
        engaged, first, inverse = np.unique(pairs[:own], return_index=True, return_inverse=True)
        times = ring["time"][known[:own]]
        most = np.full(len(engaged), -np.inf, np.float32)
        np.maximum.at(most, inverse, weights[known[:own]])
        oldest = np.zeros(b, np.int64)
        oldest[who[known[:own]]] = times  # the last one of each user stays
        liked = first[most >= 0]
        order = np.argsort(liked)
        older = known[own:][~np.isin(pairs[own:], engaged)]
        chosen = np.concatenate([known[liked[order]], older])
        at = np.concatenate([times[liked[order]], oldest[who[older]]])
        strong = np.zeros(len(chosen), np.bool_)
        strong[: len(liked)] = (most[most >= 0] >= STRONG_WEIGHT)[order]
        return cls._padded(who[chosen], rows[chosen], at, strong, contents)

    @classmethod
    def _padded(
        cls,
        users: NDArray[np.int64],
        rows: NDArray[np.int64],
        times: NDArray[np.int64],
        strong: NDArray[np.bool_],
        contents: NDArray[np.int64],
    ) -> Histories:
        """[X] each, of every user the newest first, LONGEST of them at most."""
        counts = np.bincount(users, minlength=len(contents))
        lengths = np.minimum(counts, LONGEST)
        place = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
        order = np.argsort(users, kind="stable")[place < LONGEST]
        present = np.arange(max(int(lengths.max(initial=0)), 1)) < lengths[:, None]
        found = cls(
            rows=np.zeros(present.shape, np.int64),
            times=np.zeros(present.shape, np.int64),
            strong=np.zeros(present.shape, np.bool_),
            present=present,
            lengths=lengths,
            contents=contents,
        )
        # True by True in the order of the users: each user's places from the first on
        found.rows[present], found.times[present] = rows[order], times[order]
        found.strong[present] = strong[order]
        return found


def gather(
    users: Histories,
    now: int,
    created_at: NDArray[np.int64],
    authors: NDArray[np.uint64],
    readers: NDArray[np.float32],
    habits: AgeHabits,
) -> HistoryBatch:
    """The batch of these users at ``now`` (ms). ``created_at`` [N] ms, ``authors`` [N] and ``readers``
    [2, N] (all, strong ones) are the catalogue's."""
    rows, present, some = users.rows, users.present, users.lengths > 0
    ages = log_minutes(users.times - created_at[rows])  # [B, M]
    weights = session_weights(users.times) * present
    places = age_bands(ages) + BANDS * np.arange(len(rows))[:, None]
    in_bands = np.bincount(places.ravel(), weights.ravel(), BANDS * len(rows)).reshape(-1, BANDS)
    author_keys, author_values = _authors(np.where(present, authors[rows], np.uint64(0)))
    away = now - users.times[:, 0]
    return HistoryBatch(
        rows=rows,
        lengths=users.lengths,
        coefficients=_coefficients(rows, users.strong, users.lengths, readers),
        authors=author_keys,
        author_values=author_values,
        lifts=habits.lifted(in_bands),
        last_age=np.where(some, ages[:, 0], np.float32(0)),
        follows=np.where(some, 0.1 * (ages[:, 0] - habits.usual), np.float32(0)),
        session=(some & (away < SESSION_MS)).astype(np.float32),
        groups=np.stack(bands_of(users.contents, np.where(some, away, NEVER_MS)), axis=1),
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
    """The authors of ``recent`` contents [B, M], ascending as signed numbers, and what their contents get:
    [B, M] each, padded."""
    users, places = np.nonzero(recent)
    keys = recent[users, places].view(np.int64)
    order = np.lexsort((keys, users))
    users, places, keys = users[order], places[order], keys[order]
    first = np.ones(len(keys), np.bool_)
    first[1:] = (users[1:] != users[:-1]) | (keys[1:] != keys[:-1])
    sums = np.bincount(np.cumsum(first) - 1, MIDDLE**places, np.count_nonzero(first))
    users, keys = users[first], keys[first]
    column = np.arange(len(users)) - np.searchsorted(users, users)
    authors, values = np.full(recent.shape, _LAST), np.zeros(recent.shape, np.float32)
    authors[users, column], values[users, column] = keys, np.log1p(10 * sums)
    return authors, values
