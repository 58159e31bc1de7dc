"""Whom contents' statistics count: people, not acts. Pure NumPy.

Each user counts once for a content and an action, with the newest act that stands. The record marks that
act (COUNTED), so an undo of it lets the next newest stand in. It is exact for as long as the record
remembers all of the user's acts on the content: the first one (FIRST) or everything. Of later acts on a
content whose first one has left the record it is not known whether their user counts already: they do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stream_app.interests.ordering import grouped, mix
from stream_app.interests.record import APPLIED, COUNTED, FIRST, LOST, STATE, UNDONE
from stream_app.interests.slab import Slab

if TYPE_CHECKING:
    from stream_app.interests.update import Columns

STAYS = 1 << 62
"""Arrival of what does not leave the record with the ring."""


class Counts:
    """Contributions to contents' statistics being collected."""

    def __init__(
        self,
        contents: NDArray[np.int64],
        times: NDArray[np.int64],
        actions: NDArray[np.uint16],
        signs: NDArray[np.int8],
        keys: NDArray[np.uint64],
    ) -> None:
        self._parts: list[tuple[NDArray[Any], ...]] = [(contents, times, actions, signs, keys)]
        self._single: list[tuple[int, int, int, int, int]] = []

    def add(self, content: int, time: int, action: int, sign: int, key: int) -> None:
        """One more; ``content`` -1 where only the key is known."""
        self._single.append((content, time, action, sign, key))

    def take_back(
        self,
        contents: NDArray[np.int64],
        times: NDArray[np.int64],
        actions: NDArray[np.uint16],
        keys: NDArray[np.uint64],
    ) -> None:
        """Several that count no longer."""
        self._parts.append((contents, times, actions, np.full(len(times), -1, np.int8), keys))

    def columns(self) -> tuple[NDArray[Any], ...]:
        """contents, times, actions, signs, keys."""
        parts = list(self._parts)
        if self._single:
            single = zip(zip(*self._single, strict=True), parts[0], strict=True)
            parts.append(tuple(np.array(values, like.dtype) for values, like in single))
        return parts[0] if len(parts) == 1 else tuple(map(np.concatenate, zip(*parts, strict=True)))


def complete(slab: Slab, row: int, weight: float, arrival: int) -> bool:
    """Whether the record still holds all acts of such a weight, ``arrival`` of any weight having come."""
    if arrival <= slab.recent:
        return True
    kept = bool(slab.kept) and abs(weight) >= slab.light_weight
    overflowed = slab.extra["kept_total"][row] > slab.kept or slab.header["flags"][row] & LOST
    return kept and not overflowed


def count(
    slab: Slab,
    c: Columns,
    at: NDArray[np.int64],
    arrivals: NDArray[np.int64],
    unseen: NDArray[np.bool_],
) -> tuple[Counts, NDArray[np.uint8]]:
    """Count the new events ``at`` [A] (user by user, in order of arrival, none an undo), before they are put
    into the rings. Returns the contributions and the marks [A] of their interactions."""
    signs, marks = np.zeros(len(at), np.int8), np.zeros(len(at), np.uint8)
    counts = Counts(c.contents[at], c.times[at], c.actions[at], signs, c.keys[at])
    if not len(at):
        return counts, marks
    acts = _Acts.of(slab, c, at, arrivals)
    new = unseen[at[acts.first]]
    alike = np.flatnonzero(acts.alike & new)
    signs[acts.newest[alike]], marks[acts.newest[alike]] = 1, COUNTED
    marks[acts.first[alike]] |= FIRST

    had = np.flatnonzero(acts.alike & ~new)
    if len(had):
        found = _remembered(slab, c.rows[at[acts.first[had]]], c.keys[at[acts.first[had]]])
        one_by_one = had[_again(slab, c, at, arrivals, acts, had, found, signs, marks, counts)]
    else:
        one_by_one = had
    one_by_one = np.concatenate([one_by_one, np.flatnonzero(~acts.alike)])
    if len(one_by_one):
        of = at[acts.first[one_by_one]]
        found = _remembered(slab, c.rows[of], c.keys[of])
        columns = (found.slots, found.states, found.times, found.actions, found.arrivals)
        told = list(zip(*(column.tolist() for column in columns), strict=True))
        ends = np.searchsorted(found.events, np.arange(len(of)), side="right").tolist()
        groups = zip(one_by_one.tolist(), [0, *ends[:-1]], ends, strict=True)
        for group, begin, end in groups:
            members = acts.order[acts.starts[group] : acts.starts[group + 1]].tolist()
            _in_turn(slab, c, at, arrivals, members, told[begin:end], unseen, signs, marks, counts)
    return counts, marks


@dataclass(slots=True)
class _Acts:
    """The events of a batch by user and content: G groups, each in order of arrival."""

    order: NDArray[np.int64]
    """[A], the events group by group"""
    starts: NDArray[np.int64]
    """[G + 1], where each group begins in ``order``, and the end"""
    first: NDArray[np.int64]
    """[G], each one's event that came first"""
    newest: NDArray[np.int64]
    """[G], its first event of the latest time"""
    last: NDArray[np.int64]
    """[G], its event that came last"""
    alike: NDArray[np.bool_]
    """[G], all are of one action and are in the record together"""

    @classmethod
    def of(cls, slab: Slab, c: Columns, at: NDArray[np.int64], arrivals: NDArray[np.int64]) -> _Acts:
        order, starts = grouped(mix(c.rows[at], c.keys[at]))
        starts = np.append(starts, len(at))
        first, last = order[starts[:-1]], order[starts[1:] - 1]
        newest, alike = first.copy(), np.ones(len(first), np.bool_)
        several = np.flatnonzero(first != last)
        if len(several):
            each = np.diff(starts)[several]
            begins = np.cumsum(each) - each
            members = order[np.repeat(starts[several] - begins, each) + np.arange(each.sum())]
            times, actions = c.times[at[members]], c.actions[at[members]]
            latest = np.flatnonzero(times == np.repeat(np.maximum.reduceat(times, begins), each))
            newest[several] = members[latest[np.searchsorted(latest, begins)]]
            alike[several] = np.logical_and.reduceat(actions == np.repeat(actions[begins], each), begins)
            alike[several] &= arrivals[last[several]] - arrivals[first[several]] <= slab.recent
        return cls(order, starts, first, newest, last, alike)


@dataclass(slots=True)
class _Remembered:
    """Interactions in records, with what is told of by each of A events; H in all, event by event."""

    events: NDArray[np.int64]
    slots: NDArray[np.int64]
    states: NDArray[np.uint8]
    times: NDArray[np.int64]
    actions: NDArray[np.uint16]
    arrivals: NDArray[np.int64]


def _remembered(slab: Slab, rows: NDArray[np.int64], keys: NDArray[np.uint64]) -> _Remembered:
    """Where the contents ``keys`` [A] stand in the records ``rows`` [A]."""
    total = slab.header["total"][rows]
    kept = int(min(slab.extra["kept_total"][rows].max(initial=0), slab.kept))
    width = int(min(total.max(initial=0), slab.recent))
    parts = []
    for begin, end in ((0, width), (slab.recent, slab.recent + kept)):
        ring = slab.interactions["content"][rows, begin:end]
        found = np.nonzero(ring == keys[:, None])
        parts.append((found[0], found[1] + begin))
    events = np.concatenate([part[0] for part in parts])
    slots = np.concatenate([part[1] for part in parts])
    if kept:
        order = np.argsort(events, kind="stable")
        events, slots = events[order], slots[order]
    owners = rows[events]
    arrivals = total[events] - 1 - (total[events] - 1 - slots) % slab.recent
    arrivals[slots >= slab.recent] = STAYS
    states = slab.interactions["state"][owners, slots]
    if not states.all():
        keep = states != 0
        events, slots, arrivals = events[keep], slots[keep], arrivals[keep]
        owners, states = owners[keep], states[keep]
    times, actions = (slab.interactions[name][owners, slots] for name in ("time", "action"))
    return _Remembered(events, slots, states, times, actions, arrivals)


def _again(
    slab: Slab,
    c: Columns,
    at: NDArray[np.int64],
    arrivals: NDArray[np.int64],
    acts: _Acts,
    had: NDArray[np.int64],
    found: _Remembered,
    signs: NDArray[np.int8],
    marks: NDArray[np.uint8],
    counts: Counts,
) -> NDArray[np.bool_]:
    """Groups ``had`` [A], alike, whose users have had the content before; ``found``: where. Which of them
    have to go one by one, because something that is told of them leaves the record between their acts."""
    first, newest = at[acts.first[had]], at[acts.newest[had]]
    rows, arrival, times = c.rows[first], arrivals[acts.first[had]], c.times[newest]
    there = arrival[found.events] - found.arrivals <= slab.recent
    leaves = there & (arrivals[acts.last[had]][found.events] - found.arrivals > slab.recent)
    same = there & (found.actions == c.actions[first][found.events])
    stands, counted = found.states & STATE == APPLIED, found.states & COUNTED != 0

    def any_of(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        told = np.zeros(len(had), np.bool_)
        told[found.events[mask]] = True
        return told

    holders = np.flatnonzero(same & stands & counted)
    holders = holders[np.lexsort((found.times[holders], found.events[holders]))]
    last = np.ones(len(holders), np.bool_)
    last[:-1] = found.events[holders][1:] != found.events[holders][:-1]
    holders = holders[last]  # the newest of each group's
    held = np.zeros(len(had), np.bool_)
    held[found.events[holders]] = True
    one_by_one = any_of(leaves) & ~held
    one_by_one[found.events[holders[leaves[holders]]]] = True
    holders = holders[~one_by_one[found.events[holders]]]
    everything = arrival <= slab.recent
    if slab.kept:
        strong = np.abs(c.weights[first]) >= slab.light_weight
        everything |= (
            strong & (slab.extra["kept_total"][rows] <= slab.kept) & (slab.header["flags"][rows] & LOST == 0)
        )
    told = any_of(there & (found.states & FIRST != 0))
    told |= any_of(same & (found.states & STATE == UNDONE) & counted) & ~any_of(same & stands)
    newer = times[found.events[holders]] > found.times[holders]
    counts_now = ~held & (everything | told)
    counts_now[found.events[holders][newer]] = True
    counts_now &= ~one_by_one
    signs[acts.newest[had[counts_now]]] = 1
    marks[acts.newest[had[counts_now]]] = COUNTED
    moved, now = holders[newer], newest[found.events[holders[newer]]]
    slab.interactions["state"][c.rows[now], found.slots[moved]] &= ~np.uint8(COUNTED)
    counts.take_back(c.contents[now], found.times[moved], c.actions[now], c.keys[now])
    return one_by_one


def _in_turn(
    slab: Slab,
    c: Columns,
    at: NDArray[np.int64],
    arrivals: NDArray[np.int64],
    acts: list[int],
    told: list[tuple[int, int, int, int, int]],
    unseen: NDArray[np.bool_],
    signs: NDArray[np.int8],
    marks: NDArray[np.uint8],
    counts: Counts,
) -> None:
    """Several acts of one user on one content in the batch, one by one. ``told``: slot, state, time, action
    and arrival of those in the record."""
    row, size = int(c.rows[at[acts[0]]]), slab.recent
    ring = slab.interactions[row]
    first = -STAYS
    holder: dict[int, tuple[int, int, int]] = {}  # action → time, arrival, event (slot below zero)
    standing: dict[int, int] = {}  # action → newest arrival
    freed: dict[int, int] = {}
    if unseen[at[acts[0]]]:
        fresh = acts[0]
    else:
        fresh = -1
        for slot, state, time, action, arrival in told:
            if state & FIRST:
                first = max(first, arrival)
            if state & STATE == APPLIED:
                standing[action] = max(arrival, standing.get(action, -STAYS))
                if state & COUNTED and (action not in holder or time > holder[action][0]):
                    holder[action] = time, arrival, -1 - slot
            elif state & STATE == UNDONE and state & COUNTED:
                freed[action] = max(arrival, freed.get(action, -STAYS))
    for act in acts:
        i, arrival = at[act], int(arrivals[act])
        action, time = int(c.actions[i]), int(c.times[i])
        oldest = arrival - size  # what came before it has left the record
        held = holder.get(action)
        if held is not None and held[1] >= oldest:
            counted = time > held[0]
            if counted and held[2] >= 0:
                signs[held[2]], marks[held[2]] = 0, marks[held[2]] & ~np.uint8(COUNTED)
            elif counted:
                ring["state"][-1 - held[2]] &= ~np.uint8(COUNTED)
                counts.add(int(c.contents[i]), held[0], action, -1, int(c.keys[i]))
        else:
            free = freed.get(action, -STAYS) >= oldest and standing.get(action, -STAYS) < oldest
            counted = (
                act == fresh or first >= oldest or free or complete(slab, row, float(c.weights[i]), arrival)
            )
        if counted:
            signs[act], marks[act] = 1, COUNTED
            holder[action] = time, arrival, act
        if act == fresh:
            marks[act] |= FIRST
            first = arrival
        standing[action] = arrival
