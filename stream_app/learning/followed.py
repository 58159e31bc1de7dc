"""``co-engagement`` as a worker holds it: counts whose rows are those of its content index (NumPy)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from stream_app.content.early import Early
from stream_app.content.index import ContentIndex
from stream_app.errors import RecordFormatError
from stream_app.learning import neighbours_record
from stream_app.learning.coengagement import CoEngagement
from stream_app.learning.neighbours_record import Neighbours
from stream_app.observability import metrics


class FollowedNeighbours:
    """Applies records of ``co-engagement`` to ``together``; one thread applies and reads.

    A content that the index does not know (yet) is held, as many of them as the index has rows, the ones
    longest unheard of given up first. A neighbour that it does not know is left out until the content's
    next record.
    """

    def __init__(self, index: ContentIndex, neighbours: int) -> None:
        """``neighbours`` K: at most so many are held of each content."""
        self.together = CoEngagement(len(index.keys), neighbours)
        """What is held, by row of the index"""
        self.gone: set[bytes] = set()
        """Contents that have left the index, or wait for it in vain: their records are to be withdrawn"""
        self._index = index
        self._owners: NDArray[np.uint64] = np.zeros(len(index.keys), np.uint64)  # [N], whose counts they are
        self._names: dict[int, bytes] = {}  # row → the content that it was claimed for
        self._early: Early[Neighbours] = Early(index)

    def apply(self, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Apply (content_id, value) records in their order; a null value forgets the content. Records that
        cannot be read are counted and skipped."""
        for content_id, value in records:
            if content_id is None:
                metrics.TRAINER_REJECTED.labels("co-engagement").inc()
                continue
            row = self._index.rows.get(content_id)
            if value is None:
                self._early.drop(content_id)
                if row is not None:
                    self.together.forget(row)
                continue
            try:
                neighbours = neighbours_record.decode(value)
            except RecordFormatError:
                metrics.TRAINER_REJECTED.labels("co-engagement").inc()
                continue
            if row is None:
                self._hold(content_id, neighbours)
            else:
                self._put(row, neighbours)

    def adopt(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Follow the index, whose changed rows these are: forget contents that have left it, and put what
        was held for those that have come. Returns the rows [n] that have another content now."""
        other = self._claim(rows)
        for row, held in self._early.arrived(rows):
            self._put(row, held)
        return other

    def record(self, row: int) -> tuple[bytes, bytes] | None:
        """Key and value for ``co-engagement`` of the content in that row; None where there is none."""
        content_id = self._index.ids[row]
        if content_id is None:
            return None
        rows, counts = self.together.row(row)
        live = self._index.live[rows]
        users, strong_users = float(self.together.users[row]), float(self.together.strong_users[row])
        keys = self._index.keys[rows[live]]
        return content_id, neighbours_record.encode(Neighbours(users, strong_users, keys, counts[:, live]))

    def _put(self, row: int, neighbours: Neighbours) -> None:
        rows = self._index.rows_of_keys(neighbours.keys)
        known = rows >= 0
        # rows that were given to other contents since the index was last followed
        self._claim(np.append(rows[known], row))
        self.together.put(
            row, neighbours.users, neighbours.strong_users, rows[known], neighbours.counts[:, known]
        )

    def _claim(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Forget what is held of former contents of these rows; returns those that have another now."""
        other: NDArray[np.int64] = rows[self._owners[rows] != self._index.keys[rows]]
        former = other[self._owners[other] != 0]
        if len(former):
            self.together.forget(former)
        self._owners[other] = self._index.keys[other]
        for row in other.tolist():
            if (name := self._names.pop(row, None)) is not None:
                self.gone.add(name)
            if (content_id := self._index.ids[row]) is not None:
                self._names[row] = content_id
        self.gone -= {self._names[row] for row in other.tolist() if row in self._names}
        return other

    def _hold(self, content_id: bytes, neighbours: Neighbours) -> None:
        self.gone.discard(content_id)
        if (given_up := self._early.hold(content_id, neighbours)) is not None:
            self.gone.add(given_up)
