"""What users were shown last, of as many users as there is room for: for fatigue, learning, click-through.

A ring of the newest showings of each user, one entry a content. What is derived from it:

*fatigue*: how often a content was shown without being engaged with, ``n = Σ 2^(-(now - t)/h)`` over its
entries. It costs ``strength · log(1 + n)`` of a score; of one that is a logarithm of odds it thereby
multiplies the odds by ``(1 + n)^-strength``.

*the list that an engagement answers*: the entries of the newest time, not after the engagement, at which
its content was shown.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.events.impressions import ShownList
from stream_app.settings import Settings

HOUR_MS = 3_600_000.0


@dataclass(frozen=True)
class Answered:
    """The list of n contents that an engagement answers."""

    keys: NDArray[np.uint64]
    """[n], key64 of each content, each once"""
    positions: NDArray[np.uint16]
    """[n], 0 is on top"""
    tired: NDArray[np.float32]
    """[n], how often each had been shown before without being engaged with, decayed to then"""
    of_slate: bool
    """Whether the list named a slate, and counts for click-through"""


class ShownContents:
    """The last E showings of at most U users; any thread may ask, and tell.

    Memory grows with the users, to 20 U E bytes.
    """

    def __init__(self, settings: Settings) -> None:
        users, entries = settings.impressions.remembered_users, settings.impressions.remembered_contents
        self._reach_ms = int(settings.impressions.reach_h * HOUR_MS)
        self._half_life_ms = settings.ranking.fatigue_half_life_h * HOUR_MS
        self._lock = threading.Lock()
        self._rows: OrderedDict[bytes, int] = OrderedDict()  # who was shown nothing for longest first
        self._free = list(range(users - 1, -1, -1))
        self._totals: NDArray[np.int64] = np.zeros(users, np.int64)  # [U], entries ever
        self._partitions: NDArray[np.int32] = np.zeros(users, np.int32)  # [U]
        self._keys: NDArray[np.uint64] = np.zeros((users, entries), np.uint64)
        self._times: NDArray[np.int64] = np.zeros((users, entries), np.int64)
        self._positions: NDArray[np.uint16] = np.zeros((users, entries), np.uint16)
        self._of_slate: NDArray[np.bool_] = np.zeros((users, entries), np.bool_)
        self._engaged: NDArray[np.bool_] = np.zeros((users, entries), np.bool_)

    def __len__(self) -> int:
        """Users remembered."""
        return len(self._rows)

    def take(self, shown: ShownList, partition: int = 0) -> int:
        """Take note of a list, whose record stood in that partition; returns how many of its contents had
        not been known to be shown at that time."""
        with self._lock:
            row = self._row_for(shown.user, partition)
            kept = slice(min(int(self._totals[row]), self._keys.shape[1]))
            same = self._keys[row, kept][self._times[row, kept] == shown.time]
            new = np.flatnonzero(~np.isin(shown.keys, same)) if len(same) else np.arange(len(shown.keys))
            slots = (self._totals[row] + np.arange(len(new))) % self._keys.shape[1]
            self._keys[row, slots] = shown.keys[new]
            self._times[row, slots] = shown.time
            self._positions[row, slots] = shown.positions[new]
            self._of_slate[row, slots] = shown.of_slate
            self._engaged[row, slots] = False
            self._totals[row] += len(new)
            return len(new)

    def tired(self, user: bytes, now: int) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
        """Keys [m] of contents that the user was shown and did not engage with, and how often, decayed to
        ``now`` (ms)."""
        with self._lock:
            row = self._rows.get(user)
            if row is None:
                return np.zeros(0, np.uint64), np.zeros(0, np.float32)
            keys, times, engaged = self._entries(row)
            return self._counts(keys[~engaged], times[~engaged], now)

    def answered(self, user: bytes, content: int, time: int) -> Answered | None:
        """The list that an engagement with ``content`` (its key) at ``time`` (ms) answers, if there is one;
        each showing is answered once, and is not counted for fatigue any more."""
        with self._lock:
            row = self._rows.get(user)
            if row is None:
                return None
            keys, times, engaged = self._entries(row)
            own = (keys == np.uint64(content)) & (times <= time) & ~engaged
            own &= times >= time - self._reach_ms
            if not own.any():
                return None
            at = times[own].max()
            chosen, earlier = times == at, (times < at) & ~engaged
            list_keys, first = np.unique(keys[chosen], return_index=True)
            places = np.flatnonzero(chosen)[first]
            tired_keys, counts = self._counts(keys[earlier], times[earlier], int(at))
            tired = np.zeros(len(list_keys), np.float32)
            _, into, of = np.intersect1d(list_keys, tired_keys, return_indices=True)
            tired[into] = counts[of]
            of_slate = bool(self._of_slate[row, : len(keys)][chosen & own].any())
            # only now: that it was engaged with must not show in how often it had been shown in vain
            engaged |= (keys == np.uint64(content)) & (times <= time)
            return Answered(list_keys, self._positions[row, places], tired, of_slate)

    def answers(self, user: bytes, contents: NDArray[np.uint64], times: NDArray[np.int64]) -> int:
        """How many of the user's engagements, with ``contents`` [n] at ``times`` [n] (ms), are new answers to
        lists that name a slate: those that had been answered before are not counted again."""
        with self._lock:
            row = self._rows.get(user)
            if row is None:
                return 0
            keys, _, engaged = self._entries(row)
            waiting = set(keys[~engaged].tolist())
        several = zip(contents.tolist(), times.tolist(), strict=True)
        found = [self.answered(user, key, time) for key, time in several if key in waiting]
        return sum(one is not None and one.of_slate for one in found)

    def forget(self, user: bytes) -> None:
        """The user has gone."""
        with self._lock:
            self._drop(user)

    def forget_partition(self, partition: int) -> None:
        """Others follow these users now."""
        with self._lock:
            for user in [u for u, row in self._rows.items() if self._partitions[row] == partition]:
                self._drop(user)

    def _drop(self, user: bytes) -> None:
        row = self._rows.pop(user, None)
        if row is not None:
            self._totals[row] = 0
            self._free.append(row)

    def _row_for(self, user: bytes, partition: int) -> int:
        row = self._rows.pop(user, None)
        if row is None:
            if not self._free:
                self._drop(next(iter(self._rows)))
            row = self._free.pop()
        self._rows[user] = row
        self._partitions[row] = partition
        return row

    def _entries(self, row: int) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.bool_]]:
        """[n] of each: views."""
        kept = min(int(self._totals[row]), self._keys.shape[1])
        return self._keys[row, :kept], self._times[row, :kept], self._engaged[row, :kept]

    def _counts(
        self, keys: NDArray[np.uint64], times: NDArray[np.int64], now: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
        unique, inverse = np.unique(keys, return_inverse=True)
        left = np.exp2(-np.maximum(now - times, 0) / self._half_life_ms)
        return unique, np.bincount(inverse, left, len(unique)).astype(np.float32)


def fatigue(counts: NDArray[np.float32], strength: float) -> NDArray[np.float32]:
    """What is taken from the scores of contents that were shown ``counts`` [n] times without being engaged
    with: ``strength · log(1 + n)``."""
    penalty: NDArray[np.float32] = np.float32(strength) * np.log1p(counts)
    return penalty
