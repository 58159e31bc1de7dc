"""Who has acted lately, by which record they were ranked, and when: those whom a refresh may concern.

Users stand in two orders: by their last event, where the one who acted longest ago gives way when there
are too many; and by their last ranking, where the one ranked longest ago is refreshed first.

A partition that has come brings users with it who acted before: they are read from ``interests``, once.
What is read may be older than what was ranked meanwhile, so whoever has been ranked or has gone since the
reading began stays as they are.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from stream_app.interests.record import InterestRecord
from stream_app.settings import Settings

HOUR_S = 3600.0


@dataclass(slots=True)
class Active:
    """One user."""

    partition: int
    """Of ``interests``"""
    record: InterestRecord
    """The newest one that was ranked"""
    ranked_at: float
    """s, wall clock"""

    @property
    def acted_at(self) -> float:
        """When the newest event came, s, wall clock."""
        return float(self.record.header["received_at"]) / 1000


class ActiveUsers:
    """At most ``ranking.refresh_users`` users and their records; one thread uses it."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        """``clock`` gives the wall clock, s."""
        ranking = settings.ranking
        self._capacity = ranking.refresh_users if ranking.refresh_per_s else 0
        self._after_s = ranking.refresh_after_s
        self._active_s = ranking.refresh_active_h * HOUR_S
        self._clock = clock
        self._changed_at = 0.0
        self._users: OrderedDict[bytes, Active] = OrderedDict()  # who acted longest ago comes first
        self._queue: OrderedDict[bytes, None] = OrderedDict()  # who was ranked longest ago comes first
        self._terms: dict[int, int] = {}  # partition → how often it was forgotten
        self._filled: set[int] = set()
        self._read: OrderedDict[bytes, Active] = OrderedDict()  # what a reading has found so far
        self._since: set[bytes] | None = None  # ranked or gone since it began; None while nothing is read

    def __len__(self) -> int:
        """Users kept."""
        return len(self._users)

    def changed(self) -> None:
        """What rankings go by has changed: contents, statistics or impressions have come. (Stream time moves
        with events alone: without any of these, everybody's slate would be the same again.)"""
        self._changed_at = self._clock()

    # -- what happens here

    def ranked(
        self, users: Iterable[tuple[bytes, InterestRecord | None]], places: Mapping[bytes, int]
    ) -> None:
        """These users have acted and are being ranked by these records; ``places`` are their partitions."""
        now = self._clock()
        for user, record in users:
            if record is None or not self._capacity:
                continue
            self._users[user] = Active(places[user], record, now)
            self._users.move_to_end(user)
            self._queue[user] = None
            self._queue.move_to_end(user)
            if self._since is not None:
                self._since.add(user)
        self._bound()

    def gone(self, users: Iterable[bytes]) -> None:
        """These users have no record any more."""
        for user in users:
            self._drop(user)
            if self._since is not None:
                self._since.add(user)

    def refreshed(self, users: Iterable[bytes]) -> None:
        """They are being ranked by what has changed."""
        now = self._clock()
        for user in users:
            self._users[user].ranked_at = now
            self._queue.move_to_end(user)

    def due(self, count: int, partitions: Collection[int]) -> dict[bytes, Active]:
        """At most ``count`` users of these partitions who acted within ``ranking.refresh_active_h`` and were
        ranked more than ``ranking.refresh_after_s`` ago, and before the last change; longest ago first."""
        now, found, faded = self._clock(), dict[bytes, Active](), []
        for user in self._queue:
            one = self._users[user]
            if len(found) == count or one.ranked_at > min(now - self._after_s, self._changed_at):
                break
            if one.acted_at < now - self._active_s:
                faded.append(user)
            elif one.partition in partitions:
                found[user] = one
        for user in faded:
            self._drop(user)
        return found

    def forget(self, partition: int) -> None:
        """The partition is no longer ours."""
        self._terms[partition] = self._terms.get(partition, 0) + 1
        self._filled.discard(partition)
        for user in [user for user, one in self._users.items() if one.partition == partition]:
            self._drop(user)

    # -- what stands on the topic

    def unfilled(self, owned: Collection[int]) -> dict[int, int]:
        """Those of the owned partitions whose users are yet to be read, with their terms. If there are any, a
        reading begins."""
        missing = {p: self._terms.setdefault(p, 0) for p in owned if p not in self._filled}
        if missing:
            self._read.clear()
            self._since = set()
        return missing

    def read(self, user: bytes, partition: int, record: InterestRecord | None) -> None:
        """The user's next record as it stands; None where there is none, or none of somebody active."""
        self._read.pop(user, None)
        if record is not None:
            self._read[user] = Active(partition, record, float(record.header["received_at"]) / 1000)
            if len(self._read) > self._capacity:
                self._read.popitem(last=False)

    def filled(self, terms: Mapping[int, int]) -> None:
        """Everything that stood there has been read: take over those of partitions still in that term."""
        done = {p for p, term in terms.items() if self._terms[p] == term}
        self._filled |= done
        newer = self._users.keys() | (self._since or ())
        for user, one in self._read.items():
            if one.partition in done and user not in newer:
                self._users[user] = one
                self._queue[user] = None
        self._read.clear()
        self._since = None
        self._users = OrderedDict(sorted(self._users.items(), key=lambda item: item[1].acted_at))
        self._queue = OrderedDict.fromkeys(sorted(self._queue, key=lambda user: self._users[user].ranked_at))
        self._bound()

    def _bound(self) -> None:
        while len(self._users) > self._capacity:
            user, _ = self._users.popitem(last=False)
            del self._queue[user]

    def _drop(self, user: bytes) -> None:
        if self._users.pop(user, None) is not None:
            del self._queue[user]
