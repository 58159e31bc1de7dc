"""Which contents are engaged with by the same users, kept event by event in bounded memory. Pure NumPy.

Each content has at most K *neighbours* with four counts (the axis ``CHANNELS``)::

    together   users who engaged with both, in either order
    near       Σ 0.85^d over these; d = how many other contents came between, at most 19
    after      Σ 0.6^d over the users who engaged with the content first and with the neighbour later;
               d = how many other contents came between, at most 4
    strongly   users whose engagements with both were strong

``together`` is item-based collaborative filtering (Sarwar et al., 2001), ``near`` the same within what was
engaged with at one go, ``after`` a first-order transition table. What is new here is only the bound: when a
content has K neighbours, a newcomer wears the least near down by how near it is itself, and takes its place
once nothing is left of it (the idea of Misra and Gries, 1982, for frequent elements), so that lasting
neighbours stay and chance ones pass; what was engaged with long before has no claim to a place. Where K is no
smaller than the number of contents nothing has to give way, and every pair has the place of its own that its
columns name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

CHANNELS = ("together", "near", "after", "strongly")
TOGETHER, NEAR, AFTER, STRONGLY = range(4)
NEAR_DECAY, AFTER_DECAY = 0.85, 0.6
NEAR_REACH, AFTER_REACH = 20, 5
"""Only that many contents before an engagement count as near it, and as what it came after."""


class Among:
    """Which n of N contents are asked about, in an order of their own: first those that all ask about."""

    def __init__(self, capacity: int, rows: NDArray[np.int64] | None = None, high: int = 0) -> None:
        """All ask about ``rows`` [n], each once; None = the ones below ``high``. ``capacity`` is N."""
        self.rows = np.arange(high) if rows is None else rows
        """[n]"""
        self.count = len(self.rows)
        """n"""
        self.places: NDArray[np.int32] = np.full(capacity + 1, -1, np.int32)
        """[N + 1], where each row stands, -1 where it is not asked about; the last is for free places"""
        self.places[self.rows] = np.arange(self.count)
        self._everything = rows is None

    def of(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """[..., n] out of what [..., N] says of all."""
        return values[..., : self.count] if self._everything else values[..., self.rows]

    @contextmanager
    def and_also(self, rows: NDArray[np.int64]) -> Iterator[Among]:
        """Somebody asks about ``rows`` [k] as well, none of which are here yet; they stand last."""
        if not len(rows):
            yield self
            return
        common, everything = self.rows, self._everything
        self.places[rows] = np.arange(self.count, self.count + len(rows))
        self.rows, self._everything = np.concatenate([common, rows]), False
        self.count = len(self.rows)
        try:
            yield self
        finally:
            self.rows, self.count, self._everything = common, len(common), everything
            self.places[rows] = -1


class CoEngagement:
    """Neighbours of N rows of a content index, at most K each: N · K · 20 bytes."""

    def __init__(self, capacity: int, neighbours: int) -> None:
        """``capacity`` N, ``neighbours`` K ≥ 1; more than N are as many as N."""
        neighbours = min(neighbours, max(capacity, 1))
        self._every_pair = neighbours == capacity
        self.neighbours: NDArray[np.int32] = np.full((capacity, neighbours), -1, np.int32)
        """[N, K], rows; -1 where free"""
        self.counts: NDArray[np.float32] = np.zeros((len(CHANNELS), capacity, neighbours), np.float32)
        """[4, N, K]"""
        self.users: NDArray[np.float32] = np.zeros(capacity, np.float32)
        """[N], users who engaged with the content"""
        self.strong_users: NDArray[np.float32] = np.zeros(capacity, np.float32)
        """[N], those who did so strongly"""
        self._turn = 0
        self._changes: NDArray[np.float32] = np.zeros(capacity, np.float32)

    def learn(self, row: int, strong: bool, rows: NDArray[np.int64], strongs: NDArray[np.bool_]) -> None:
        """A user's first engagement with ``row``, after ``rows`` [m], newest first, each once, none of
        them ``row``; ``strongs`` [m] says which of them the user engaged with strongly."""
        self.users[row] += 1
        self.strong_users[row] += strong
        self._changes[row] += 1
        if not len(rows):
            return
        gains = np.zeros((len(CHANNELS), len(rows)), np.float32)
        gains[TOGETHER] = 1.0
        gains[STRONGLY] = strongs & strong
        near = min(len(rows), NEAR_REACH)
        gains[NEAR, :near] = NEAR_DECAY ** np.arange(near, dtype=np.float32)
        # the later content is no "after" of its own: only the earlier ones' rows get that count
        self._add(np.full(len(rows), row), rows, gains)
        reach = min(len(rows), AFTER_REACH)
        gains[AFTER, :reach] = AFTER_DECAY ** np.arange(reach, dtype=np.float32)
        self._add(rows, np.full(len(rows), row), gains)

    def strengthen(self, row: int, rows: NDArray[np.int64], strongs: NDArray[np.bool_]) -> None:
        """An engagement with ``row`` that was weak before has become a strong one; ``rows`` and
        ``strongs`` as in :meth:`learn`."""
        self.strong_users[row] += 1
        self._changes[row] += 1
        others = rows[strongs]
        gains = np.zeros((len(CHANNELS), len(others)), np.float32)
        gains[STRONGLY] = 1.0
        self._add(np.full(len(others), row), others, gains)
        self._add(others, np.full(len(others), row), gains)

    def forget(self, rows: int | NDArray[np.int64]) -> None:
        """Drop contents: their rows may be given to others. Takes O(N · K), however many they are."""
        self.neighbours[rows] = -1
        self.counts[:, rows] = 0.0
        self.users[rows] = self.strong_users[rows] = self._changes[rows] = 0.0
        gone = np.zeros(len(self.users) + 1, np.bool_)  # the last entry stands for free places
        gone[rows] = True
        found = gone[self.neighbours]
        self.neighbours[found] = -1
        self.counts[:, found] = 0.0

    def row(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows of a content's neighbours [k] and their counts [4, k]."""
        places = np.flatnonzero(self.neighbours[row] >= 0)
        return self.neighbours[row, places].astype(np.int64), self.counts[:, row, places]

    def put(
        self,
        row: int,
        users: float,
        strong_users: float,
        neighbours: NDArray[np.int64],
        counts: NDArray[np.float32],
    ) -> None:
        """Replace what is known of a content: neighbours [k], each once, and their ``counts`` [4, k]; of
        more than K the nearest stay. It does not count as changed."""
        size = self.neighbours.shape[1]
        if len(neighbours) > size:
            best = np.argpartition(-counts[NEAR], size - 1)[:size]
            neighbours, counts = neighbours[best], counts[:, best]
        self.users[row], self.strong_users[row], self._changes[row] = users, strong_users, 0.0
        self.neighbours[row], self.counts[:, row] = -1, 0.0
        places = neighbours if self._every_pair else np.arange(len(neighbours))
        self.neighbours[row, places] = neighbours
        self.counts[:, row, places] = counts

    def take_changed(self, most: int) -> NDArray[np.int64]:
        """Rows [n ≤ ``most``] that have changed since they were last taken, those first that have changed
        most by the number of their users; the others stay for the next time."""
        rows = np.flatnonzero(self._changes)
        if len(rows) > most:
            change = self._changes[rows] / (self.users[rows] + 1)
            rows = rows[np.argpartition(-change, most - 1)[:most]]
        self._changes[rows] = 0.0
        return rows

    def gather(
        self,
        rows: NDArray[np.int64],
        coefficients: Mapping[int, NDArray[np.float32]],
        among: Among,
    ) -> NDArray[np.float32]:
        """``Σ_i coefficient[i] · count[i, j]`` over ``rows`` [m], for each of the n contents j ``among``.

        ``coefficients`` [S, m] float32 by channel, S sums of its counts at once; returns those of all
        channels, one after the other: [Σ S, n] float32.
        """
        if self._every_pair:
            return np.concatenate(
                [among.of(given @ self.counts[channel, rows]) for channel, given in coefficients.items()]
            )
        # few neighbours are among those that are asked for, and fewer were near: only these are looked at
        places = among.places[self.neighbours[rows]].ravel()
        found = np.flatnonzero(places >= 0)
        places, of = places[found], found // self.neighbours.shape[1]
        at = found + (rows * self.neighbours.shape[1])[of] - of * self.neighbours.shape[1]
        sums = []
        for channel, given in coefficients.items():
            counts = self.counts[channel].ravel()[at]
            some = np.flatnonzero(counts) if channel != TOGETHER else slice(None)
            counts, into, weights = counts[some], places[some], given[:, of[some]]
            sums += [np.bincount(into, counts * weight, among.count) for weight in weights]
        return np.array(sums, np.float32)

    def _add(self, rows: NDArray[np.int64], others: NDArray[np.int64], gains: NDArray[np.float32]) -> None:
        """Add ``gains`` [4, m] to the pairs (row, other) [m]. Pairs are distinct; either all rows are the
        same or all are distinct."""
        self._changes[rows] += 1
        if self._every_pair:
            self.neighbours[rows, others] = others
            self.counts[:, rows, others] += gains
            return
        same = len(rows) > 1 and rows[0] == rows[1]
        own = rows[:1] if same else rows  # [1 or m]
        near = self.neighbours[own]
        known, places = np.nonzero(near == others[:, None])
        self.counts[:, rows[known], places] += gains[:, known]
        new = np.ones(len(rows), np.bool_)
        new[known] = False
        rows, others, gains = rows[new], others[new], gains[:, new]
        if not len(rows):
            return
        if not same:
            own, near = rows, near[new]
        strength = self.counts[NEAR, own]
        strength[near < 0] = -1.0
        # among equally weak ones the search begins elsewhere each time: from a fixed place on, newcomers
        # would replace each other there before they can come back, and chance ones elsewhere would stay
        size = strength.shape[1]
        self._turn = (self._turn + 1) % size
        turned = np.concatenate([strength[:, self._turn :], strength[:, : self._turn]], axis=1)
        if same:  # one row takes several newcomers: each contends with another of its weakest
            rows, others, gains = rows[:size], others[:size], gains[:, :size]
            places = np.argsort(turned[0], kind="stable")[: len(rows)]
        else:
            places = turned.argmin(axis=1)
        places = (places + self._turn) % size
        held = strength[0 if same else np.arange(len(rows)), places]
        gain = gains[NEAR]
        wins = held <= gain
        self.neighbours[rows[wins], places[wins]] = others[wins]
        self.counts[:, rows[wins], places[wins]] = gains[:, wins]
        left = 1.0 - gain[~wins] / held[~wins]
        self.counts[:, rows[~wins], places[~wins]] *= left
