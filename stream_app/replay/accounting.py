"""Exact accounts of a run: what became of every event sent, who has a slate, and how fresh it was.

The interests workers keep each partition's :class:`Outcomes` on ``content-stats``, in the same
transactions as the state. An :class:`Accounts` remembers them at its start and compares.
"""

from __future__ import annotations

import contextlib
import time
from array import array
from collections.abc import Callable
from datetime import datetime

import msgspec
import numpy as np

from stream_app.hashing import key64
from stream_app.interests.statistics_record import OUTCOMES_KEY, Outcomes
from stream_app.replay.follower import Follower
from stream_app.replay.verify import Verified
from stream_app.settings import Settings

POLL_S = 0.1


class Freshness(msgspec.Struct):
    """From an event's Kafka timestamp to the slate's, ms; None before there is a slate."""

    p50: float | None
    p99: float | None


class Summary(msgspec.Struct, kw_only=True):
    """A run in figures; what ``--summary FILE`` holds."""

    produced: int
    """Events sent."""
    applied: int
    duplicates: int
    dead_lettered: int
    retrying: int
    active_users: int
    """Distinct users among the events sent."""
    users_with_slate: int
    """Those of them that have a slate."""
    slates: int
    """Slates published since the start."""
    freshness_ms: Freshness
    verified: Verified | None = None
    """With ``--verify``: how the users' states compare with the log."""

    @property
    def accounted(self) -> int:
        """Events with a known outcome, those that wait for their content included."""
        return self.applied + self.duplicates + self.dead_lettered + self.retrying

    @property
    def settled(self) -> bool:
        """Every event has its final outcome."""
        return self.accounted >= self.produced and self.retrying <= 0

    @property
    def complete(self) -> bool:
        """Settled, and every active user has a slate."""
        return self.settled and self.users_with_slate == self.active_users


class Accounts:
    """Follows outcomes and slates from its creation on."""

    def __init__(self, settings: Settings) -> None:
        """Read what stands on the topics now. Raises TopicMismatchError, BrokerUnavailableError."""
        with contextlib.ExitStack() as opened:
            self._outcomes = opened.enter_context(contextlib.closing(OutcomesReader(settings)))
            self._slates = opened.enter_context(contextlib.closing(_SlateReader(settings)))
            self._before = self._outcomes.read()
            self._close = opened.pop_all().close

    @property
    def earlier(self) -> int:
        """Events that were accounted for before the start."""
        return self._before.accounted

    def summary(self, produced: int, users: set[int]) -> Summary:
        """What became of ``produced`` events of ``users`` (key64) sent since the start, so far."""
        now, before, slates = self._outcomes.read(), self._before, self._slates
        slates.read()
        fresh: list[float | None] = [None, None]
        if slates.freshness_ms:
            fresh = np.percentile(slates.freshness_ms, (50, 99)).round(2).tolist()
        return Summary(
            produced=produced,
            applied=now.applied - before.applied,
            duplicates=now.duplicates - before.duplicates,
            dead_lettered=now.dead_lettered - before.dead_lettered,
            retrying=now.retrying - before.retrying,
            active_users=len(users),
            users_with_slate=len(users & slates.users),
            slates=slates.published,
            freshness_ms=Freshness(*fresh),
        )

    def wait(
        self, produced: int, users: set[int], patience_s: float, progress: Callable[[Summary], None]
    ) -> Summary:
        """Wait until the summary is complete, or has not changed for ``patience_s``; the last summary."""
        latest, changed = self.summary(produced, users), time.monotonic()
        while not latest.complete and time.monotonic() - changed < patience_s:
            progress(latest)
            time.sleep(POLL_S)
            newer = self.summary(produced, users)
            if newer != latest:
                latest, changed = newer, time.monotonic()
        return latest

    def close(self) -> None:
        """Close the connections."""
        self._close()


class OutcomesReader:
    """Follows the account records of all interests partitions."""

    def __init__(self, settings: Settings) -> None:
        self._follower = Follower(settings, settings.topic_name("content-stats"))
        self._by_partition: dict[int, Outcomes] = {}

    def read(self) -> Outcomes:
        """The sum over all partitions as it stands now, since the topic's beginning."""
        for record in self._follower.read():
            if record.key == OUTCOMES_KEY and record.value is not None:
                self._by_partition[record.partition] = msgspec.json.decode(record.value, type=Outcomes)
        fields = ("applied", "duplicates", "dead_lettered", "retrying")
        return Outcomes(**{f: sum(getattr(o, f) for o in self._by_partition.values()) for f in fields})

    def close(self) -> None:
        """Close the connection."""
        self._follower.close()


def read_outcomes(settings: Settings) -> Outcomes:
    """The account of every event since the beginning, summed over the partitions."""
    with contextlib.closing(OutcomesReader(settings)) as reader:
        return reader.read()


class _Cause(msgspec.Struct):
    received_at: datetime


class _CausedSlate(msgspec.Struct):
    """The one part of a slate that is needed here."""

    caused_by: _Cause | None = None


class _SlateReader:
    """Follows the slates: who has one; how many came since the start and how fresh they were."""

    def __init__(self, settings: Settings) -> None:
        self._follower = Follower(settings, settings.topic_name("recommendations"))
        self._decode = msgspec.json.Decoder(_CausedSlate).decode
        self.users: set[int] = set()
        """key64 of the users who have a slate"""
        self.published = 0
        self.freshness_ms = array("d")
        self.read()  # what was there before: who has a slate already
        self.published = 0
        self.freshness_ms = array("d")

    def read(self) -> None:
        """Take in what was published since the last call."""
        for record in self._follower.read():
            if record.key is None or record.key.startswith(b"\x00"):
                continue  # reserved: the slate for users whom nobody knows
            if record.value is None:
                self.users.discard(key64(record.key))
                continue
            self.users.add(key64(record.key))
            self.published += 1
            if (cause := self._decode(record.value).caused_by) is not None:
                self.freshness_ms.append(record.timestamp - cause.received_at.timestamp() * 1000)

    def close(self) -> None:
        self._follower.close()
