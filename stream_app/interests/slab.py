"""The working set of one partition: a bounded array of user rows in memory, with an index by user."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from stream_app.hashing import action_mask
from stream_app.interests.record import (
    HEADER,
    INTERACTION,
    KEYED_BY_ACTION,
    VERSION,
    InterestRecord,
    by_arrival,
    decode,
    row_dtype,
)


class Slab:
    """Rows of ``record.row_dtype``; a free row is all zero.

    Bookkeeping per row: ``dirty`` (differs from RocksDB) and ``touched`` (when it was last used, in
    batches), which eviction goes by.
    """

    def __init__(self, capacity: int, dimensions: int, recent: int, seen: int, model: int) -> None:
        self.capacity, self.dimensions, self.recent, self.seen_keys = capacity, dimensions, recent, seen
        self.model = model
        self.rows: NDArray[np.void] = np.zeros(capacity, row_dtype(dimensions, recent, seen))
        self.header: NDArray[np.void] = self.rows["header"]
        self.vector: NDArray[np.float32] = self.rows["vector"]
        self.interactions: NDArray[np.void] = self.rows["interactions"]
        self.seen: NDArray[np.uint64] = self.rows["seen"]
        self.users: list[bytes | None] = [None] * capacity
        self.index: dict[bytes, int] = {}
        self.dirty = np.zeros(capacity, np.bool_)
        self.touched = np.zeros(capacity, np.int64)
        self._free = list(range(capacity - 1, -1, -1))
        self._bytes = self.rows.view(np.uint8).reshape(-1).data
        self._size = self.rows.itemsize
        self._ring_at = HEADER.itemsize + 4 * dimensions
        self._seen_at = self._ring_at + INTERACTION.itemsize * recent

    def __len__(self) -> int:
        return len(self.index)

    @property
    def free(self) -> int:
        """Rows that can be added before something must be evicted."""
        return len(self._free)

    # -- rows

    def add(self, user: bytes, value: bytes | None) -> int:
        """Give ``user`` a row holding ``value`` (a record's bytes; None for a new user)."""
        row = self._free.pop()
        self.index[user] = row
        self.users[row] = user
        if value is not None:
            self._load(row, value)
        return row

    def release(self, rows: Iterable[int]) -> None:
        """Forget these users' rows."""
        for row in rows:
            user = self.users[row]
            if user is not None:
                del self.index[user]
                self.users[row] = None
                self._bytes[row * self._size : (row + 1) * self._size] = bytes(self._size)
                self.dirty[row] = False
                self.touched[row] = 0
                self._free.append(row)

    def evictable(self, count: int, before: int) -> NDArray[np.int64]:
        """Up to ``count`` clean rows not touched since ``before``, least recently used first."""
        used = np.fromiter(self.index.values(), np.int64, len(self.index))
        clean = used[~self.dirty[used] & (self.touched[used] < before)]
        return clean[np.argsort(self.touched[clean], kind="stable")][:count]

    # -- records

    def encode(self, rows: NDArray[np.int64]) -> list[bytes]:
        """The records of these rows, unused tails left out."""
        header = self.header
        header["version"][rows] = VERSION
        header["flags"][rows] = KEYED_BY_ACTION
        header["dimensions"][rows] = self.dimensions
        header["recent"][rows] = self.recent
        header["model"][rows] = self.model
        header["seen"][rows] = self.seen_keys
        interactions = np.minimum(header["total"][rows], self.recent)
        seen = np.minimum(header["seen_total"][rows], self.seen_keys)
        header["interactions"][rows] = interactions
        header["seen_stored"][rows] = seen
        start = rows * self._size
        ring_end = start + self._ring_at + INTERACTION.itemsize * interactions
        seen_start = start + self._seen_at
        seen_end = seen_start + 8 * seen
        view = self._bytes
        bounds = zip(start.tolist(), ring_end.tolist(), seen_start.tolist(), seen_end.tolist(), strict=True)
        return [b"".join((view[a:b], view[c:d])) for a, b, c, d in bounds]

    def _load(self, row: int, value: bytes) -> None:
        record = decode(value)
        header = record.header
        start = row * self._size
        if (
            header["dimensions"] == self.dimensions
            and header["recent"] == self.recent
            and header["seen"] == self.seen_keys
        ):
            ring_end = self._ring_at + record.interactions.nbytes
            self._bytes[start : start + ring_end] = value[:ring_end]
            seen = start + self._seen_at
            self._bytes[seen : seen + record.seen.nbytes] = value[ring_end:]
        else:
            self._refit(row, record)
        if not header["flags"] & KEYED_BY_ACTION:
            self._key_by_action(row)

    def _key_by_action(self, row: int) -> None:
        """Name the events of a record of an earlier version as this one does: by action and id."""
        ring = self.interactions[row]
        for slot in np.flatnonzero(ring["state"]):
            ring["event"][slot] ^= np.uint64(action_mask(int(ring["action"][slot])))

    def _refit(self, row: int, record: InterestRecord) -> None:
        """Load a record written under other settings: keep the newest that fit, oldest first."""
        header = self.header[row]
        for name in ("action", "partition", "offset", "occurred_at", "received_at", "t_ref", "model"):
            header[name] = record.header[name]
        if record.vector.size == self.dimensions:
            self.vector[row] = record.vector
            header["mass"], header["live"] = record.header["mass"], record.header["live"]
        kept = by_arrival(record)[-self.recent :]
        self.interactions[row, : len(kept)] = kept
        # slots 0… are filled; a total beyond R says that older ones have left the record
        complete = record.header["total"] <= len(kept)
        header["total"] = len(kept) if complete else self.recent + len(kept)
        seen = record.seen[-self.seen_keys :]
        self.seen[row, : len(seen)] = seen
        header["seen_total"] = len(seen)

    def models(self, rows: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Encoder codes the rows' vectors were summed under; 0 for new users."""
        codes: NDArray[np.uint32] = self.header["model"][rows]
        return codes

    def of(self, users: Sequence[bytes]) -> NDArray[np.int64]:
        """Rows of these users; -1 where a user has none."""
        get = self.index.get
        return np.fromiter((get(user, -1) for user in users), np.int64, len(users))
