"""The content index: every known content's unit vector in preallocated arrays, NumPy only.

Interests workers look vectors up by content id; rankers mirror ``vectors[:high]`` on the device and
follow :meth:`ContentIndex.drain_changes`. Rows are updated in place, and a freed row is zeroed and
used again, so that a row number stays valid for as long as its content does.

Behind these rows stand *former* vectors: of contents that were deleted, evicted, or encoded anew. Nobody
is recommended them; what was added to interests with one can be subtracted again.

One thread changes an index. The arrays never grow: pages that no content has touched cost no memory.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from stream_app.content import vectors
from stream_app.content.vectors import ContentVector, split_key, tag
from stream_app.errors import RecordFormatError
from stream_app.hashing import key64, model_code
from stream_app.observability import metrics
from stream_app.settings import Settings

DAY_MS = 86_400_000
NORM_TOLERANCE = 0.01  # float16 rounding of a unit vector stays below 0.001


class _Names(Sequence[bytes | None]):
    """Content ids of all rows: N of the index, then those of former vectors."""

    def __init__(self, n: int, ids: list[bytes | None], former: list[bytes | None]) -> None:
        self._n, self._ids = n, ids
        self.former = former

    def __len__(self) -> int:
        return self._n + len(self.former)

    @overload
    def __getitem__(self, row: int) -> bytes | None: ...

    @overload
    def __getitem__(self, row: slice) -> Sequence[bytes | None]: ...

    def __getitem__(self, row: int | slice) -> bytes | Sequence[bytes | None] | None:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        return self._ids[row] if row < self._n else self.former[row - self._n]


class ContentIndex:
    """The newest ``capacity`` contents of one encoder; N rows of D dimensions, F of former vectors."""

    def __init__(self, settings: Settings, model: str) -> None:
        """An empty index for the vectors of encoder ``model``; those of any other are left out."""
        n, d = settings.content.capacity, settings.content.dimensions
        f = settings.content.former_vectors
        self.model = model
        self.rows: dict[bytes, int] = {}
        """content_id (UTF-8) → row"""
        self.ids: list[bytes | None] = []
        """row → content_id, ``high`` entries; None where free"""
        self.names = _Names(n, self.ids, [None] * f)
        """row → content_id, former vectors' rows too"""
        self.vectors: NDArray[np.float32] = np.zeros((n + f, d), np.float32)
        """[N + F, D], unit vectors as stored (float16 widened); zero where free, and without text"""
        self.versions: NDArray[np.uint8] = np.zeros(n + f, np.uint8)
        """[N + F], tags of the vectors (``vectors.tag``); 0 where free, and without text"""
        self.keys: NDArray[np.uint64] = np.zeros(n, np.uint64)
        """[N], key64(content_id); 0 where free"""
        self.created_at: NDArray[np.int64] = np.zeros(n, np.int64)
        """[N], ms; 0 where free"""
        self.known: NDArray[np.bool_] = np.zeros(n, np.bool_)
        """[N], whether ``created_at`` was given; else the content may be older"""
        self.authors: NDArray[np.uint64] = np.zeros(n, np.uint64)
        """[N], key64(author); 0 = unknown or free"""
        self.live: NDArray[np.bool_] = np.zeros(n + f, np.bool_)
        """[N + F], whether a content stands in the row"""
        self.departures = 0
        """How many contents have left so far."""
        self._code = model_code(model)
        self._capacity = n
        self._max_age_ms = int(settings.content.max_age_days * DAY_MS)
        self._row_of_key: dict[int, int] = {}
        self._twins: dict[int, list[int]] = {}  # key64 → rows, where several contents have the same
        self._plain: set[bytes] = set()  # contents known by the keys of earlier versions alone
        self._free: list[int] = []
        self._former: OrderedDict[tuple[int, int], int] = OrderedDict()  # (key64, tag) → row, oldest first
        self._tags: dict[int, list[int]] = {}  # key64 → tags of its former vectors, oldest first
        self._free_former = list(range(n + f - 1, n - 1, -1))
        # (created_at, row), oldest first; entries that no longer describe their row are skipped
        self._by_age: list[tuple[int, int]] = []
        self._changed: NDArray[np.bool_] = np.zeros(n, np.bool_)
        metrics.CONTENT_INDEXED.set(0)
        metrics.CONTENT_FORMER.set(0)

    @property
    def size(self) -> int:
        """Rows in use."""
        return len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def high(self) -> int:
        """Rows ever used: only ``[:high]`` of each array matters, former vectors aside."""
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
        version = tag(content.vector)
        if row is None:
            row = self._take_row(content.created_at)
            if row is None:
                self._keep_former(content_id, version, content.vector)
                return None
            self.rows[content_id] = row
            self.ids[row] = content_id
            self._claim_key(key64(content_id), row)
            self.live[row] = True
            metrics.CONTENT_INDEXED.set(len(self.rows))
        elif self.versions[row] != version:
            self._keep_former(content_id, int(self.versions[row]), self.vectors[row])
        self.vectors[row] = content.vector if version else 0
        self.versions[row] = version
        self.created_at[row], self.known[row] = content.created_at, content.known
        if aged:
            self._note_age(row)
        self.authors[row] = key64(content.author) if content.author else 0
        self._changed[row] = True
        return row

    def delete(self, content_id: bytes) -> bool:
        """Forget one content but for its vector; False when it was not known."""
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

    def created_by(self, now_ms: int) -> NDArray[np.int64]:
        """[high], ms: when each content was created as seen at ``now_ms``. Where that was not given it may
        have been before anything: such a content is new then, and never of the future."""
        created = self.created_at[: self.high]
        return np.where(self.known[: self.high], created, np.minimum(created, now_ms))

    def row_of_key(self, key: int) -> int | None:
        """Row of the content whose id has this 64-bit key; None when it is not known."""
        return self._row_of_key.get(key)

    def rows_of_keys(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """[n], row of each key, -1 where it is not known."""
        get = self._row_of_key.get
        return np.array([get(key, -1) for key in keys.tolist()], np.int64)

    def row_of_version(self, key: int, version: int) -> int | None:
        """Row of the vector with this tag of the content whose id has this 64-bit key: its own, or that of
        a former vector. With tag 0, which records of earlier versions have too: of the content without
        text, else of the content as it is, else of the newest former vector. None when it is not known."""
        for row in self._twins.get(key) or (self._row_of_key.get(key),):
            if row is not None and self.versions[row] == version:
                return row
        former = self._former.get((key, version))
        if former is not None or version:
            return former
        row = self._row_of_key.get(key)
        if row is None and (tags := self._tags.get(key)):
            row = self._former[key, tags[-1]]
        return row

    def drain_changes(self) -> NDArray[np.int64]:
        """Rows put, freed or reused since the last call, each once, ascending."""
        rows = np.flatnonzero(self._changed[: self.high]).astype(np.int64, copy=False)
        self._changed[rows] = False
        return rows

    def apply(self, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Apply (key, value) records of ``content-vectors`` in order; a null value deletes.

        Records of other encoders are none of ours; those that cannot be decoded are counted and skipped.
        """
        for key, value in records:
            if key is None:
                metrics.CONTENT_REJECTED.labels("missing_key").inc()
                continue
            place = split_key(key)
            if place is None or place.code not in (None, self._code):
                continue
            content_id, code, former = place
            if value is None:
                if former is not None:
                    self._drop_former(key64(content_id), former)
                # an earlier version's record gives way to ours: that is no deletion
                elif code is not None or content_id in self._plain:
                    self._plain.discard(content_id)
                    self.delete(content_id)
                continue
            try:
                content = vectors.decode(value)
            except RecordFormatError:
                metrics.CONTENT_REJECTED.labels("record_format").inc()
                continue
            if former is not None:
                if self._fault(content) is None:
                    self._keep_former(content_id, former, content.vector)
            elif code is not None or content_id not in self.rows or content_id in self._plain:
                row = self.put(content_id, content)
                if code is not None:
                    self._plain.discard(content_id)
                elif row is not None:
                    self._plain.add(content_id)

    def _fault(self, content: ContentVector) -> str | None:
        if content.model != self.model:
            return "other_model"
        if not content.vector.size:
            return None
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
        self.departures += 1
        self._keep_former(content_id, int(self.versions[row]), self.vectors[row])
        del self.rows[content_id]
        self._release_key(int(self.keys[row]), row)
        self.ids[row] = None
        self.vectors[row] = 0
        self.keys[row] = self.created_at[row] = self.authors[row] = self.versions[row] = 0
        self.live[row] = self.known[row] = False
        self._changed[row] = True
        self._free.append(row)
        metrics.CONTENT_INDEXED.set(len(self.rows))

    def _claim_key(self, key: int, row: int) -> None:
        self.keys[row] = key
        if (twin := self._row_of_key.get(key)) is not None:
            self._twins.setdefault(key, [twin]).append(row)
        self._row_of_key[key] = row

    def _release_key(self, key: int, row: int) -> None:
        """The row has another content from now on; the key may have a second one."""
        twins = self._twins.get(key, [row])
        twins.remove(row)
        if twins:
            self._row_of_key[key] = twins[-1]
        else:
            del self._row_of_key[key]
        if len(twins) < 2:
            self._twins.pop(key, None)

    def _keep_former(self, content_id: bytes, version: int, vector: NDArray[np.floating]) -> None:
        """Keep a vector that its content has no more; the oldest one gives way."""
        key = key64(content_id)
        if (row := self._former.get((key, version))) is None:
            if not self._free_former:
                metrics.CONTENT_FORMER_DROPPED.inc()
                if not self._former:  # content.former_vectors is 0
                    return
                self._drop_former(*next(iter(self._former)))
            row = self._free_former.pop()
            self._tags.setdefault(key, []).append(version)
            self._former[key, version] = row
            metrics.CONTENT_FORMER.set(len(self._former))
        self.names.former[row - self._capacity] = content_id
        self.vectors[row] = vector if version else 0
        self.versions[row] = version

    def _drop_former(self, key: int, version: int) -> None:
        row = self._former.pop((key, version), None)
        if row is None:
            return
        tags = self._tags[key]
        tags.remove(version)
        if not tags:
            del self._tags[key]
        self.names.former[row - self._capacity] = None
        self.vectors[row] = self.versions[row] = 0
        self._free_former.append(row)
        metrics.CONTENT_FORMER.set(len(self._former))

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
