"""The working set of one partition: a bounded array of user rows in memory, with an index by user."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from stream_app.hashing import action_mask
from stream_app.interests.record import (
    EXTRA,
    HEADER,
    INTERACTION,
    KEYED_BY_ACTION,
    LOST,
    MORE,
    UNDONE_TIMES,
    VERSION,
    InterestRecord,
    by_arrival,
    current,
    decode,
    row_dtype,
    seen_by_arrival,
    turned,
)
from stream_app.interests.seen import fingerprints
from stream_app.settings import Settings


class Slab:
    """Rows of ``record.row_dtype``; a free row is all zero.

    Bookkeeping per row: ``dirty`` (differs from RocksDB) and ``touched`` (when it was last used, in
    batches), which eviction goes by.
    """

    def __init__(
        self,
        capacity: int,
        dimensions: int,
        recent: int,
        seen: int,
        model: int,
        *,
        kept: int = 0,
        long: int = 0,
        light_weight: float = 0.0,
    ) -> None:
        """``kept`` interactions at least ``light_weight`` strong outlive the ring; of what leaves the seen
        keys, ``long`` fingerprints stay."""
        self.capacity, self.dimensions, self.recent, self.seen_keys = capacity, dimensions, recent, seen
        self.kept, self.long_keys = kept, long
        self.model = model
        self.light_weight = light_weight
        self.rows: NDArray[np.void] = np.zeros(capacity, row_dtype(dimensions, recent, seen, kept))
        self.header: NDArray[np.void] = self.rows["header"]
        self.vector: NDArray[np.float32] = self.rows["vector"]
        self.interactions: NDArray[np.void] = self.rows["interactions"]
        """[rows, R + K]"""
        self.seen: NDArray[np.uint64] = self.rows["seen"]
        # beside the rows: all of them are looked at in every batch, and lie closer together so
        self.extra: NDArray[np.void] = np.zeros(capacity, EXTRA)
        # few users have any, and pages that nobody has touched cost no memory
        self.undone_at: NDArray[np.int64] = np.zeros((capacity, recent + kept), np.int64)
        """[rows, R + K], says something of undone interactions only"""
        self.long: NDArray[np.uint32] = np.zeros((capacity, long), np.uint32)
        self.users: list[bytes | None] = [None] * capacity
        self.index: dict[bytes, int] = {}
        self.dirty = np.zeros(capacity, np.bool_)
        self.touched = np.zeros(capacity, np.int64)
        self._free = list(range(capacity - 1, -1, -1))
        self._bytes = self.rows.view(np.uint8).reshape(-1).data
        self._size = self.rows.itemsize
        self._ring_at = HEADER.itemsize + 4 * dimensions
        self._kept_at = self._ring_at + INTERACTION.itemsize * recent
        self._seen_at = self._kept_at + INTERACTION.itemsize * kept

    @classmethod
    def configured(cls, settings: Settings, model: int) -> Slab:
        """As the settings have it, for vectors of the encoder with code ``model``."""
        interests = settings.interests
        return cls(
            interests.slab_rows,
            settings.content.dimensions,
            interests.recent,
            interests.seen,
            model,
            kept=interests.kept if any(map(interests.is_light, settings.events.actions)) else 0,
            long=interests.seen_long,
            light_weight=interests.light_weight,
        )

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
                if self.header["flags"][row] & UNDONE_TIMES:
                    self.undone_at[row] = 0
                if self.extra["long_total"][row]:
                    self.long[row] = 0
                self.extra[row] = 0
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
        header["flags"][rows] |= np.uint8(KEYED_BY_ACTION)
        header["dimensions"][rows] = self.dimensions
        header["recent"][rows] = self.recent
        header["model"][rows] = self.model
        header["seen"][rows] = self.seen_keys
        extra, flags = self.extra[rows], header["flags"][rows] & ~np.uint8(MORE)
        more = extra["kept_total"] | extra["long_total"] | (flags & np.uint8(UNDONE_TIMES | LOST))
        if self.kept:
            more |= header["total"][rows] > self.recent
        header["flags"][rows] = np.where(more != 0, flags | np.uint8(MORE), flags)
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
        values = [b"".join((view[a:b], view[c:d])) for a, b, c, d in bounds]
        for at in np.flatnonzero(more).tolist():
            values[at] += self._tail(int(rows[at]))
        return values

    def _tail(self, row: int) -> bytes:
        """What few records have: kept interactions, times of undos, fingerprints."""
        header, extra, start = self.header[row], self.extra[row], row * self._size
        extra["kept"], extra["long"] = self.kept, self.long_keys
        n, k = min(int(header["total"]), self.recent), min(int(extra["kept_total"]), self.kept)
        kept = start + self._kept_at
        l = min(int(extra["long_total"]), self.long_keys)  # noqa: E741 - as in the layout
        extra["undone"] = n + k if header["flags"] & UNDONE_TIMES else 0
        parts = [extra.tobytes(), self._bytes[kept : kept + INTERACTION.itemsize * k]]
        if extra["undone"]:
            times = self.undone_at[row]
            parts += [times[:n].tobytes(), times[self.recent : self.recent + k].tobytes()]
        return b"".join((*parts, self.long[row, :l].tobytes()))

    def _load(self, row: int, value: bytes) -> None:
        value = bytes(current(value))
        record = decode(value)
        header, extra, own = record.header, record.extra, self.header[row]
        if (
            header["dimensions"] == self.dimensions
            and header["recent"] == self.recent
            and header["seen"] == self.seen_keys
            and (extra["kept"] == self.kept or not extra["kept_total"])
            and (extra["long"] == self.long_keys or not extra["long_total"])
        ):
            start, ring_end = row * self._size, self._ring_at + record.interactions.nbytes
            self._bytes[start : start + ring_end] = value[:ring_end]
            self.seen[row, : len(record.seen)] = record.seen
            if len(value) > ring_end + record.seen.nbytes:
                n = len(record.interactions)
                self.extra[row] = extra
                self._place_kept(row, record.kept, record.undone_at[n:])
                self.undone_at[row, : len(record.undone_at[:n])] = record.undone_at[:n]
                self.long[row, : len(record.long)] = record.long
        else:
            self._refit(row, record)
        if not header["flags"] & KEYED_BY_ACTION:
            self._key_by_action(row)
        if extra["kept"] != self.kept and own["total"] > self.recent:
            own["flags"] |= LOST

    def _place_kept(self, row: int, kept: NDArray[np.void], times: NDArray[np.int64]) -> None:
        self.interactions[row, self.recent : self.recent + len(kept)] = kept
        self.undone_at[row, self.recent : self.recent + len(times)] = times

    def _key_by_action(self, row: int) -> None:
        """Name the events of a record of an earlier version as this one does: by action and id."""
        ring = self.interactions[row]
        for slot in np.flatnonzero(ring["state"]):
            ring["event"][slot] ^= np.uint64(action_mask(int(ring["action"][slot])))

    def _refit(self, row: int, record: InterestRecord) -> None:
        """Load a record written under other settings: the newest that fit, oldest first."""
        old, header, before, extra = record.header, self.header[row], record.extra, self.extra[row]
        for name in (
            *("action", "partition", "offset", "occurred_at", "received_at", "t_ref", "model"),
            *("half_life_h", "flags"),
        ):
            header[name] = old[name]
        if record.vector.size == self.dimensions:
            self.vector[row] = record.vector
            header["mass"], header["live"] = old["mass"], old["live"]
        n, total, size = len(record.interactions), int(old["total"]), int(old["recent"])
        kept = by_arrival(record)[-self.recent :]
        self.interactions[row, : len(kept)] = kept
        # slots 0… are filled; a total beyond R says that older ones have left the record
        header["total"] = len(kept) if total <= len(kept) else self.recent + len(kept)
        strong, k_total, k = record.kept, int(before["kept_total"]), int(before["kept"])
        stay = max(len(strong) - self.kept, 0)
        times = turned(record.undone_at[n:], k_total, k)[stay:]
        strong = turned(strong, k_total, k)[stay:]
        self._place_kept(row, strong, times)
        extra["kept_total"] = len(strong) if k_total <= len(strong) else self.kept + len(strong)
        if len(record.undone_at):
            self.undone_at[row, : len(kept)] = turned(record.undone_at[:n], total, size)[-self.recent :]
        seen = seen_by_arrival(record)
        left, seen = seen[: -self.seen_keys], seen[-self.seen_keys :]
        self.seen[row, : len(seen)] = seen
        header["seen_total"] = len(seen)
        long = np.concatenate(
            [turned(record.long, int(before["long_total"]), int(before["long"])), fingerprints(left)]
        )
        long = long[max(len(long) - self.long_keys, 0) :]
        self.long[row, : len(long)] = long
        extra["long_total"] = len(long)

    def models(self, rows: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Encoder codes the rows' vectors were summed under; 0 for new users."""
        codes: NDArray[np.uint32] = self.header["model"][rows]
        return codes

    def of(self, users: Sequence[bytes]) -> NDArray[np.int64]:
        """Rows of these users; -1 where a user has none."""
        return np.fromiter(map(self.index.get, users, repeat(-1)), np.int64, len(users))
