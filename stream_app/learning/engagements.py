"""What is new in an interests record: the engagements that its user has not been known for yet (NumPy).

A record holds a user's recent interactions, each with its place in the order of arrival, so what came
after the last record of the same user that was read is new. Of a user who is not remembered, only the
newest interaction is: earlier ones may have been learned from before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.content.index import ContentIndex
from stream_app.errors import RecordFormatError
from stream_app.events.times import LATEST_MS
from stream_app.interests.record import (
    APPLIED,
    COUNTED,
    InterestRecord,
    by_arrival,
    seen_by_arrival,
    states,
)
from stream_app.learning.history import UserHistory
from stream_app.learning.online import Engagement, Recounted

LARGEST_WEIGHT = 100.0
"""As the settings of actions allow."""


@dataclass(frozen=True, slots=True)
class _Known:
    """How far a user's record has been read."""

    total: int
    seen_total: int
    counted: bytes
    """Bits, by slot of the ring: interactions that stand for the user in their contents' counts"""


class RememberedUsers:
    """At most ``capacity`` users, the ones longest unheard of given up first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._users: OrderedDict[bytes, _Known] = OrderedDict()

    def forget(self, user: bytes) -> None:
        """The user was erased or has faded."""
        self._users.pop(user, None)

    def news(
        self, user: bytes, record: InterestRecord, index: ContentIndex
    ) -> Iterator[Engagement | Recounted]:
        """What is new in a user's record, in the order of arrival; contents that ``index`` does not know
        are left out, as are numbers that no worker writes. Raises RecordFormatError when the record's
        header contradicts it."""
        _check(record)
        header = record.header
        total, seen_total = int(header["total"]), int(header["seen_total"])
        before = self._users.pop(user, None)
        counted = np.packbits(_counted(record.interactions)).tobytes()
        self._users[user] = _Known(total, seen_total, counted)
        if len(self._users) > self._capacity:
            self._users.popitem(last=False)
        if before is not None and total < before.total:
            before = None  # erased and begun anew, or the topic was
        if before is not None and counted != before.counted:
            yield from _recounted(record, before, index)
        yield from _engagements(record, before, index)


def _check(record: InterestRecord) -> None:
    header = record.header
    kept = min(int(header["total"]), int(header["recent"]))
    seen = min(int(header["seen_total"]), int(header["seen"]))
    if (kept, seen) != (len(record.interactions), len(record.seen)) or not 0 <= record.t_ref <= LATEST_MS:
        raise RecordFormatError("interest record whose header does not fit its contents")


def standing(ring: NDArray[np.void], t_ref: int | NDArray[np.int64]) -> NDArray[np.bool_]:
    """[n], interactions that were applied, not taken back since, and whose numbers can be; ``t_ref`` is their
    record's, or [n] those of several records."""
    stands: NDArray[np.bool_] = (states(ring) == APPLIED) & _possible(ring, t_ref)
    return stands


def _possible(ring: NDArray[np.void], t_ref: int | NDArray[np.int64]) -> NDArray[np.bool_]:
    """[n], whether an interaction's time and weight can be; a weight that is no number cannot."""
    possible: NDArray[np.bool_] = np.abs(ring["weight"]) <= LARGEST_WEIGHT
    possible &= (ring["time"] > 0) & (ring["time"] <= t_ref)
    return possible


def _engagements(record: InterestRecord, before: _Known | None, index: ContentIndex) -> Iterator[Engagement]:
    ring, seen_keys = by_arrival(record), seen_by_arrival(record)
    total, seen_total = int(record.header["total"]), int(record.header["seen_total"])
    new = min(1 if before is None else total - before.total, len(ring))
    if not new:
        return
    if before is not None:
        unseen = min(max(seen_total - before.seen_total, 0), len(seen_keys))
    else:  # the newest content of all was not known before, unless it was engaged with earlier
        unseen = int(len(seen_keys) > 0 and seen_keys[-1] not in ring["content"][:-1])
    rows, seen = index.rows_of_keys(ring["content"]), index.rows_of_keys(seen_keys)
    stands = standing(ring, record.t_ref)
    for place in range(len(ring) - new, len(ring)):
        entry, so_far = ring[place], len(seen) - unseen
        found = np.flatnonzero(seen_keys[so_far:] == entry["content"])
        if rows[place] >= 0 and stands[place]:
            known = np.concatenate([rows[:place], seen[:so_far]])
            yield Engagement(
                row=int(rows[place]),
                time=int(entry["time"]),
                weight=float(entry["weight"]),
                first=len(found) > 0,
                history=history_of(
                    ring[:place], rows[:place], stands[:place], seen[:so_far], seen_total - unseen
                ),
                known=known[known >= 0],
                counts=bool(entry["state"] & COUNTED),
            )
        if len(found):
            unseen -= int(found[0]) + 1


def _counted(ring: NDArray[np.void]) -> NDArray[np.bool_]:
    counted: NDArray[np.bool_] = (states(ring) == APPLIED) & (ring["state"] & COUNTED != 0)
    return counted


def _recounted(record: InterestRecord, before: _Known, index: ContentIndex) -> Iterator[Recounted]:
    ring, total, size = record.interactions, int(record.header["total"]), int(record.header["recent"])
    slots = np.arange(len(ring))
    arrivals = total - 1 - (total - 1 - slots) % max(size, 1)
    bits = np.unpackbits(np.frombuffer(before.counted, np.uint8), count=len(ring))
    counted = _counted(ring)
    other = (counted != bits) & (arrivals < before.total) & _possible(ring, record.t_ref)
    rows = index.rows_of_keys(ring["content"][other])
    for row, entry, counts in zip(rows.tolist(), ring[other], counted[other].tolist(), strict=True):
        if row >= 0:
            yield Recounted(row, int(entry["time"]), float(entry["weight"]), counts)


def history_of(
    ring: NDArray[np.void],
    rows: NDArray[np.int64],
    stands: NDArray[np.bool_],
    seen: NDArray[np.int64],
    contents: int,
) -> UserHistory:
    """From a record's interactions, oldest first, with the ``rows`` of their contents and which of them
    ``stands``; and the rows of those ``seen``, ``contents`` of them ever."""
    # what was taken back, or waits for its original, is as if it had been disliked: no history
    weights = np.where(stands, ring["weight"], np.float32(-1))
    return UserHistory.of_record(rows, ring["time"], weights, seen, contents)
