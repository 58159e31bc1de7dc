"""One batch of events of one partition onto the users' rows. Pure NumPy, no I/O.

The common case (new events, plain repeats) is arithmetic over columns. Users who take something back
in this batch, or for whom an undo is waiting, go event by event through :func:`_in_turn`; both ways
give the same state, and so does any other order or batching of the same events.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.interests.decay import remaining, segment_sums
from stream_app.interests.record import APPLIED, AWAITING, INTERACTION, UNDONE
from stream_app.interests.slab import Slab

TAKEN, REPEATED, GONE = 0, 1, 2
"""Outcomes of an event: taken into the state; seen before; an undo whose original is not known."""

_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads row numbers over 64 bits
_COMPARED = 1 << 21  # 64-bit comparisons done at a time: 16 MB


@dataclass(slots=True)
class Columns:
    """E events in arrival order."""

    rows: NDArray[np.int64]
    """slab row of the user"""
    contents: NDArray[np.int64]
    """row of the content's vector"""
    keys: NDArray[np.uint64]
    """key64 of the content id"""
    events: NDArray[np.uint64]
    """key64 of the event id"""
    times: NDArray[np.int64]
    """event time, ms"""
    received: NDArray[np.int64]
    """Kafka timestamp, ms"""
    partitions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    weights: NDArray[np.float32]
    actions: NDArray[np.uint16]
    """action codes"""
    undo: NDArray[np.bool_]
    named: NDArray[np.bool_]
    """the producer gave an event id"""


@dataclass(slots=True)
class Vectors:
    """Content vectors as the arithmetic needs them."""

    matrix: NDArray[np.float32]
    """[N, D]"""
    row_of_key: Callable[[int], int | None]
    """key64 → row; None when the content is not known"""


@dataclass(slots=True)
class Contributions:
    """What a batch added to (``sign`` 1) or took from (-1) the sums; C entries."""

    contents: NDArray[np.int64]
    times: NDArray[np.int64]
    actions: NDArray[np.uint16]
    signs: NDArray[np.int8]


@dataclass(slots=True)
class Update:
    """The result of one batch."""

    outcomes: NDArray[np.uint8]
    """[E]: TAKEN, REPEATED or GONE"""
    changed: NDArray[np.int64]
    """rows whose record changed, ascending"""
    contributions: Contributions


def apply(slab: Slab, columns: Columns, vectors: Vectors, half_life_ms: float) -> Update:
    """Apply the events to the rows and say what became of each."""
    order = np.argsort(columns.rows, kind="stable")
    c = Columns(*(getattr(columns, name)[order] for name in Columns.__slots__))
    c.events = np.where(c.events == 0, np.uint64(1), c.events)  # 0 marks an empty slot
    starts = _starts(c.rows)
    group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(order))))
    rows = c.rows[starts]

    # 1. which events were there before, in the record or earlier in this batch
    known, awaited = _known(slab, rows, group, c.events)
    repeated = known | _repeats(c.rows, c.events)
    # 2. who has to be taken event by event
    slow = np.zeros(len(rows), np.bool_)
    slow[group[c.undo | awaited]] = True
    fast = ~slow[group] & ~repeated
    outcomes = np.where(repeated, REPEATED, TAKEN).astype(np.uint8)
    # 3. their interactions
    _record(slab, c, starts, group, fast)
    added = np.flatnonzero(fast)
    entries = _Entries.of(c, group, added)
    renewed: list[int] = []
    for g in np.flatnonzero(slow):
        end = starts[g + 1] if g + 1 < len(starts) else len(order)
        if _in_turn(slab, c, range(starts[g], end), int(g), outcomes, entries, vectors):
            renewed.append(int(g))
    # 4. the sums
    taken = outcomes == TAKEN
    touched = np.zeros(len(rows), np.bool_)
    touched[group[taken]] = True
    moved = entries.columns()
    _advance(slab, c, rows, starts, taken, touched, moved, vectors, half_life_ms)
    if renewed:
        renew(slab, rows[renewed], vectors, half_life_ms, partial=False)
    # 5. what was seen, and which event came last
    _see(slab, c, rows, group, taken & ~c.undo)
    _mark_last(slab, c, rows, starts, taken, touched)

    back = np.empty(len(order), np.uint8)
    back[order] = outcomes
    return Update(
        back, np.sort(rows[touched]), Contributions(moved.contents, moved.times, moved.actions, moved.signs)
    )


def renew(
    slab: Slab, rows: NDArray[np.int64], vectors: Vectors, half_life_ms: float, *, partial: bool
) -> None:
    """Sum these users anew, in float64, from the interactions in their records.

    Exact where the record holds a user's whole history: after an undo, a small sum is not left with
    the rounding of the large one it was taken from. Interactions whose content is no longer indexed
    are left out when ``partial``, and count as taken back; otherwise such a user keeps the sum as it is.
    """
    for row in rows.tolist():
        ring = slab.interactions[row]
        standing = ring[ring["state"] == APPLIED]
        found = [vectors.row_of_key(int(key)) for key in standing["content"]]
        contents = np.array([-1 if at is None else at for at in found], np.int64)
        if not partial and (contents < 0).any():
            continue
        gone = np.flatnonzero(ring["state"] == APPLIED)[contents < 0]
        ring["state"][gone] = UNDONE  # not in the sum any more: there is nothing to take back
        standing, contents = standing[contents >= 0], contents[contents >= 0]
        header = slab.header[row]
        age = header["t_ref"] - standing["time"]
        left = standing["weight"].astype(np.float64) * remaining(age, half_life_ms)
        slab.vector[row] = left @ vectors.matrix[contents].astype(np.float64)
        header["mass"], header["live"] = np.abs(left).sum(), len(standing)


# -- repeats


def _starts(sorted_rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.flatnonzero(np.diff(sorted_rows, prepend=-1))


def _known(
    slab: Slab, rows: NDArray[np.int64], group: NDArray[np.int64], events: NDArray[np.uint64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each event stands in its user's record; whether it stands there as an undo in wait."""
    known = np.zeros(len(events), np.bool_)
    awaited = np.zeros(len(events), np.bool_)
    width = int(min(slab.header["total"][rows].max(initial=0), slab.recent))
    step = max(1, _COMPARED // max(width, 1))
    for lo in range(0, len(events) if width else 0, step):
        g = group[lo : lo + step]
        ring = slab.interactions["event"][rows[g[0] : g[-1] + 1], :width]
        equal = ring[g - g[0]] == events[lo : lo + step, None]
        hits = np.flatnonzero(equal.any(axis=1))
        if len(hits):
            known[lo + hits] = True
            slots = equal[hits].argmax(axis=1)
            awaited[lo + hits] = slab.interactions["state"][rows[g[hits]], slots] == AWAITING
    return known, awaited


def _repeats(rows: NDArray[np.int64], keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether the same (row, key) came earlier in these columns."""
    mixed = keys ^ (rows.astype(np.uint64) * _MIX)
    order = np.argsort(mixed, kind="stable")
    same = (keys[order][1:] == keys[order][:-1]) & (rows[order][1:] == rows[order][:-1])
    repeated = np.zeros(len(rows), np.bool_)
    repeated[order[1:][same]] = True
    return repeated


# -- contributions


@dataclass(slots=True)
class _Moved:
    """Contributions group by group; C entries."""

    groups: NDArray[np.int64]
    contents: NDArray[np.int64]
    times: NDArray[np.int64]
    weights: NDArray[np.float32]
    actions: NDArray[np.uint16]
    signs: NDArray[np.int8]


class _Entries:
    """Contributions being collected: columns of the common case, then single ones."""

    def __init__(self, base: _Moved) -> None:
        self._base = base
        self._more: list[tuple[int, int, int, float, int, int]] = []

    @classmethod
    def of(cls, c: Columns, group: NDArray[np.int64], at: NDArray[np.int64]) -> _Entries:
        signs = np.ones(len(at), np.int8)
        return cls(_Moved(group[at], c.contents[at], c.times[at], c.weights[at], c.actions[at], signs))

    def add(self, group: int, content: int, time: int, weight: float, action: int, sign: int) -> None:
        self._more.append((group, content, time, weight, action, sign))

    def columns(self) -> _Moved:
        base = self._base
        if not self._more:
            return base
        single = zip(*self._more, strict=True)
        fields = [
            np.concatenate([column, np.array(values, column.dtype)])
            for column, values in zip((getattr(base, f) for f in _Moved.__slots__), single, strict=True)
        ]
        order = np.argsort(fields[0], kind="stable")
        return _Moved(*(field[order] for field in fields))


# -- the record's interactions


def _record(
    slab: Slab, c: Columns, starts: NDArray[np.int64], group: NDArray[np.int64], fast: NDArray[np.bool_]
) -> None:
    """Put the events marked ``fast`` into their users' rings."""
    at = np.flatnonzero(fast)
    if not len(at):
        return
    rows = c.rows[at]
    first = np.flatnonzero(np.diff(rows, prepend=-1))
    counts = np.diff(np.append(first, len(at)))
    nth = np.arange(len(at)) - np.repeat(first, counts)
    total = slab.header["total"][rows]
    keep = nth >= np.repeat(counts, counts) - slab.recent  # more than a ring at once: the newest
    kept = at[keep]
    entries = np.zeros(len(kept), INTERACTION)
    entries["content"], entries["event"] = c.keys[kept], c.events[kept]
    entries["time"], entries["weight"] = c.times[kept], c.weights[kept]
    entries["action"], entries["state"] = c.actions[kept], APPLIED
    slab.interactions[rows[keep], (total + nth)[keep] % slab.recent] = entries
    slab.header["total"][rows[first]] += counts


def _in_turn(
    slab: Slab,
    c: Columns,
    events: range,
    group: int,
    outcomes: NDArray[np.uint8],
    entries: _Entries,
    vectors: Vectors,
) -> bool:
    """One user's events one by one. Returns whether the sum must be renewed from the record."""
    row = int(c.rows[events.start])
    ring, header, size = slab.interactions[row], slab.header[row], slab.recent
    slots = {int(ring["event"][s]): s for s in range(min(int(header["total"]), size)) if ring["state"][s]}

    def put(i: int, state: int) -> None:
        slot = int(header["total"]) % size
        if ring["state"][slot]:
            slots.pop(int(ring["event"][slot]), None)
        ring[slot] = (c.keys[i], c.events[i], c.times[i], c.weights[i], c.actions[i], state, b"")
        slots[int(c.events[i])] = slot
        header["total"] += 1

    took_back = False
    for i in events:
        slot = (
            slots.get(int(c.events[i])) if c.named[i] or not c.undo[i] else _latest(ring, header, size, c, i)
        )
        state = int(ring["state"][slot]) if slot is not None else 0
        outcomes[i] = TAKEN
        if not c.undo[i]:
            if slot is None:
                put(i, APPLIED)
                entries.add(group, c.contents[i], c.times[i], c.weights[i], c.actions[i], 1)
            elif state == AWAITING:  # its undo came first: recorded, never summed
                ring[slot] = (c.keys[i], c.events[i], c.times[i], c.weights[i], c.actions[i], UNDONE, b"")
            else:
                outcomes[i] = REPEATED
        elif slot is None:
            if c.named[i] and header["total"] <= size:
                put(i, AWAITING)
            else:  # nothing to wait with, or the original may have left the record already
                outcomes[i] = GONE
        elif state == APPLIED:
            content = vectors.row_of_key(int(ring["content"][slot]))
            if content is None:
                outcomes[i] = GONE  # the vector that would have to be subtracted is gone
                continue
            original = ring[slot]
            entries.add(group, content, original["time"], original["weight"], original["action"], -1)
            ring["state"][slot] = UNDONE
            took_back = True
        else:
            outcomes[i] = REPEATED
    return took_back and int(header["total"]) <= size


def _latest(ring: NDArray[np.void], header: np.void, size: int, c: Columns, i: int) -> int | None:
    """Slot of the user's latest standing event of this action on this content."""
    match = (ring["content"] == c.keys[i]) & (ring["action"] == c.actions[i]) & (ring["state"] == APPLIED)
    found = np.flatnonzero(match)
    if not len(found):
        return None
    arrival = (found - int(header["total"])) % size  # of two at the same time, the one that came last
    return int(found[np.lexsort((arrival, ring["time"][found]))[-1]])


# -- the sums


def _advance(
    slab: Slab,
    c: Columns,
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    taken: NDArray[np.bool_],
    touched: NDArray[np.bool_],
    moved: _Moved,
    vectors: Vectors,
    half_life_ms: float,
) -> None:
    """Move S and mass to the new t_ref and add the contributions, each decayed to it."""
    if not touched.any():
        return
    header = slab.header
    newest = np.maximum.reduceat(np.where(taken, c.times, np.iinfo(np.int64).min), starts)
    old = header["t_ref"][rows]
    fresh = header["live"][rows] == 0  # nothing in the sum: S is zero, whatever t_ref says
    known = header["t_ref"][rows] != 0
    t_ref = np.where(touched, np.where(known, np.maximum(old, newest), newest), old)
    scale = np.where(fresh, 0.0, remaining(t_ref - old, half_life_ms))
    header["t_ref"][rows] = t_ref

    left = moved.weights * moved.signs * remaining(t_ref[moved.groups] - moved.times, half_life_ms)
    mass = header["mass"][rows] * scale
    mass += np.bincount(moved.groups, np.abs(left) * moved.signs, len(rows))
    live = header["live"][rows] + np.bincount(moved.groups, moved.signs, len(rows)).astype(np.int64)
    empty = live == 0
    mass[empty] = 0.0
    header["mass"][rows], header["live"][rows] = mass, live

    still = np.flatnonzero(touched & (scale != 1.0))
    slab.vector[rows[still]] *= scale[still, None].astype(np.float32)
    if len(moved.groups):
        first = _starts(moved.groups)
        sums = segment_sums(left.astype(np.float32), moved.contents, first, vectors.matrix)
        slab.vector[rows[moved.groups[first]]] += sums
    slab.vector[rows[touched & empty]] = 0.0


# -- what was seen, and which event came last


def _see(
    slab: Slab, c: Columns, rows: NDArray[np.int64], group: NDArray[np.int64], shown: NDArray[np.bool_]
) -> None:
    """Add the contents of these events to their users' seen sets, each once."""
    at = np.flatnonzero(shown)
    at = at[~_repeats(c.rows[at], c.keys[at])]
    width = int(min(slab.header["seen_total"][rows].max(initial=0), slab.seen_keys))
    step = max(1, _COMPARED // max(width, 1))
    new = np.ones(len(at), np.bool_)
    for lo in range(0, len(at) if width else 0, step):
        some = at[lo : lo + step]
        g = group[some]
        seen = slab.seen[rows[g[0] : g[-1] + 1], :width]
        new[lo : lo + step] = ~(seen[g - g[0]] == c.keys[some, None]).any(axis=1)
    at = at[new]
    if not len(at):
        return
    owners = c.rows[at]
    first = _starts(owners)
    counts = np.diff(np.append(first, len(at)))
    nth = np.arange(len(at)) - np.repeat(first, counts)
    keep = nth >= np.repeat(counts, counts) - slab.seen_keys
    slots = (slab.header["seen_total"][owners] + nth)[keep] % slab.seen_keys
    slab.seen[owners[keep], slots] = c.keys[at[keep]]
    slab.header["seen_total"][owners[first]] += counts


def _mark_last(
    slab: Slab,
    c: Columns,
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    taken: NDArray[np.bool_],
    touched: NDArray[np.bool_],
) -> None:
    """Note the event applied last, which is what caused the next slate."""
    last = np.maximum.reduceat(np.where(taken, np.arange(len(taken)), -1), starts)[touched]
    at, header = rows[touched], slab.header
    header["action"][at], header["partition"][at] = c.actions[last], c.partitions[last]
    header["offset"][at], header["occurred_at"][at] = c.offsets[last], c.times[last]
    header["received_at"][at] = c.received[last]
