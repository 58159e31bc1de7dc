"""Which rows of the index hold the same text under several ids.

A text that is encoded twice gives the same vector, up to rounding: batches of another length move it by some
1e-5, and so by a step of half precision here and there. So rows hold the same text whose vectors are no
further apart than that. They are found by cells of a few projections, and then compared. NumPy alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stream_app.content.index import ContentIndex

SAME = 1e-3
"""Vectors whose distance is below this are of the same text: rounding makes 2e-4, another word 1e-1."""
_PROJECTIONS = 6
_WIDTH = 2.0**-6  # of a cell along each of them
_AT_ONCE = 4_096  # rows whose vectors are copied at a time


class SameTexts:
    """Groups of rows with the same text; kept up to date by :meth:`adopt`.

    Contents without a vector have no text to be the same. Memory: some 250 bytes for each content.
    """

    def __init__(self, index: ContentIndex) -> None:
        self._index = index
        n, d = len(index.keys), index.vectors.shape[1]
        axes = np.random.default_rng(0).normal(size=(d, _PROJECTIONS))
        self._axes = (axes / np.maximum(np.linalg.norm(axes, axis=0), 1e-12)).astype(np.float32)  # [D, 6]
        self.numbers: NDArray[np.int64] = np.zeros(n, np.int64)
        """[N], each text has its own; 0 where there is no vector"""
        self._cells: NDArray[np.int64] = np.zeros(n, np.int64)  # [N], hash of the cell that a row lies in
        self._first: dict[int, list[int]] = {}  # cell → rows in it, one for each text
        self._several: dict[int, list[int]] = {}  # text → its rows, where it has several; found by the first
        self._last = 0
        self._groups: NDArray[np.int64] = np.full(n, -1)  # [N], place of its text below; -1: it is alone
        self._starts: NDArray[np.int64] = np.zeros(1, np.int64)  # [G + 1], where each group begins
        self._rows: NDArray[np.int64] = np.zeros(0, np.int64)  # the groups' rows, one group after the other

    def adopt(self, rows: NDArray[np.int64]) -> None:
        """Take note that these rows of the index have changed."""
        regrouped = False
        for row in rows[self.numbers[rows] > 0].tolist():
            regrouped |= self._forget(row)
        for start in range(0, len(rows), _AT_ONCE):
            some = rows[start : start + _AT_ONCE]
            vectors = self._index.vectors[some]
            known = vectors.any(axis=1)
            places = vectors[known] @ self._axes / np.float32(_WIDTH)  # [n, 6]
            for row, place in zip(some[known].tolist(), places, strict=True):
                regrouped |= self._take(row, place)
        if regrouped:
            self._regroup()

    def with_copies(
        self, users: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """These pairs of user and row, and each user with all other rows of the same texts."""
        groups = self._groups[rows]
        copied = np.flatnonzero(groups >= 0)
        if not len(copied):
            return users, rows
        several = len(self._starts)
        found = np.unique(users[copied] * several + groups[copied])
        who, groups = found // several, found % several
        counts = self._starts[groups + 1] - self._starts[groups]
        steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        others = self._rows[np.repeat(self._starts[groups], counts) + steps]
        return np.concatenate([users, np.repeat(who, counts)]), np.concatenate([rows, others])

    def spare(self, available: NDArray[np.bool_], engagement: NDArray[np.float32]) -> NDArray[np.int64]:
        """Rows that another one stands for: of the ``available`` rows of a text, the one engaged with most
        stands for all; of equals the one created first. Both arguments are [high]."""
        rows = self._rows[available[self._rows]]
        if not len(rows):
            return rows
        index, groups = self._index, self._groups[rows]
        order = np.lexsort((index.keys[rows], index.created_at[rows], -engagement[rows], groups))
        rows, groups = rows[order], groups[order]
        spare: NDArray[np.int64] = rows[1:][groups[1:] == groups[:-1]]
        return spare

    def _take(self, row: int, place: NDArray[np.float32]) -> bool:
        """Note the text of a row whose projections are ``place``; whether another row has it too."""
        probes = _cells(place)
        own = self._cells[row] = next(probes)
        vectors, vector = self._index.vectors, self._index.vectors[row]
        for cell in itertools.chain((own,), probes):
            for first in self._first.get(cell, ()):
                apart = vectors[first] - vector
                if float(apart @ apart) < SAME**2:
                    text = int(self.numbers[first])
                    self.numbers[row] = text
                    self._several.setdefault(text, [first]).append(row)
                    return True
        self._last += 1
        self.numbers[row] = self._last
        self._first.setdefault(own, []).append(row)
        return False

    def _forget(self, row: int) -> bool:
        """Whether other rows have the text that this one had."""
        text, self.numbers[row] = int(self.numbers[row]), 0
        members = self._several.get(text, [row])
        if members[0] == row:
            cell = int(self._cells[row])
            self._first[cell].remove(row)
            if not self._first[cell]:
                del self._first[cell]
            if len(members) > 1:
                self._first.setdefault(int(self._cells[members[1]]), []).append(members[1])
        if len(members) == 1:
            return False
        members.remove(row)
        if len(members) == 1:
            del self._several[text]
        return True

    def _regroup(self) -> None:
        self._groups[self._rows] = -1
        sizes = [len(rows) for rows in self._several.values()]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._rows = np.array(list(itertools.chain.from_iterable(self._several.values())), np.int64)
        self._groups[self._rows] = np.repeat(np.arange(len(sizes)), sizes)


def _cells(place: NDArray[np.float32]) -> Iterator[int]:
    """The cell of a place, and those beside it that a place as good as the same may lie in."""
    margin = SAME / _WIDTH
    whole = np.floor(place)
    part = place - whole
    steps = [(0, -1) if near < margin else (0, 1) if near > 1 - margin else (0,) for near in part.tolist()]
    base = whole.astype(int).tolist()
    for step in itertools.product(*steps):
        yield hash(tuple(one + more for one, more in zip(base, step, strict=True)))
