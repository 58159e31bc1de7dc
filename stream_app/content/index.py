"""The content index: every known content's unit vector in preallocated arrays, NumPy only.

Interests workers look vectors up by content id; rankers mirror ``vectors[:high]`` on the device and
follow :meth:`ContentIndex.drain_changes`. Rows are updated in place, and a freed row is zeroed and
used again, so that a row number stays valid for as long as its content does.

One thread changes an index. The arrays never grow: pages that no content has touched cost no memory.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from stream_app.content import vectors
from stream_app.content.vectors import ContentVector
from stream_app.errors import RecordFormatError
from stream_app.hashing import key64
from stream_app.observability import metrics
from stream_app.settings import Settings

DAY_MS = 86_400_000
NORM_TOLERANCE = 0.01  # float16 rounding of a unit vector stays below 0.001


class ContentIndex:
    """The newest ``capacity`` contents of one encoder; N rows of D dimensions."""

    def __init__(self, settings: Settings, model: str) -> None:
        """An empty index for the vectors of encoder ``model``; records of any other are rejected."""
        n, d = settings.content.capacity, settings.content.dimensions
        self.model = model
        self.rows: dict[bytes, int] = {}
        """content_id (UTF-8) → row"""
        self.ids: list[bytes | None] = []
        """row → content_id, ``high`` entries; None where free"""
        self.vectors: NDArray[np.float32] = np.zeros((n, d), np.float32)
        """[N, D], unit vectors as stored (float16 widened); zero where free, and for contents without one"""
        self.keys: NDArray[np.uint64] = np.zeros(n, np.uint64)
        """[N], key64(content_id); 0 where free"""
        self.created_at: NDArray[np.int64] = np.zeros(n, np.int64)
        """[N], ms; 0 where free"""
        self.authors: NDArray[np.uint64] = np.zeros(n, np.uint64)
        """[N], key64(author); 0 = unknown or free"""
        self.versions: NDArray[np.uint8] = np.zeros(n, np.uint8)
        """[N], a tag of the vector's bytes, 1 to 255; 0 where free"""
        self.live: NDArray[np.bool_] = np.zeros(n, np.bool_)
        """[N], whether a content stands in the row"""
        self._capacity = n
        self._max_age_ms = int(settings.content.max_age_days * DAY_MS)
        self._row_of_key: dict[int, int] = {}
        self._free: list[int] = []
        # (created_at, row), oldest first; entries that no longer describe their row are skipped
        self._by_age: list[tuple[int, int]] = []
        self._changed: NDArray[np.bool_] = np.zeros(n, np.bool_)
        metrics.CONTENT_INDEXED.set(0)

    @property
    def size(self) -> int:
        """Rows in use."""
        return len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def high(self) -> int:
        """Rows ever used: only ``[:high]`` of each array matters."""
        return len(self.ids)

    def put(self, content_id: bytes, content: ContentVector) -> int | None:
        """Insert or update one content and return its row.

        When the index is full, the content created first gives way; None when that is the new one, or
        when the record is rejected (another model, wrong dimensions, not a unit vector), both counted.
        """
        if (reason := self._fault(content)) is not None:
            metrics.CONTENT_REJECTED.labels(reason).inc()
            return None
        row = self.rows.get(content_id)
        aged = row is None or self.created_at[row] != content.created_at
        if row is None:
            row = self._take_row(content.created_at)
            if row is None:
                return None
            key = key64(content_id)
            self.rows[content_id] = row
            self.ids[row] = content_id
            self.keys[row] = key
            self._row_of_key[key] = row
            self.live[row] = True
            metrics.CONTENT_INDEXED.set(len(self.rows))
        self.vectors[row] = content.vector if content.vector.size else 0
        self.versions[row] = 1 + key64(content.vector.tobytes()) % 255 if content.vector.size else 0
        self.created_at[row] = content.created_at
        if aged:
            self._note_age(row)
        self.authors[row] = key64(content.author) if content.author else 0
        self._changed[row] = True
        return row

    def delete(self, content_id: bytes) -> bool:
        """Forget one content; False when it was not known."""
        row = self.rows.get(content_id)
        if row is None:
            return False
        self._release(row)
        return True

    def evict(self, stream_time_ms: int) -> int:
        """Forget the contents created longer than ``max_age`` before stream time; returns how many."""
        evicted = 0
        while (oldest := self._oldest()) is not None and oldest[0] < stream_time_ms - self._max_age_ms:
            self._release(oldest[1])
            evicted += 1
        if evicted:
            metrics.CONTENT_EVICTED.labels("age").inc(evicted)
        return evicted

    def row_of_key(self, key: int) -> int | None:
        """Row of the content whose id has this 64-bit key; None when it is not known."""
        return self._row_of_key.get(key)

    def row_of_version(self, key: int, version: int) -> int | None:
        """Row that holds this vector of that content; version 0 is the one that it has now."""
        row = self._row_of_key.get(key)
        return row if row is None or version in (0, self.versions[row]) else None

    def drain_changes(self) -> NDArray[np.int64]:
        """Rows put, freed or reused since the last call, each once, ascending."""
        rows = np.flatnonzero(self._changed[: self.high]).astype(np.int64, copy=False)
        self._changed[rows] = False
        return rows

    def apply(self, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Apply (key, value) records of ``content-vectors`` in order; a null value deletes.

        Records that cannot be decoded are counted and skipped.
        """
        for key, value in records:
            if key is None:
                metrics.CONTENT_REJECTED.labels("missing_key").inc()
            elif value is None:
                self.delete(key)
            else:
                try:
                    content = vectors.decode(value)
                except RecordFormatError:
                    metrics.CONTENT_REJECTED.labels("record_format").inc()
                else:
                    self.put(key, content)

    def _fault(self, content: ContentVector) -> str | None:
        if content.model != self.model:
            return "other_model"
        if not content.vector.size:
            return None  # a content without text
        if content.vector.size != self.vectors.shape[1]:
            return "wrong_dimensions"
        wide = content.vector.astype(np.float32)
        # written so that NaN is a fault as well
        if not abs(float(wide @ wide) - 1.0) <= 2 * NORM_TOLERANCE:
            return "not_a_unit_vector"
        return None

    def _take_row(self, created_at: int) -> int | None:
        """A free row for a content of that age, evicting when full; None when it is older than all."""
        if self._free:
            return self._free.pop()
        if self.high < self._capacity:
            self.ids.append(None)
            return self.high - 1
        oldest = self._oldest()
        metrics.CONTENT_EVICTED.labels("capacity").inc()
        if oldest is None or created_at < oldest[0]:
            return None
        self._release(oldest[1])
        return self._free.pop()

    def _release(self, row: int) -> None:
        content_id = self.ids[row]
        if content_id is None:
            return
        del self.rows[content_id]
        key = int(self.keys[row])
        if self._row_of_key.get(key) == row:
            del self._row_of_key[key]
        self.ids[row] = None
        self.vectors[row] = self.versions[row] = 0
        self.keys[row] = self.created_at[row] = self.authors[row] = 0
        self.live[row] = False
        self._changed[row] = True
        self._free.append(row)
        metrics.CONTENT_INDEXED.set(len(self.rows))

    def _note_age(self, row: int) -> None:
        """Remember a row's age; outdated entries are swept out once they outnumber the live ones."""
        heapq.heappush(self._by_age, (int(self.created_at[row]), row))
        if len(self._by_age) > 2 * len(self.rows) + 64:
            used = np.flatnonzero(self.live[: self.high])
            self._by_age = list(zip(self.created_at[used].tolist(), used.tolist(), strict=True))
            heapq.heapify(self._by_age)

    def _oldest(self) -> tuple[int, int] | None:
        """(created_at, row) of the content created first."""
        while self._by_age:
            created_at, row = self._by_age[0]
            if self.live[row] and self.created_at[row] == created_at:
                return created_at, row
            heapq.heappop(self._by_age)
        return None
