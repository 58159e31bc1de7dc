"""Where tensors live, and the mirror of the content index there.

Legend of all tensor code in this folder: B users, N contents (rows of the index), K candidates of a
user, R recent interactions of a user, k places in a slate, D dimensions.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_app.content.index import ContentIndex
from stream_app.errors import ConfigurationError
from stream_app.interests.seen import keys_of
from stream_app.observability import metrics
from stream_app.ranking.texts import SameTexts

_GRID = 2.0**20


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, the CPU otherwise. Raises ConfigurationError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"ranking.device = {name!r}: expected `auto`, `cpu`, `cuda` or `cuda:N`")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigurationError(
            f"ranking.device = {name!r}: torch sees {count} CUDA devices; use `auto` or `cpu`"
        )
    return device


def limit_threads(threads: int) -> None:
    """Let torch use this many processor threads in the whole process; 0 = half of the processors.

    All of them, torch's default, is the worst choice beside a broker and other roles: every tensor
    operation waits for its slowest thread. On a busy 2-core machine one thread ranked 3 to 4 times
    as many users a second as two.
    """
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    torch.set_num_threads(threads or max(1, ours // 2))


def show_memory(device: torch.device) -> None:
    """Set the gauge of the device's memory; asks the allocator, not the device, and so never waits."""
    if device.type == "cuda":
        metrics.DEVICE_MEMORY.labels("reserved").set(torch.cuda.memory_reserved(device))
        metrics.DEVICE_MEMORY.labels("total").set(torch.cuda.get_device_properties(device).total_memory)


def failure_cause(error: RuntimeError) -> str | None:
    """``out_of_memory`` or ``device`` when the device failed; None when the fault is in the code.

    torch raises bare RuntimeError for most device faults, so the text has to tell them apart.
    """
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "not enough memory" in text or "can't allocate" in text:
        return "out_of_memory"
    if any(mark in text for mark in ("CUDA", "cuda", "CUBLAS", "cuBLAS", "NCCL", "HIP", "device-side")):
        return "device"
    return None


def products(one: Tensor, many: Tensor) -> Tensor:
    """Inner products [B, K] of each user's one vector [B, D] with the user's many [B, K, D].

    Row times matrix: the CPU's batched product is several times slower as matrix times column.
    """
    return torch.bmm(one.unsqueeze(1), many.transpose(1, 2)).squeeze(1)


def on_grid(values: Tensor) -> Tensor:
    """Rounded to 2^-20: the last bits of a sum or product, which differ between batches, decide nothing."""
    return torch.round(values * _GRID) / _GRID


class SortedRows:
    """Rows of an index by a 64-bit key of theirs, looked up in bulk (NumPy)."""

    def __init__(self) -> None:
        self._keys: NDArray[np.uint64] = np.zeros(0, np.uint64)  # ascending
        self._rows: NDArray[np.int64] = np.zeros(0, np.int64)

    def replace(self, changed: NDArray[np.bool_], rows: NDArray[np.int64], keys: NDArray[np.uint64]) -> None:
        """Rows that have ``changed`` [high] leave, these ``rows`` [n] come, with their ``keys`` [n]; a stable
        sort merges the two runs in O(N)."""
        kept = ~changed[self._rows]
        order = np.argsort(keys, kind="stable")
        merged = np.concatenate([self._keys[kept], keys[order]])
        again = np.argsort(merged, kind="stable")
        self._keys, self._rows = merged[again], np.concatenate([self._rows[kept], rows[order]])[again]

    def of(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """A row of each key, -1 where there is none; same shape as ``keys``."""
        if not len(self._keys):
            return np.full(keys.shape, -1, np.int64)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[places] == keys, self._rows[places], -1)

    def all_of(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All rows of the ``keys`` [n]: pairs [X] of a place among the keys and a row."""
        return self._between(keys, keys)

    def like(self, fingerprints: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All rows whose keys have one of these ``fingerprints`` [n]: pairs likewise."""
        return self._between(*keys_of(fingerprints))

    def _between(
        self, first: NDArray[np.uint64], last: NDArray[np.uint64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        starts = np.searchsorted(self._keys, first)
        counts = np.searchsorted(self._keys, last, side="right") - starts
        places = np.repeat(np.arange(len(first)), counts)
        steps = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
        return places, self._rows[starts[places] + steps]


class DeviceIndex:
    """The index's rows as tensors, brought up to date by :meth:`refresh` and :meth:`copy`.

    ``vectors`` are half precision on CUDA: the stored vectors are float16 already, so nothing is lost,
    the memory traffic that bounds retrieval halves, and the tensor cores take them as they are. CPUs
    multiply halves slower than floats, so there they are float32.

    One thread refreshes, and never while another ranks with the tensors.
    """

    def __init__(self, index: ContentIndex, device: torch.device) -> None:
        self.device = device
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        n, d = len(index.keys), index.vectors.shape[1]
        self.vectors: Tensor = torch.zeros((n, d), dtype=self.dtype, device=device)
        """[N, D]"""
        self.keys: Tensor = torch.zeros(n, dtype=torch.int64, device=device)
        """[N], the 64-bit keys' bits as signed integers: good for equality and a stable order."""
        self.authors: Tensor = torch.zeros(n, dtype=torch.int64, device=device)
        """[N], likewise; 0 = unknown"""
        self.encoded: Tensor = torch.zeros(n, dtype=torch.bool, device=device)
        """[N], rows that have a vector: contents without text have none, and zeros stand for it"""
        self.texts = SameTexts(index)
        """Which rows hold the same text; on the host, as of the last refresh, like what follows"""
        self.written_by: NDArray[np.uint64] = np.zeros(n, np.uint64)
        """[N], the keys of authors; 0 = unknown"""
        self.by_key = SortedRows()
        """Rows by the key of their content"""
        self.by_author = SortedRows()
        """Rows by the key of their author, where one is known"""
        self.ids: list[bytes | None] = []
        """row → content_id as of the last refresh: what is being ranked must not change names."""
        self._index = index
        self._sum: Tensor = torch.zeros(d, dtype=torch.float64, device=device)  # of the contents' vectors
        self._summed = 0
        self._counted: NDArray[np.bool_] = np.zeros(n, np.bool_)  # [N], whether a row's is among them
        self._to_copy: NDArray[np.int64] = np.zeros(0, np.int64)

    @property
    def high(self) -> int:
        """Rows in use as of the last refresh."""
        return len(self.ids)

    @property
    def mean(self) -> Tensor:
        """[D] float32, of the vectors of all contents that have one, as of the last copy."""
        return (self._sum / max(self._summed, 1)).float()

    def refresh(self) -> NDArray[np.int64]:
        """Take note of the rows changed since the last call and return their numbers; host only."""
        rows = self._index.drain_changes()
        if len(rows):
            ids, known = self._index.ids, len(self.ids)
            self.ids.extend(ids[known:])
            for row in rows[rows < known].tolist():
                self.ids[row] = ids[row]
            self._resort(rows)
            self.texts.adopt(rows)
            self._to_copy = np.union1d(self._to_copy, rows)
        return rows

    def copy(self) -> None:
        """Copy the rows taken note of to the device; nothing is ranked with the tensors before.

        A RuntimeError of the device leaves the rows noted for the next call.
        """
        rows = self._to_copy
        if not len(rows):
            return
        index, where = self._index, torch.from_numpy(rows).to(self.device)
        own = index.vectors[rows]
        encoded = own.any(axis=1)
        counted = index.live[rows] & encoded
        vectors = torch.from_numpy(own).to(self.dtype)  # halved before it travels
        vectors = vectors.to(self.device)
        self._sum += self._total(vectors, np.flatnonzero(counted))
        self._sum -= self._total(self.vectors, rows[self._counted[rows]])
        self._summed += int(counted.sum()) - int(self._counted[rows].sum())
        self._counted[rows] = counted
        self.vectors[where] = vectors
        self.encoded[where] = torch.from_numpy(encoded).to(self.device)
        self.keys[where] = torch.from_numpy(index.keys[rows].view(np.int64)).to(self.device)
        self.authors[where] = torch.from_numpy(index.authors[rows].view(np.int64)).to(self.device)
        self._to_copy = rows[:0]

    def _total(self, vectors: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """[D] float64, the sum of these rows."""
        some = torch.from_numpy(rows).to(self.device)
        return vectors.index_select(0, some).sum(dim=0, dtype=torch.float64)

    def rows_of(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Row of each content key, -1 where the index does not know it; same shape as ``keys``."""
        return self.by_key.of(keys)

    def rows_like(self, remembered: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of these fingerprints are of which rows: pairs of a place among them and a row."""
        return self.by_key.like(remembered)

    def _resort(self, rows: NDArray[np.int64]) -> None:
        """Replace the changed rows in the sorted lookups."""
        index = self._index
        changed = np.zeros(index.high, np.bool_)
        changed[rows] = True
        live = rows[index.live[rows]]
        self.by_key.replace(changed, live, index.keys[live])
        self.written_by[rows] = index.authors[rows]
        written = live[index.authors[live] != 0]
        self.by_author.replace(changed, written, index.authors[written])
