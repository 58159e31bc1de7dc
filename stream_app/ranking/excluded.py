"""What must not be recommended to whom: the one place that maps users to rows of the index (NumPy)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_app.hashing import key64
from stream_app.interests.record import InterestRecord
from stream_app.ranking.device import DeviceIndex
from stream_app.ranking.ranked import User


class Excluded(NamedTuple):
    """Pairs of a user (a place in the micro-batch) and a row of the index; one may come twice."""

    users: NDArray[np.int64]
    """[X]"""
    rows: NDArray[np.int64]
    """[X]"""

    def of(self, users: NDArray[np.int64]) -> Excluded:
        """Those of some ``users`` [n], ascending, who are numbered anew."""
        place = np.minimum(np.searchsorted(users, self.users), len(users) - 1)
        theirs = users[place] == self.users
        return Excluded(place[theirs], self.rows[theirs])

    def plus(self, other: Excluded) -> Excluded:
        """Both, of the same users."""
        return Excluded(*(np.concatenate(both) for both in zip(self, other, strict=True)))

    def by_user(self, count: int) -> list[NDArray[np.int64]]:
        """The rows of each of ``count`` users."""
        order = np.argsort(self.users, kind="stable")
        bounds = np.searchsorted(self.users[order], np.arange(1, count))
        return np.split(self.rows[order], bounds) if count else []


def excluded(users: Sequence[User], index: DeviceIndex, own: bool) -> Excluded:
    """What B users have engaged with, what they wrote themselves unless ``own``, and whatever says the same
    as one of these under another id."""
    found = seen([record for _, record in users], index)
    if not own:
        keys = np.fromiter((key64(user_id) for user_id, _ in users), np.uint64, len(users))
        found = found.plus(Excluded(*index.by_author.all_of(keys)))
    return Excluded(*index.texts.with_copies(*found))


def seen(records: Sequence[InterestRecord | None], index: DeviceIndex) -> Excluded:
    """The rows of contents that the users have engaged with, as far as their records remember."""
    keys = [_NO_KEYS if r is None else np.concatenate([r.seen, r.interactions["content"]]) for r in records]
    rows = index.rows_of(np.concatenate([_NO_KEYS, *keys]))
    users = np.repeat(np.arange(len(keys)), [len(own) for own in keys])
    known = rows >= 0
    long = [_NO_FINGERPRINTS if r is None else r.long for r in records]
    places, like = index.rows_like(np.concatenate([_NO_FINGERPRINTS, *long]))
    of = np.repeat(np.arange(len(long)), [len(marks) for marks in long])[places]
    return Excluded(np.concatenate([users[known], of]), np.concatenate([rows[known], like]))


_NO_KEYS: NDArray[np.uint64] = np.zeros(0, np.uint64)
_NO_FINGERPRINTS: NDArray[np.uint32] = np.zeros(0, np.uint32)
