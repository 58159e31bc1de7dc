"""Which contents have the same readers, as the trainer publishes it: tensors beside the index's rows.

N contents, K neighbours of each at most. Records name contents by key; here they are rows, so that a
feature is a look-up, and whatever changes its row is followed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_app.content.early import Early
from stream_app.content.index import ContentIndex
from stream_app.errors import RecordFormatError
from stream_app.learning import neighbours_record
from stream_app.learning.coengagement import CHANNELS, NEAR
from stream_app.learning.neighbours_record import Neighbours as Record
from stream_app.observability import metrics
from stream_app.ranking.users import RowsOf


class NeighbourTable:
    """Co-engagement of the contents in an index.

    Records are taken in at any time; :meth:`adopt` writes them, and never while anything is ranked.
    Memory is bounded by the index's capacity: N · K · 20 bytes, and as many records again of contents
    that are not (yet) in the index, the ones longest unheard of given up first.
    """

    def __init__(self, index: ContentIndex, neighbours: int, device: torch.device) -> None:
        """``neighbours`` K ≥ 1."""
        n = len(index.keys)
        # NumPy's zeros, and 0 for nothing: on a CPU, pages that no content has touched cost no memory
        self.rows: Tensor = torch.from_numpy(np.zeros((n, neighbours), np.int32)).to(device)
        """[N, K], one more than the row of each neighbour, nearest first; 0 where there is none"""
        self.counts: Tensor = torch.from_numpy(np.zeros((n, len(CHANNELS), neighbours), np.float32)).to(
            device
        )
        """[N, 4, K]"""
        self.width = 0
        """Places that any record has filled so far, at most K: the others are free in every row."""
        self.readers: NDArray[np.float32] = np.zeros((2, n), np.float32)
        """[2, N], users who engaged with the content, and those who did so strongly"""
        self._index = index
        self._owners: NDArray[np.uint64] = np.zeros(n, np.uint64)  # [N], whose neighbours stand in the row
        self._writes: NDArray[np.int64] = np.zeros(n, np.int64)  # [N], how often the row was written
        self._named: NDArray[np.bool_] = np.zeros(n, np.bool_)  # [N], whether the row may be a neighbour
        self._changed: NDArray[np.int64] = np.zeros(0, np.int64)
        self._arrived: dict[bytes, Record | None] = {}
        self._early: Early[Record] = Early(index)
        # key of a content that is not in the index → row that names it → place there, and its write
        self._awaited: OrderedDict[int, dict[int, tuple[int, int]]] = OrderedDict()

    def apply(self, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Take in (content_id, value) records of ``co-engagement``; the newest of each content counts.

        Records that cannot be read are counted and skipped.
        """
        for content_id, value in records:
            if content_id is None:
                metrics.RANKER_REJECTED.labels("co-engagement").inc()
                continue
            try:
                record = None if value is None else neighbours_record.decode(value)
            except RecordFormatError:
                metrics.RANKER_REJECTED.labels("co-engagement").inc()
                continue
            self._arrived[content_id] = record

    def adopt(self, changed: NDArray[np.int64], rows_of: RowsOf) -> None:
        """Write what has arrived, and follow the index: ``changed`` are its rows that changed since the
        last call, ``rows_of`` looks up content keys in it as it is now.

        A RuntimeError of the device leaves what is to be done for the next call.
        """
        self._changed = changed = np.union1d(self._changed, changed)
        self._disown(changed)
        ids = self._index.ids
        due: dict[int, Record | None] = dict(self._early.arrived(changed))
        for content_id, record in self._arrived.items():
            known = self._index.rows.get(content_id)
            if known is not None:
                due[known] = record
            elif record is None:
                self._early.drop(content_id)
            else:
                self._early.hold(content_id, record)
        self._arrived = {id_: record for row, record in due.items() if (id_ := ids[row]) is not None}
        if self._awaited:
            self._resolve(changed)
        if due:
            self._write(due, rows_of)
        self._arrived, self._changed = {}, changed[:0]

    def _disown(self, changed: NDArray[np.int64]) -> None:
        """Rows that are another content's now have no neighbours, and are nobody's. Takes O(N · K) when
        such a content was anybody's."""
        others = changed[self._owners[changed] != self._index.keys[changed]]
        former = others[self._owners[others] != 0]
        device, high = self.rows.device, self._index.high
        if len(former):
            self.rows[torch.from_numpy(former).to(device)] = 0
            self.readers[:, former] = 0.0
        if self._named[former].any():
            gone = torch.zeros(high + 1, dtype=torch.bool, device=device)
            gone[torch.from_numpy(former + 1).to(device)] = True
            named = gone.index_select(0, self.rows[:high].flatten()).view(high, -1)
            self.rows[:high].masked_fill_(named, 0)
        self._named[former] = False
        self._writes[others] += 1
        self._owners[others] = self._index.keys[others]

    def _write(self, due: dict[int, Record | None], rows_of: RowsOf) -> None:
        keys = [record.keys for record in due.values() if record is not None]
        found = rows_of(np.concatenate(keys)) if keys else np.zeros(0, np.int64)
        width = self.rows.shape[1]
        near = np.zeros((len(due), width), np.int32)
        counts = np.zeros((len(due), len(CHANNELS), width), np.float32)
        start = 0
        for i, (row, record) in enumerate(due.items()):
            self._writes[row] += 1
            if record is None:
                self.readers[:, row] = 0.0
                continue
            self.readers[:, row] = record.users, record.strong_users
            best = np.argsort(-record.counts[NEAR], kind="stable")[:width]
            rows = found[start : start + len(record.keys)][best]
            start += len(record.keys)
            self.width = max(self.width, len(best))
            near[i, : len(best)] = rows + 1
            counts[i, :, : len(best)] = record.counts[:, best]
            for place in np.flatnonzero(rows < 0).tolist():
                self._await(int(record.keys[best[place]]), row, place)
        self._named[found[found >= 0]] = True
        where = torch.tensor(list(due), device=self.rows.device)
        self.rows[where] = torch.from_numpy(near).to(self.rows.device)
        self.counts[where] = torch.from_numpy(counts).to(self.rows.device)

    def _resolve(self, changed: NDArray[np.int64]) -> None:
        """Contents that were named before they came into the index."""
        places: list[tuple[int, int, int]] = []  # row, place, neighbour's row
        for neighbour in changed.tolist():
            for row, (place, write) in self._awaited.pop(int(self._index.keys[neighbour]), {}).items():
                if self._writes[row] == write:
                    places.append((row, place, neighbour + 1))
                    self._named[neighbour] = True
        if places:
            row_, place_, neighbour_ = torch.tensor(places, device=self.rows.device).T
            self.rows[row_, place_] = neighbour_.to(torch.int32)

    def _await(self, key: int, row: int, place: int) -> None:
        self._awaited.setdefault(key, {})[row] = (place, int(self._writes[row]))
        self._awaited.move_to_end(key)
        if len(self._awaited) > len(self._owners):
            self._awaited.popitem(last=False)
