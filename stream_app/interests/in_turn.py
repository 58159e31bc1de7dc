"""One user of a batch whose events are taken one by one: who takes something back, or sends an id again.

It gives the same state as :mod:`.update` does for the others; what an event id means is said there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stream_app.interests import counting
from stream_app.interests.counting import Counts
from stream_app.interests.record import (
    AGAIN,
    APPLIED,
    AWAITING,
    BARE,
    COUNTED,
    FIRST,
    STATE,
    UNDONE,
    UNDONE_TIMES,
)
from stream_app.interests.slab import Slab

if TYPE_CHECKING:
    from stream_app.interests.update import Columns, Entries, Vectors

TAKEN, REPEATED, GONE = 0, 1, 2
"""Outcomes of an event: taken into the state; seen before; an undo whose original is not known."""


class User:
    """One user of a batch whose events are taken one by one."""

    def __init__(
        self,
        slab: Slab,
        c: Columns,
        group: int,
        outcomes: NDArray[np.uint8],
        shifted: NDArray[np.bool_],
        unseen: NDArray[np.bool_],
        entries: Entries,
        counts: Counts,
        vectors: Vectors,
    ) -> None:
        self._slab, self._c, self._group = slab, c, group
        self._outcomes, self._shifted, self._unseen = outcomes, shifted, unseen
        self._entries, self._counts, self._vectors = entries, counts, vectors
        self.took_back = False
        """Something was subtracted: the sum should be renewed where it can be."""
        self.residues = 0

    def take(self, events: range) -> None:
        """Take these events."""
        c, slab = self._c, self._slab
        self._row = row = int(c.rows[events.start])
        self._ring, self._undone_at, self._header = (
            slab.interactions[row],
            slab.undone_at[row],
            slab.header[row],
        )
        used = np.flatnonzero(self._ring["state"])
        self._slots = dict(zip(self._ring["event"][used].tolist(), used.tolist(), strict=True))
        self._met: set[int] = set()
        for i in events:
            slot = self._slots.get(int(c.events[i])) if c.named[i] or not c.undo[i] else self._latest(i)
            self._outcomes[i] = self._undo(i, slot) if c.undo[i] else self._original(i, slot)
            if not c.undo[i] and self._outcomes[i] == TAKEN:
                self._met.add(int(c.keys[i]))

    def _original(self, i: int, slot: int | None) -> int:
        c, ring = self._c, self._ring
        time, weight = int(c.times[i]), float(c.weights[i])
        content, key, action = int(c.contents[i]), int(c.keys[i]), int(c.actions[i])
        if slot is None:
            fresh = bool(self._unseen[i]) and key not in self._met
            whole = fresh or self._all_known(key, action, weight)
            slot = self._put(i, APPLIED)
            ring["state"][slot] |= FIRST if fresh else 0
            self._entries.add(self._group, content, time, weight, 1)
            self._stand(slot, content, whole)
            return TAKEN
        state, was, undone_at = self._register(slot)
        if state & STATE == AWAITING:  # its undo came first: recorded, never summed
            ring[slot] = self._interaction(i, UNDONE)
            self._set_undone(slot, was)
            return TAKEN
        if state & STATE == APPLIED:
            if time == was:
                return REPEATED
            ring["state"][slot] |= AGAIN
            self._shifted[i] = True
            if time > was:
                self._move(slot, i)
            return REPEATED
        # undone: a later one is a new engagement, and where the undo's clock is behind, another one is
        if time == was or (undone_at >= was and time <= undone_at):
            return REPEATED
        whole = bool(state & COUNTED) or self._all_known(key, action, weight)
        newest = max(time, was)
        ring[slot] = self._interaction(i, APPLIED | AGAIN | (state & FIRST))
        ring["time"][slot] = newest
        self._entries.add(self._group, content, newest, weight, 1)
        self._stand(slot, content, whole)
        return TAKEN

    def _undo(self, i: int, slot: int | None) -> int:
        c, ring, time = self._c, self._ring, int(self._c.times[i])
        if slot is None:
            # nothing to wait with, or the original may have left the record already
            if not c.named[i] or not self._complete(float(c.weights[i])):
                return GONE
            self._put(i, AWAITING)
            return TAKEN
        state, was, undone_at = self._register(slot)
        if state & STATE == AWAITING:
            if time > was:
                ring["time"][slot] = time
                self._shifted[i] = True
            return REPEATED
        if state & STATE == UNDONE:
            if time > undone_at:
                self._set_undone(slot, time)
                self._shifted[i] = True
            return REPEATED
        if state & AGAIN and time < was and c.named[i]:
            return REPEATED  # of an earlier one
        self.residues += self._vector_of(slot) is None
        self._take_back(slot)
        ring["state"][slot] = (state & ~STATE) | UNDONE
        self._set_undone(slot, time)
        self._fall(slot)
        return TAKEN

    # -- the record

    def _interaction(self, i: int, state: int) -> tuple[object, ...]:
        c = self._c
        version = int(self._vectors.versions[c.contents[i]]) if c.contents[i] >= 0 else 0
        bare = BARE if version == 0 and state & STATE != AWAITING else 0
        return (c.keys[i], c.events[i], c.times[i], c.weights[i], c.actions[i], state | bare, version)

    def _put(self, i: int, state: int) -> int:
        c, slab, header = self._c, self._slab, self._header
        slot = int(header["total"]) % slab.recent
        if self._ring["state"][slot]:
            self._slots.pop(int(self._ring["event"][slot]), None)
            self._keep(slot)
        self._ring[slot], self._undone_at[slot] = self._interaction(i, state), 0
        self._slots[int(c.events[i])] = slot
        header["total"] += 1
        return slot

    def _keep(self, slot: int) -> None:
        slab, extra, ring = self._slab, self._slab.extra[self._row], self._ring
        if slab.kept and abs(float(ring["weight"][slot])) >= slab.light_weight:
            place = slab.recent + int(extra["kept_total"]) % slab.kept
            if ring["state"][place]:
                self._slots.pop(int(ring["event"][place]), None)
            ring[place], self._undone_at[place] = ring[slot], self._undone_at[slot]
            self._slots[int(ring["event"][place])] = place
            extra["kept_total"] += 1

    def _register(self, slot: int) -> tuple[int, int, int]:
        time, undone_at = int(self._ring["time"][slot]), int(self._undone_at[slot])
        return int(self._ring["state"][slot]), time, undone_at or time

    def _set_undone(self, slot: int, time: int) -> None:
        self._undone_at[slot] = time
        self._header["flags"] |= UNDONE_TIMES

    def _latest(self, i: int) -> int | None:
        """Slot of the user's latest standing event of this action on this content."""
        found = self._standing(int(self._c.keys[i]), int(self._c.actions[i]))
        if not len(found):
            return None
        size, total = self._slab.recent, int(self._header["total"])
        arrival = np.where(
            found < size, (found - total) % size, -1
        )  # of two at a time, the one that came last
        return int(found[np.lexsort((arrival, self._ring["time"][found]))[-1]])

    def _standing(self, key: int, action: int) -> NDArray[np.int64]:
        ring = self._ring
        match = (ring["content"] == np.uint64(key)) & (ring["action"] == action)
        return np.flatnonzero(match & (ring["state"] & STATE == APPLIED))

    def _complete(self, weight: float) -> bool:
        return counting.complete(self._slab, self._row, weight, int(self._header["total"]))

    # -- the sums

    def _vector_of(self, slot: int) -> int | None:
        """Row of the vector that an interaction was summed with; -1: with none; None: it is nowhere."""
        entry = self._ring[slot]
        if entry["state"] & BARE:
            return -1
        return self._vectors.row_of_version(int(entry["content"]), int(entry["version"]))

    def _take_back(self, slot: int) -> None:
        entry, content = self._ring[slot], self._vector_of(slot)
        self.took_back = True
        row = -1 if content is None else content
        self._entries.add(self._group, row, int(entry["time"]), float(entry["weight"]), -1)

    def _move(self, slot: int, i: int) -> None:
        """The same engagement, with a later time."""
        self._take_back(slot)
        entry, time = self._ring[slot], int(self._c.times[i])
        content = self._vector_of(slot)
        row = -1 if content is None else content
        self._entries.add(self._group, row, time, float(entry["weight"]), 1)
        counted = bool(entry["state"] & COUNTED)
        if counted:
            self._tell(slot, -1)
            self._ring["state"][slot] &= ~np.uint8(COUNTED)
        self._ring["time"][slot] = time
        self._stand(slot, int(self._c.contents[i]), counted)

    # -- contents' statistics

    def _all_known(self, key: int, action: int, weight: float) -> bool:
        """Whether it is sure that the user does not count for this content and action, if no act in the
        record does."""
        here = self._ring[(self._ring["content"] == np.uint64(key)) & (self._ring["state"] != 0)]
        if self._complete(weight) or (here["state"] & FIRST).any():
            return True
        acts = here[here["action"] == action]
        free = (acts["state"] & STATE == UNDONE) & (acts["state"] & COUNTED != 0)
        return bool(free.any() and not (acts["state"] & STATE == APPLIED).any())

    def _stand(self, slot: int, content: int, whole: bool) -> None:
        """An act stands now: it counts if it is the newest, or if nobody counts (``whole``: that is sure)."""
        entry = self._ring[slot]
        same = self._standing(int(entry["content"]), int(entry["action"]))
        holders = same[self._ring["state"][same] & COUNTED != 0]
        newest = -1
        if len(holders):
            newest = int(holders[self._ring["time"][holders].argmax()])
            if entry["time"] <= self._ring["time"][newest]:
                self._tell(slot, 0, content)
                return
            self._tell(newest, -1)
            self._ring["state"][newest] &= ~np.uint8(COUNTED)
        elif not whole:
            self._tell(slot, 0, content)
            return
        self._ring["state"][slot] |= COUNTED
        self._tell(slot, 1, content)

    def _fall(self, slot: int) -> None:
        """An act stands no longer: if it counted, the next newest does. The mark of the one that was taken
        back stays while there is none."""
        entry = self._ring[slot]
        if not entry["state"] & COUNTED:
            return
        self._tell(slot, -1)
        same = self._standing(int(entry["content"]), int(entry["action"]))
        if not len(same):
            return
        self._ring["state"][slot] &= ~np.uint8(COUNTED)
        if not (self._ring["state"][same] & COUNTED).any():
            next_newest = int(same[self._ring["time"][same].argmax()])
            self._ring["state"][next_newest] |= COUNTED
            self._tell(next_newest, 1)

    def _tell(self, slot: int, sign: int, content: int = -1) -> None:
        entry = self._ring[slot]
        key = int(entry["content"])
        if content < 0:
            found = self._vectors.row_of_key(key)
            content = -1 if found is None else found
        self._counts.add(content, int(entry["time"]), int(entry["action"]), sign, key)
