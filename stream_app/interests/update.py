"""One batch of events of one partition onto the users' rows. Pure NumPy, no I/O.

The common case (new events, plain repeats) is arithmetic over columns. Users who take something back
in this batch, or send an id again with another time, go event by event through :mod:`.in_turn`; both
ways give the same state, and so does any other order or batching of the same events.

**An event id is a register.** Of all that was sent under one id of a user, with times A, and taken back,
with times U, counts

- the newest original, while U is empty;
- nothing, while U is not empty, unless two originals differ in time and the newest is later than every
  undo: that one is a new engagement.

A and U are sets, so no order matters; an undo whose clock is behind its original's still takes it back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.interests import counting
from stream_app.interests.counting import Counts
from stream_app.interests.decay import remaining, segment_sums
from stream_app.interests.in_turn import GONE as GONE
from stream_app.interests.in_turn import REPEATED as REPEATED
from stream_app.interests.in_turn import TAKEN as TAKEN
from stream_app.interests.in_turn import User
from stream_app.interests.ordering import by_row, mix, repeats, starts_of
from stream_app.interests.record import (
    AGAIN,
    APPLIED,
    AWAITING,
    BARE,
    INTERACTION,
    STATE,
    UNDONE,
)
from stream_app.interests.seen import fingerprints
from stream_app.interests.slab import Slab

HOUR_MS = 3_600_000.0
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
    versions: NDArray[np.uint8]
    """[N], which vector of its content a row holds; 0: the content has none"""
    row_of_version: Callable[[int, int], int | None]
    """key64, version → the row that holds that vector, of a content that may be gone; 0 is the current one"""


@dataclass(slots=True)
class Contributions:
    """What a batch added to (``sign`` 1) or took from (-1) contents' counts; C entries. An act that does
    not count as one more person has sign 0: it only says when the content was engaged with."""

    contents: NDArray[np.int64]
    """index rows; -1 where ``keys`` must tell"""
    times: NDArray[np.int64]
    actions: NDArray[np.uint16]
    signs: NDArray[np.int8]
    keys: NDArray[np.uint64] | None = None
    """key64 of the content ids; None where every row is known"""


@dataclass(slots=True)
class Update:
    """The result of one batch."""

    outcomes: NDArray[np.uint8]
    """[E]: TAKEN, REPEATED or GONE"""
    changed: NDArray[np.int64]
    """rows whose record changed, ascending"""
    contributions: Contributions
    residues: int
    """undos whose vector is nowhere any more: they took back mass and counts, their vectors stay"""


def apply(slab: Slab, columns: Columns, vectors: Vectors, half_life_ms: float) -> Update:
    """Apply the events to the rows and say what became of each.

    The content row of an undo may be -1: it needs no content but the one in the record.
    """
    order = by_row(columns.rows)
    c = Columns(*(getattr(columns, name)[order] for name in Columns.__slots__))
    c.events = np.where(c.events == 0, np.uint64(1), c.events)  # 0 marks an empty slot
    starts = starts_of(c.rows)
    group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(order))))
    rows = c.rows[starts]

    # 1. which events were there before, in the record or earlier in this batch
    known, slots = _known(slab, rows, group, c.events)
    repeated, odd = _repeated(slab, c, known, slots)
    # 2. who has to be taken event by event
    slow = np.zeros(len(rows), np.bool_)
    slow[group[c.undo | odd]] = True
    fast = ~slow[group] & ~repeated
    outcomes = np.where(repeated, REPEATED, TAKEN).astype(np.uint8)
    # 3. their interactions
    unseen = _unseen(slab, c, rows, group, np.flatnonzero((slow[group] | ~repeated) & ~c.undo))
    added = np.flatnonzero(fast)
    counts = _record(slab, c, added, unseen, vectors)
    entries = Entries.of(c, group, added)
    shifted = np.zeros(len(order), np.bool_)
    renewed: list[int] = []
    residues = 0
    for g in np.flatnonzero(slow):
        end = starts[g + 1] if g + 1 < len(starts) else len(order)
        user = User(slab, c, int(g), outcomes, shifted, unseen, entries, counts, vectors)
        user.take(range(starts[g], end))
        residues += user.residues
        if user.took_back and slab.header["total"][rows[g]] <= slab.recent:
            renewed.append(int(g))
    # 4. the sums
    changes = (outcomes == TAKEN) | shifted
    touched = np.zeros(len(rows), np.bool_)
    touched[group[changes]] = True
    moved = entries.columns()
    _advance(slab, c, rows, starts, changes, touched, moved, vectors, half_life_ms)
    if renewed:
        renew(slab, rows[renewed], vectors, half_life_ms, partial=False)
    # 5. what was seen, and which event came last
    _see(slab, c, np.flatnonzero(unseen & (outcomes == TAKEN)))
    _mark_last(slab, c, rows, starts, changes, touched)

    back = np.empty(len(order), np.uint8)
    back[order] = outcomes
    return Update(back, np.sort(rows[touched]), Contributions(*counts.columns()), residues)


def renew(
    slab: Slab, rows: NDArray[np.int64], vectors: Vectors, half_life_ms: float, *, partial: bool
) -> NDArray[np.bool_]:
    """Sum these users anew, in float64, from the interactions in their records; which of them were.

    Exact where the record holds a user's whole history: after an undo, a small sum is not left with
    the rounding of the large one it was taken from. Each interaction counts with the vector that it was
    summed with; a user of whom one is nowhere any more keeps the sum as it is. ``partial``: with the vectors
    that contents have now, for these are another encoder's; those that are not indexed are left out.
    """
    done = np.ones(len(rows), np.bool_)
    for at, row in enumerate(rows.tolist()):
        ring, header = slab.interactions[row], slab.header[row]
        stands = np.flatnonzero(ring["state"] & STATE == APPLIED)
        if partial:
            found = [vectors.row_of_key(key) for key in ring["content"][stands].tolist()]
            contents = np.array([-1 if row is None else row for row in found], np.int64)
            versions = np.where(contents >= 0, vectors.versions[contents], 0)
            ring["version"][stands] = versions
            marks = ring["state"][stands] & ~np.uint8(BARE)
            ring["state"][stands] = np.where(versions == 0, marks | BARE, marks)
        else:
            contents, lost = _summed(ring[stands], vectors)
            if lost.any():
                done[at] = False
                continue
        standing = ring[stands]
        left = standing["weight"].astype(np.float64) * remaining(
            header["t_ref"] - standing["time"], half_life_ms
        )
        has = contents >= 0
        slab.vector[row] = left[has] @ vectors.matrix[contents[has]].astype(np.float64)
        header["mass"], header["live"] = np.abs(left).sum(), len(standing)
        header["half_life_h"] = half_life_ms / HOUR_MS
    return done


def rebase(slab: Slab, rows: NDArray[np.int64], vectors: Vectors, half_life_ms: float) -> None:
    """Bring users whose sums were made under another half-life over to this one.

    What the record remembers counts as if this half-life had always been; what has left it counts as it
    stood at t_ref and fades with this half-life from there on. So a user whose whole history is in the
    record has exactly the decayed sum under the new half-life, and undos stay exact for everybody.
    """
    for row in rows.tolist():
        ring, header = slab.interactions[row], slab.header[row]
        if (
            header["total"] <= slab.recent
            and renew(slab, np.array([row]), vectors, half_life_ms, partial=False).all()
        ):
            continue
        standing = ring[ring["state"] & STATE == APPLIED]
        contents, lost = _summed(standing, vectors)
        age = header["t_ref"] - standing["time"]
        before = remaining(age, float(header["half_life_h"]) * HOUR_MS)
        change = standing["weight"].astype(np.float64) * (remaining(age, half_life_ms) - before)
        has = contents >= 0
        slab.vector[row] += (change[has] @ vectors.matrix[contents[has]].astype(np.float64)).astype(
            np.float32
        )
        header["mass"] += (np.sign(standing["weight"]) * change)[~lost].sum()
        header["half_life_h"] = half_life_ms / HOUR_MS


def _summed(interactions: NDArray[np.void], vectors: Vectors) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows of the vectors that these were summed with, -1 for none; of which there was one and is no more."""
    bare = (interactions["state"] & BARE) != 0
    names = zip(interactions["content"].tolist(), interactions["version"].tolist(), strict=True)
    found = [vectors.row_of_version(key, version) for key, version in names]
    contents = np.array([-1 if row is None else row for row in found], np.int64)
    contents[bare] = -1
    return contents, (contents < 0) & ~bare


# -- repeats


def _known(
    slab: Slab, rows: NDArray[np.int64], group: NDArray[np.int64], events: NDArray[np.uint64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether each event's id stands in its user's record, and in which slot."""
    known = np.zeros(len(events), np.bool_)
    slots = np.zeros(len(events), np.int64)
    kept = int(min(slab.extra["kept_total"][rows].max(initial=0), slab.kept))
    width = int(min(slab.header["total"][rows].max(initial=0), slab.recent))
    for begin, end in ((0, width), (slab.recent, slab.recent + kept)):
        step = max(1, _COMPARED // max(end - begin, 1))
        for lo in range(0, len(events) if end > begin else 0, step):
            g = group[lo : lo + step]
            ring = slab.interactions["event"][rows[g[0] : g[-1] + 1], begin:end]
            equal = ring[g - g[0]] == events[lo : lo + step, None]
            hits = np.flatnonzero(equal.any(axis=1))
            known[lo + hits] = True
            slots[lo + hits] = begin + equal[hits].argmax(axis=1)
    return known, slots


def _repeated(
    slab: Slab, c: Columns, known: NDArray[np.bool_], slots: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which events change nothing, because the same came before; which ids have to be looked at closely."""
    repeated = np.zeros(len(known), np.bool_)
    at = np.flatnonzero(known)
    if len(at):
        state, time, undone_at = _register(slab, c.rows[at], slots[at])
        same, older = c.times[at] == time, c.times[at] <= np.where(state & STATE == UNDONE, undone_at, time)
        stands, undone = state & STATE == APPLIED, (state & STATE == UNDONE) & (undone_at >= time)
        closed = (stands & (state & AGAIN != 0)) | undone
        repeated[at] = (state & STATE != AWAITING) & (same | (older & closed))
    again = repeats(c.rows, c.events)
    if again.any():
        again &= ~known
        repeated |= again & repeats(c.rows, mix(c.times, c.events))
    return repeated, (known | again) & ~repeated


def _register(
    slab: Slab, rows: NDArray[np.int64], slots: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """State with marks, time, and newest undo (or the time again, where none is told) of interactions."""
    time, undone_at = slab.interactions["time"][rows, slots], slab.undone_at[rows, slots]
    return slab.interactions["state"][rows, slots], time, np.where(undone_at == 0, time, undone_at)


# -- contributions


@dataclass(slots=True)
class Moved:
    """Contributions to the sums, group by group; C entries."""

    groups: NDArray[np.int64]
    contents: NDArray[np.int64]
    """rows of vectors; -1 for none"""
    times: NDArray[np.int64]
    weights: NDArray[np.float32]
    signs: NDArray[np.int8]


class Entries:
    """Contributions being collected: columns of the common case, then single ones."""

    def __init__(self, base: Moved) -> None:
        self._base = base
        self._more: list[tuple[int, int, int, float, int]] = []

    @classmethod
    def of(cls, c: Columns, group: NDArray[np.int64], at: NDArray[np.int64]) -> Entries:
        return cls(Moved(group[at], c.contents[at], c.times[at], c.weights[at], np.ones(len(at), np.int8)))

    def add(self, group: int, content: int, time: int, weight: float, sign: int) -> None:
        self._more.append((group, content, time, weight, sign))

    def columns(self) -> Moved:
        base = self._base
        if not self._more:
            return base
        single = zip(*self._more, strict=True)
        fields = [
            np.concatenate([column, np.array(values, column.dtype)])
            for column, values in zip((getattr(base, f) for f in Moved.__slots__), single, strict=True)
        ]
        order = np.argsort(fields[0], kind="stable")
        return Moved(*(field[order] for field in fields))


# -- the record's interactions


def _record(
    slab: Slab, c: Columns, at: NDArray[np.int64], unseen: NDArray[np.bool_], vectors: Vectors
) -> Counts:
    """Put the events ``at`` into their users' rings; what they count in contents' statistics."""
    rows = c.rows[at]
    first = starts_of(rows)
    each = np.diff(np.append(first, len(at)))
    nth = np.arange(len(at)) - np.repeat(first, each)
    arrivals = slab.header["total"][rows] + nth
    counts, marks = counting.count(slab, c, at, arrivals, unseen)
    entries = np.zeros(len(at), INTERACTION)
    entries["content"], entries["event"] = c.keys[at], c.events[at]
    entries["time"], entries["weight"] = c.times[at], c.weights[at]
    entries["version"] = vectors.versions[c.contents[at]]
    entries["action"], entries["state"] = c.actions[at], APPLIED | marks
    entries["state"][entries["version"] == 0] |= BARE
    if slab.kept:
        _keep(slab, rows, arrivals, entries)
    stay = nth >= np.repeat(each, each) - slab.recent  # more than a ring at once: the newest
    slab.interactions[rows[stay], arrivals[stay] % slab.recent] = entries[stay]
    slab.header["total"][rows[first]] += each
    return counts


def _keep(
    slab: Slab, rows: NDArray[np.int64], arrivals: NDArray[np.int64], entries: NDArray[np.void]
) -> None:
    """Keep the strong interactions that leave the rings when ``entries`` [A] come as ``arrivals``."""
    leaving = np.flatnonzero(arrivals >= slab.recent)
    rows, slots = rows[leaving], arrivals[leaving] % slab.recent
    inside = leaving - slab.recent  # where the leaving one has come in these same entries
    recent = arrivals[leaving] - slab.recent >= slab.header["total"][rows]
    left = slab.interactions[rows, slots]
    times = slab.undone_at[rows, slots]
    left[recent], times[recent] = entries[inside[recent]], 0
    strong = np.abs(left["weight"]) >= slab.light_weight
    rows, left, times = rows[strong], left[strong], times[strong]
    first = starts_of(rows)
    each = np.diff(np.append(first, len(rows)))
    nth = np.arange(len(rows)) - np.repeat(first, each)
    stay = nth >= np.repeat(each, each) - slab.kept
    places = slab.recent + (slab.extra["kept_total"][rows] + nth)[stay] % slab.kept
    slab.interactions[rows[stay], places] = left[stay]
    slab.undone_at[rows[stay], places] = times[stay]
    slab.extra["kept_total"][rows[first]] += each.astype(np.uint32)


# -- the sums


def _advance(
    slab: Slab,
    c: Columns,
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    changes: NDArray[np.bool_],
    touched: NDArray[np.bool_],
    moved: Moved,
    vectors: Vectors,
    half_life_ms: float,
) -> None:
    """Move S and mass to the new t_ref and add the contributions, each decayed to it."""
    if not touched.any():
        return
    header = slab.header
    newest = np.maximum.reduceat(np.where(changes, c.times, np.iinfo(np.int64).min), starts)
    old = header["t_ref"][rows]
    fresh = header["live"][rows] == 0  # nothing in the sum: S is zero, whatever t_ref says
    known = header["t_ref"][rows] != 0
    t_ref = np.where(touched, np.where(known, np.maximum(old, newest), newest), old)
    scale = np.where(fresh, 0.0, remaining(t_ref - old, half_life_ms))
    header["t_ref"][rows] = t_ref
    header["half_life_h"][rows[touched]] = half_life_ms / HOUR_MS

    left = moved.weights * moved.signs * remaining(t_ref[moved.groups] - moved.times, half_life_ms)
    mass = header["mass"][rows] * scale
    mass += np.bincount(moved.groups, np.abs(left) * moved.signs, len(rows))
    live = header["live"][rows] + np.bincount(moved.groups, moved.signs, len(rows)).astype(np.int64)
    empty = live == 0
    mass[empty] = 0.0
    header["mass"][rows], header["live"][rows] = mass, live

    still = np.flatnonzero(touched & (scale != 1.0))
    slab.vector[rows[still]] *= scale[still, None].astype(np.float32)
    has = moved.contents >= 0
    groups, contents, left = moved.groups[has], moved.contents[has], left[has]
    if len(groups):
        first = starts_of(groups)
        sums = segment_sums(left.astype(np.float32), contents, first, vectors.matrix)
        slab.vector[rows[groups[first]]] += sums
    slab.vector[rows[touched & empty]] = 0.0


# -- what was seen, and which event came last


def _unseen(
    slab: Slab, c: Columns, rows: NDArray[np.int64], group: NDArray[np.int64], at: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which of the events ``at`` are on contents that their users do not remember from before the batch;
    False for all others."""
    width = int(min(slab.header["seen_total"][rows].max(initial=0), slab.seen_keys))
    step = max(1, _COMPARED // max(width, 1))
    new = np.ones(len(at), np.bool_)
    for lo in range(0, len(at) if width else 0, step):
        some = at[lo : lo + step]
        g = group[some]
        seen = slab.seen[rows[g[0] : g[-1] + 1], :width]
        new[lo : lo + step] = ~(seen[g - g[0]] == c.keys[some, None]).any(axis=1)
    width = int(min(slab.extra["long_total"][rows].max(initial=0), slab.long_keys))
    if width:
        at_long = np.flatnonzero(new & (slab.extra["long_total"][c.rows[at]] > 0))
        for lo in range(0, len(at_long), step := max(1, _COMPARED // width)):
            places = at_long[lo : lo + step]
            marks = fingerprints(c.keys[at[places]])
            new[places] = ~(slab.long[c.rows[at[places]], :width] == marks[:, None]).any(axis=1)
    unseen = np.zeros(len(group), np.bool_)
    unseen[at[new]] = True
    return unseen


def _see(slab: Slab, c: Columns, at: NDArray[np.int64]) -> None:
    """Add the contents of the events ``at``, unseen before the batch, to what their users have seen, each
    once; the keys that give way leave a fingerprint."""
    at = at[~repeats(c.rows[at], c.keys[at])]
    if not len(at):
        return
    owners = c.rows[at]
    first = starts_of(owners)
    counts = np.diff(np.append(first, len(at)))
    nth = np.arange(len(at)) - np.repeat(first, counts)
    arrivals = slab.header["seen_total"][owners] + nth
    if slab.long_keys:
        _see_long(slab, owners, arrivals, c.keys[at])
    keep = nth >= np.repeat(counts, counts) - slab.seen_keys
    slab.seen[owners[keep], arrivals[keep] % slab.seen_keys] = c.keys[at[keep]]
    slab.header["seen_total"][owners[first]] += counts


def _see_long(
    slab: Slab, owners: NDArray[np.int64], arrivals: NDArray[np.int64], keys: NDArray[np.uint64]
) -> None:
    """Fingerprints of the keys that leave when ``keys`` [A] come, as ``arrivals`` of their ``owners``."""
    leaving = np.flatnonzero(arrivals >= slab.seen_keys)
    if not len(leaving):
        return
    rows, slots = owners[leaving], arrivals[leaving] % slab.seen_keys
    left = slab.seen[rows, slots]
    inside = arrivals[leaving] - slab.seen_keys >= slab.header["seen_total"][rows]
    left[inside] = keys[leaving[inside] - slab.seen_keys]
    first = starts_of(rows)
    each = np.diff(np.append(first, len(rows)))
    nth = np.arange(len(rows)) - np.repeat(first, each)
    stay = nth >= np.repeat(each, each) - slab.long_keys
    places = (slab.extra["long_total"][rows] + nth)[stay] % slab.long_keys
    slab.long[rows[stay], places] = fingerprints(left[stay])
    slab.extra["long_total"][rows[first]] += each.astype(np.uint32)


def _mark_last(
    slab: Slab,
    c: Columns,
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    changes: NDArray[np.bool_],
    touched: NDArray[np.bool_],
) -> None:
    """Note the event applied last, which is what caused the next slate."""
    last = np.maximum.reduceat(np.where(changes, np.arange(len(changes)), -1), starts)[touched]
    at, header = rows[touched], slab.header
    header["action"][at], header["partition"][at] = c.actions[last], c.partitions[last]
    header["offset"][at], header["occurred_at"][at] = c.offsets[last], c.times[last]
    header["received_at"][at] = c.received[last]
