"""Decayed engagement counts of contents, as one user partition sees them. Pure NumPy.

``count[a, h] = Σ 2^(-(t_ref - t)/h)`` over the users who have engaged by action ``a``, t being the time of
each one's newest act that stands (:mod:`.counting`): order-free, like the users' vectors. Held whole in
memory (contents are few) and written to ``content-stats`` in the same transactions as the users.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np
from numpy.typing import NDArray

from stream_app.events.times import LATEST_MS
from stream_app.hashing import key64
from stream_app.interests import statistics_record
from stream_app.interests.decay import remaining
from stream_app.interests.update import Contributions

HOUR_MS = 3_600_000.0

FADED_HALF_LIVES = 4
"""Counts this many of the longest half-lives old are below a sixteenth of what they were."""


class PartitionStatistics:
    """Counts of every content engaged with in one partition."""

    def __init__(self, partition: int, actions: Sequence[int], half_lives_h: Sequence[float]) -> None:
        """``actions`` are action codes [A]; ``half_lives_h`` [H] in hours."""
        self.actions = np.array(actions, np.uint16)
        self.half_lives_h = np.array(half_lives_h, np.float32)
        self._half_lives_ms = self.half_lives_h.astype(np.float64) * HOUR_MS
        self._place = np.full(1 << 16, -1, np.int64)
        self._place[self.actions] = np.arange(len(actions))
        self.rows: dict[bytes, int] = {}
        self._ids: list[bytes] = []
        self._by_key: dict[int, bytes] = {}
        self._t_ref = np.zeros(0, np.int64)
        self._counts = np.zeros((0, len(actions), len(half_lives_h)), np.float64)
        self._head, self._middle = statistics_record.prefix(partition, self.actions, self.half_lives_h)

    @property
    def stream_time(self) -> int | None:
        """Newest event time that was counted, ms."""
        used = self._t_ref[: len(self._ids)]
        return int(used.max()) if len(used) else None

    def load(self, content_id: bytes, value: bytes | None, latest_ms: int = LATEST_MS) -> None:
        """Take over one record of ``content-stats`` (None: forget the content). Counts that stand at a time
        after ``latest_ms`` are taken to stand then: an event of a wrong clock must not hold all others of
        the content, and the stream time, in its future."""
        if value is None:
            self.forget(content_id)
            return
        if (own := statistics_record.like(self._head, self._middle, value)) is not None:
            row = self._row(content_id)  # recovery meets these by the thousand
            t_ref, counts = own
            self._t_ref[row] = min(t_ref, latest_ms)
            self._counts[row].flat = counts
            return
        record = statistics_record.decode(value)
        row = self._row(content_id)
        self._t_ref[row] = min(record.t_ref, latest_ms)
        # a half-life or action that is no longer configured is dropped, a new one starts at 0
        self._counts[row] = 0.0
        for h, hours in enumerate(record.half_lives_h):
            here = np.flatnonzero(np.isclose(self.half_lives_h, hours))
            for a, code in enumerate(record.actions):
                if len(here) and self._place[code] >= 0:
                    self._counts[row, self._place[code], here[0]] = record.counts[a, h]

    def forget(self, content_id: bytes) -> bool:
        """Drop one content; its row is taken by the last one. Returns whether it was known."""
        row = self.rows.pop(content_id, None)
        if row is None:
            return False
        self._by_key.pop(key64(content_id), None)
        last = len(self._ids) - 1
        moved = self._ids.pop()
        if row != last:
            self._ids[row] = moved
            self.rows[moved] = row
            self._t_ref[row], self._counts[row] = self._t_ref[last], self._counts[last]
        self._t_ref[last], self._counts[last] = 0, 0.0
        return True

    def dispensable(self, known: Container[bytes], capacity: int) -> list[bytes]:
        """Contents to give up: not ``known``, and their counts have faded, or they are the ones longest
        not engaged with of more than ``capacity``. Never the newest, which keeps the stream time.

        Not being known alone says little: with a new encoder the index is empty until every content
        has been encoded again. An index holds ``capacity`` contents at most, so what is beyond is never
        all known; and counts begin only for known contents.
        """
        if not self._ids:
            return []
        t_ref = self._t_ref[: len(self._ids)]
        before = t_ref.max() - FADED_HALF_LIVES * self._half_lives_ms.max()
        oldest_first = np.argsort(t_ref, kind="stable")[:-1].tolist()
        unknown = [row for row in oldest_first if self._ids[row] not in known]
        excess = len(self._ids) - capacity
        return [self._ids[row] for place, row in enumerate(unknown) if place < excess or t_ref[row] < before]

    def add(self, moved: Contributions, ids: Sequence[bytes | None]) -> list[tuple[bytes, bytes]]:
        """Count a batch. ``ids`` maps content rows to content ids.

        Returns the changed records, each content once: (content id, value).
        """
        place = self._place[moved.actions]
        own = self._rows_of(moved, ids)
        counted = (place >= 0) & (own >= 0)
        if not counted.any():
            return []
        own, times, place, signs = own[counted], moved.times[counted], place[counted], moved.signs[counted]
        rows, inverse = np.unique(own, return_inverse=True)
        names = [self._ids[row] for row in rows.tolist()]

        newest = np.full(len(rows), np.iinfo(np.int64).min)
        np.maximum.at(newest, inverse, times)
        old = self._t_ref[rows]
        t_ref = np.maximum(old, newest)
        self._t_ref[rows] = t_ref
        counts = self._counts[rows]
        age = t_ref[inverse] - times
        flat = inverse * len(self.actions) + place
        for h, half_life_ms in enumerate(self._half_lives_ms):
            counts[:, :, h] *= remaining(t_ref - old, half_life_ms)[:, None]
            added = np.bincount(flat, signs * remaining(age, half_life_ms), counts.shape[0] * counts.shape[1])
            counts[:, :, h] += added.reshape(counts.shape[:2])
        self._counts[rows] = counts
        return self._records(names, t_ref, counts)

    def _rows_of(self, moved: Contributions, ids: Sequence[bytes | None]) -> NDArray[np.int64]:
        """Own row of each contribution's content; -1 where it is neither indexed nor counted here."""
        unique, inverse = np.unique(moved.contents, return_inverse=True)
        names = [ids[c] if c >= 0 else None for c in unique.tolist()]
        if any(name is None for name, c in zip(names, unique.tolist(), strict=True) if c >= 0):
            # the index changes only between batches
            raise AssertionError("a contribution names a content that is not indexed")
        rows = np.array([-1 if name is None else self._row(name) for name in names], np.int64)[inverse]
        if moved.keys is not None:
            for at in np.flatnonzero(moved.contents < 0).tolist():
                gone = self._by_key.get(int(moved.keys[at]))
                rows[at] = -1 if gone is None else self.rows[gone]
        return rows

    def _records(
        self, names: Sequence[bytes], t_ref: NDArray[np.int64], counts: NDArray[np.float64]
    ) -> list[tuple[bytes, bytes]]:
        size = counts[0].size * 4 if len(counts) else 0
        tails = counts.astype("<f4").tobytes()
        times = t_ref.astype("<i8").tobytes()
        head, middle = self._head, self._middle
        return [
            (name, b"".join((head, times[8 * i : 8 * i + 8], middle, tails[size * i : size * (i + 1)])))
            for i, name in enumerate(names)
        ]

    def _row(self, content_id: bytes) -> int:
        row = self.rows.get(content_id)
        if row is None:
            row = self.rows[content_id] = len(self._ids)
            self._ids.append(content_id)
            self._by_key[key64(content_id)] = content_id
            if row >= len(self._t_ref):
                more = max(1024, row)
                self._t_ref = np.concatenate([self._t_ref, np.zeros(more, np.int64)])
                self._counts = np.concatenate([self._counts, np.zeros((more, *self._counts.shape[1:]))])
        return row
