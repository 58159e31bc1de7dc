"""How often each content is engaged with, added up over the user partitions (NumPy).

Every interests partition p writes its own decayed counts ``c[p, a, h]`` of a content, standing at
``t[p]``. What a ranker wants is their sum at one time, weighted by the actions' configured weights::

    x(now) = Σ_p 2^(-(now - t[p]) / h) · Σ_a w[a] · c[p, a, h]

A record replaces the earlier one of the same (content, partition), so the sum does not depend on how
the partitions' records interleave. Beside it stands the plain count, ``w[a] = 1``, of the actions that are
no dislike (w[a] ≥ 0): what the learned ranker calls engaged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.content.early import Early
from stream_app.content.index import ContentIndex
from stream_app.errors import RecordFormatError
from stream_app.events.times import newest_believed
from stream_app.hashing import action_code
from stream_app.interests import statistics_record
from stream_app.learning.activity import HALF_LIVES_H, WEIGHTED
from stream_app.observability import metrics
from stream_app.settings import Settings

HOUR_MS = 3_600_000.0

_Counts = tuple[int, NDArray[np.float32]]
"""t_ref in ms, and the weighted and the plain counts [2, H] of one partition."""

_WEIGHTED_SUM, _PLAIN = 0, 1


@dataclass(frozen=True)
class Activity:
    """What the learned ranker reads of the statistics, for N rows."""

    engaged: NDArray[np.float32]
    """[H, N], engagements of no negative weight, ≥ 0"""
    weighted: NDArray[np.float32]
    """[len(WEIGHTED), N], ≥ 0"""
    engaged_at: NDArray[np.int64]
    """[N], ms, of the newest engagement; 0 where there was none"""


class ContentStatistics:
    """Decayed engagement of the contents in an index; one thread applies and reads.

    Memory is bounded by the index's capacity: arrays aligned to its rows, and as many contents again
    that are not (yet) in the index, the ones longest unheard of given up first.
    """

    def __init__(self, settings: Settings, index: ContentIndex) -> None:
        self.half_lives_h: NDArray[np.float32] = np.array(settings.interests.stats_half_lives_h, np.float32)
        """[H], hours"""
        self.stream_time = 0
        """Newest t_ref seen, ms; 0 before the first record."""
        self._settings, self._index = settings, index
        self.fit_learning = bool(
            len(self.half_lives_h) == len(HALF_LIVES_H)
            and np.allclose(self.half_lives_h, HALF_LIVES_H, rtol=1e-3)
        )
        """Whether the half-lives are those that the learned ranker reads."""
        self._weights = {action_code(a.name): a.weight for a in settings.events.actions}
        n, p, h = len(index.keys), settings.kafka.partitions, len(self.half_lives_h)
        self._owners: NDArray[np.uint64] = np.zeros(n, np.uint64)  # [N], whose counts stand in the row
        self._counts: NDArray[np.float32] = np.zeros((2, h, n, p), np.float32)
        self._t_ref: NDArray[np.int64] = np.zeros((n, p), np.int64)
        self._early: Early[dict[int, _Counts]] = Early(index)
        # layout of a record → weights [A], and where to find the configured half-lives; None = as they are
        self._layouts: dict[bytes, tuple[NDArray[np.float32], NDArray[np.intp] | None]] = {}

    def apply(self, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Apply (content_id, value) records of ``content-stats``, each partition's in its order.

        Records that cannot be read are counted and skipped. A tombstone does not say which partition
        it came from, and what it withdraws has faded: it changes nothing.
        """
        latest = newest_believed(self._settings)
        for content_id, value in records:
            if content_id is None or value is None or content_id.startswith(statistics_record.RESERVED):
                continue
            try:
                statistics = statistics_record.decode(value)
            except RecordFormatError:
                metrics.RANKER_REJECTED.labels("content-stats").inc()
                continue
            if statistics.partition >= self._t_ref.shape[1]:
                metrics.RANKER_REJECTED.labels("content-stats").inc()
                continue
            t_ref = min(statistics.t_ref, latest)
            self.stream_time = max(self.stream_time, t_ref)
            counts = (t_ref, self._sums(statistics))
            row = self._index.rows.get(content_id)
            if row is None:
                held = self._early.get(content_id) or {}
                self._early.hold(content_id, held | {statistics.partition: counts})
            else:
                self._set(row, statistics.partition, counts)

    def adopt(self, rows: NDArray[np.int64]) -> None:
        """Move what was held for contents that are in the index now; ``rows`` are its changed rows."""
        for row, held in self._early.arrived(rows):
            for partition, counts in held.items():
                self._set(row, partition, counts)

    def nearest_half_life(self, hours: float) -> int:
        """Index of the configured half-life nearest to ``hours`` on a logarithmic scale."""
        return int(np.argmin(np.abs(np.log(self.half_lives_h / hours))))

    def engagement(self, half_life_index: int, now_ms: int) -> NDArray[np.float32]:
        """Weighted engagement x(now) of each row, [high] float32; negative where dislike prevails.

        Counts newer than ``now_ms`` are taken as they stand.
        """
        high = self._index.high
        total: NDArray[np.float32] = np.einsum(
            "np,np->n",
            self._counts[_WEIGHTED_SUM, half_life_index, :high],
            self._left(half_life_index, now_ms, high),
        )
        total[self._former(high)] = 0.0
        return total

    def activity(self, now_ms: int) -> Activity:
        """What the learned ranker reads, of the rows [high], as of ``now_ms``."""
        high = self._index.high
        former = self._former(high)
        engaged = np.zeros((len(HALF_LIVES_H), high), np.float32)
        weighted = np.zeros((len(WEIGHTED), high), np.float32)
        for h in range(len(HALF_LIVES_H)):
            left = self._left(h, now_ms, high)
            engaged[h] = np.einsum("np,np->n", self._counts[_PLAIN, h, :high], left)
            if h in WEIGHTED:
                total = np.einsum("np,np->n", self._counts[_WEIGHTED_SUM, h, :high], left)
                weighted[WEIGHTED.index(h)] = total
        for counts in (engaged, weighted):
            np.maximum(counts, 0, out=counts)
            counts[:, former] = 0
        engaged_at = self._t_ref[:high].max(axis=1, initial=0)
        engaged_at[former] = 0
        return Activity(engaged, weighted, engaged_at)

    def _left(self, half_life_index: int, now_ms: int, high: int) -> NDArray[np.float32]:
        """[high, P], what is left at ``now_ms`` of each partition's counts."""
        half_life_ms = float(self.half_lives_h[half_life_index]) * HOUR_MS
        age = np.maximum(now_ms - self._t_ref[:high], 0).astype(np.float32)  # ms
        left: NDArray[np.float32] = np.exp2(age * np.float32(-1.0 / half_life_ms))
        return left

    def _former(self, high: int) -> NDArray[np.bool_]:
        """[high], rows whose counts are those of a former content."""
        former: NDArray[np.bool_] = self._owners[:high] != self._index.keys[:high]
        return former

    def popularity(self, half_life_index: int, now_ms: int) -> NDArray[np.float32]:
        """``log(1 + x) / log(1 + max x)`` of each row's engagement x ≥ 0, [high] float32 in 0..1.

        It depends on the catalogue, never on the users being ranked. The maximum counts as at least
        1, one engagement of weight one: where next to nothing happened, nothing is popular.
        """
        x = np.maximum(self.engagement(half_life_index, now_ms), 0.0)
        top = max(float(x.max(initial=0.0)), 1.0)
        scaled: NDArray[np.float32] = np.log1p(x) * np.float32(1.0 / np.log1p(top))
        return scaled

    def _sums(self, statistics: statistics_record.Statistics) -> NDArray[np.float32]:
        """[2, H], Σ_a w[a] · counts[a] at the configured half-lives, and the plain Σ_a; 0 at a half-life that
        the writer lacks."""
        layout = statistics.actions.tobytes() + b"/" + statistics.half_lives_h.tobytes()
        known = self._layouts.get(layout)
        if known is None:
            if len(self._layouts) >= 64:  # layouts change with the configuration only
                self._layouts.clear()
            actions = statistics.actions.tolist()
            weights = np.array(
                [
                    [self._weights.get(a, 0.0) for a in actions],
                    [float(self._weights.get(a, -1.0) >= 0) for a in actions],
                ],
                np.float32,
            )
            places = {h: i for i, h in enumerate(statistics.half_lives_h.tolist())}
            found = np.array([places.get(h, -1) for h in self.half_lives_h.tolist()], np.intp)
            same = len(places) == len(found) and np.array_equal(found, np.arange(len(found)))
            known = self._layouts[layout] = (weights, None if same else found)
        weights, columns = known
        sums: NDArray[np.float32] = weights @ statistics.counts
        if columns is None:
            return sums
        # -1, the last: the writer lacks that half-life
        return np.append(sums, np.zeros((2, 1), np.float32), axis=1)[:, columns]

    def _set(self, row: int, partition: int, counts: _Counts) -> None:
        key = self._index.keys[row]
        if self._owners[row] != key:
            self._owners[row] = key
            self._counts[:, :, row] = 0.0
            self._t_ref[row] = 0
        self._t_ref[row, partition], self._counts[:, :, row, partition] = counts
