"""Events by user and key, in order. Sorting is a good part of a batch's cost, so everything here goes
through NumPy's vectorised sorts, which are not stable: the place in the batch is sorted along."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads row numbers over 64 bits
_HALF, _LOW = np.int64(32), np.int64(0xFFFF_FFFF)


def mix(rows: NDArray[np.int64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """[E], the same for the same row and key; two others' are the same once in 2^64."""
    return keys ^ (rows.view(np.uint64) * _MIX)


def by_row(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The stable order of fewer than 2^31 row numbers, each below 2^31."""
    return _sorted_along(rows, np.arange(len(rows)))


def _sorted_along(values: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places in the order of their values, and among equals in their own."""
    packed = (values << _HALF) | places
    packed.sort()
    return packed & _LOW


def starts_of(ordered: NDArray[np.int64] | NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each run of equal values begins."""
    begins = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=begins[1:])
    return np.flatnonzero(begins)


def grouped(mixed: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An order that has equal values together, each run as it came; where the runs begin in it."""
    order = np.argsort(mixed)
    starts = starts_of(mixed[order])
    runs = np.zeros(len(mixed), np.int64)
    runs[starts[1:]] = 1
    return _sorted_along(np.cumsum(runs), order), starts


def repeats(rows: NDArray[np.int64], keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """[E], whether the same row and key came earlier."""
    repeated = np.zeros(len(keys), np.bool_)
    mixed = mix(rows, keys)
    ordered = np.sort(mixed)
    if (ordered[1:] == ordered[:-1]).any():
        order, starts = grouped(mixed)
        heads = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
        repeated[order] = (order != heads) & (rows[order] == rows[heads]) & (keys[order] == keys[heads])
    return repeated
