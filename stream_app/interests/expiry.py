"""What a partition gives up: users who have faded, users who live elsewhere, counts and fences of old."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_app.content.index import ContentIndex
from stream_app.interests.batch import PartitionState
from stream_app.interests.decay import remaining
from stream_app.interests.placement import Placement
from stream_app.interests.record import HEADER
from stream_app.settings import Settings
from stream_app.topics import DAY_MS

SCAN = 20_000
"""Users on disk looked at in one round."""


@dataclass(frozen=True, slots=True)
class Expired:
    """What one round has found."""

    faded: list[bytes]
    """Users whose mass is below ``interests.min_mass``."""
    strays: list[bytes]
    """Users who live in another partition: what earlier versions made of misplaced events."""
    contents: list[bytes]
    """Contents that are no longer indexed and whose counts have faded."""
    fences: list[int]
    """Erased users (key64) whose fence nothing needs any more."""

    @property
    def users(self) -> list[bytes]:
        """All users that go."""
        return [*self.faded, *self.strays]

    def __bool__(self) -> bool:
        return bool(self.faded or self.strays or self.contents or self.fences)


class Expiry:
    """Looks through the users of one partition, round by round."""

    def __init__(self, settings: Settings, partition: int, placement: Placement) -> None:
        self._settings, self._partition, self._placement = settings, partition, placement
        self._scanned = b""

    def find(self, state: PartitionState, index: ContentIndex, now: int) -> Expired:
        """The next ones, at stream time ``now`` (ms). Memory has just been written to disk. Raises
        StateDamagedError."""
        faded, strays = self._users(state, now)
        oldest = now - self._settings.events.max_age_days * DAY_MS  # what is older is too old anyway
        return Expired(
            faded,
            strays,
            state.statistics.dispensable(index.rows, self._settings.content.capacity),
            state.fences.obsolete(int(oldest), self._settings.interests.fences),
        )

    def _users(self, state: PartitionState, now: int) -> tuple[list[bytes], list[bytes]]:
        interests = self._settings.interests
        half_life_ms = interests.half_life_days * DAY_MS
        found, passed, last, count = [], list[bytes](), b"", 0
        for user, value in state.store.scan(self._scanned, SCAN):
            last, count = user, count + 1
            passed.append(user)
            header = np.frombuffer(value, HEADER, count=1)[0]
            age = now - int(header["t_ref"])
            # a record without mass may hold an early undo: it is kept for a half-life at least
            if age >= half_life_ms and header["mass"] * remaining(age, half_life_ms) < interests.min_mass:
                found.append(user)
        self._scanned = last if count >= SCAN else b""
        places = self._placement.places(passed)
        strays = {user for user, place in places.items() if place != self._partition}
        return [user for user in found if user not in strays], sorted(strays)
