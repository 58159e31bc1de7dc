"""What an archive keeps of a run: every input as it came, and when each effect first stood on the topics.

Plain memory without I/O, so that a test can make a small one and damage it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_app.chaos.layouts import (
    AWAITING,
    COUNTS,
    OUTCOMES_KEY,
    ROUTED,
    ROUTER,
    UNDONE,
    Headers,
    code16,
    header,
    last_applied,
    origin,
    ring,
)
from stream_app.settings import Settings


class Spot(NamedTuple):
    """A partition of one life of a topic: a topic that is deleted and created again begins another."""

    topic: str
    life: int
    partition: int


class Kept(NamedTuple):
    """One record as it was read."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


class Range(NamedTuple):
    """Offsets that a dead letter says nobody can read."""

    topic: str
    partition: int
    first: int
    last: int
    records: int


class Place(NamedTuple):
    """Where an effect stands: a partition of an output topic, and the offset there."""

    topic: str
    partition: int
    offset: int


class Sample(NamedTuple):
    """Committed offsets of the interests group, and what stood on the output topics *after* that."""

    committed: dict[Spot, int]
    ends: dict[tuple[str, int], int]
    """End of each output partition, open transactions included: what the offsets vouch for lies before."""


@dataclass(slots=True)
class Followed:
    """One user's records on ``interests``, the newest whole, the others by what was new in them."""

    partition: int
    offset: int = -1
    value: bytes | None = None
    """None: no record (any more)"""
    events: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    states: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    first: dict[int, int] = field(default_factory=dict)
    """Event hash → offset of the first record that held it."""
    undone: dict[int, int] = field(default_factory=dict)
    """Event hash → offset of the first record in which an undo of it had its effect."""
    regressions: int = 0
    """Records in which something that stood before was missing."""

    def take(self, offset: int, value: bytes | None) -> None:
        """The user's next record."""
        self.offset, self.value = offset, value
        if value is None:
            self.events, self.states = self.events[:0], self.states[:0]
            return
        events, states = ring(value)
        n = min(len(self.events), len(events))
        if n < len(self.events) or not np.array_equal(events[:n], self.events[:n]):
            self.regressions += not np.isin(self.events, events).all()
            n = 0
        for event in events[n:].tolist():
            self.first.setdefault(event, offset)
        changed = np.flatnonzero(states[:n] != self.states[:n]).tolist() + list(range(n, len(events)))
        for slot in changed:
            if states[slot] in (UNDONE, AWAITING):
                self.undone.setdefault(int(events[slot]), offset)
        self.events, self.states = events, states


@dataclass
class Archived:
    """Everything read in a run."""

    settings: Settings
    inputs: dict[Spot, dict[int, Kept]] = field(default_factory=dict)
    """Records of the event topics, by offset in the order of reading."""
    copies: dict[Spot, dict[int, Kept]] = field(default_factory=dict)
    """Records of the retry topics by partition and offset."""
    routed: dict[int, dict[int, Kept]] = field(default_factory=dict)
    """Records of ``events-routed`` likewise."""
    letters: list[tuple[int, Kept]] = field(default_factory=list)
    """Dead letters with their partitions."""
    users: dict[bytes, Followed] = field(default_factory=dict)
    contents: dict[bytes, list[Kept]] = field(default_factory=dict)
    """Every record of ``content-vectors`` by content."""
    statistics: dict[tuple[int, bytes], bytes | None] = field(default_factory=dict)
    """Newest record by user partition and content."""
    accounts: dict[int, list[tuple[int, dict[str, int]]]] = field(default_factory=dict)
    """Every account of a user partition with its offset on ``content-stats``."""
    routers: dict[tuple[str, int], list[tuple[int, dict[str, int]]]] = field(default_factory=dict)
    """The same of the routers, by topic and partition that they read."""
    slates: dict[bytes, Kept] = field(default_factory=dict)
    """Newest slate by key."""
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        name = self.settings.topic_name
        self.events = {name(action.topic): action for action in self.settings.events.actions}
        self._topic_of_code = {code16(action.name): topic for topic, action in self.events.items()}
        tries = range(1, len(self.settings.events.retry_delays_s) + 1)
        self._retries = [name("events-retry"), *(name(f"events-retry-{n}") for n in tries)]
        self._outputs = {
            name("events-routed"): self._route,
            name("events-dlq"): self._letter,
            name("interests"): self._user,
            name("content-vectors"): self._content,
            name("content-stats"): self._statistics,
            name("recommendations"): self._slate,
        }

    @property
    def topics(self) -> list[str]:
        """Full names of all topics that are read."""
        return [*self.events, *self._retries, *self._outputs]

    def take(self, spot: Spot, record: Kept) -> None:
        """One record, in the order of its partition."""
        if spot.topic in self.events:
            self._input(spot, record)
        elif spot.topic in self._retries:
            self.copies.setdefault(spot, {})[record.offset] = record
        else:
            self._outputs[spot.topic](spot.partition, record)

    def _input(self, spot: Spot, record: Kept) -> None:
        self.inputs.setdefault(spot, {})[record.offset] = record
        before = self.inputs.get(Spot(spot.topic, spot.life - 1, spot.partition), {})
        if before.get(record.offset) == record:
            # the new life had already grown past the position that the old one was read to
            del before[record.offset]

    def _route(self, partition: int, record: Kept) -> None:
        self.routed.setdefault(partition, {})[record.offset] = record

    def _letter(self, partition: int, record: Kept) -> None:
        self.letters.append((partition, record))

    def _user(self, partition: int, record: Kept) -> None:
        user = record.key or b""
        followed = self.users.get(user)
        if followed is None:
            followed = self.users[user] = Followed(partition)
        followed.take(record.offset, record.value)

    def _content(self, _partition: int, record: Kept) -> None:
        """By the layout's key, content_id 00 CODE: neither former vectors (00 CODE 00 TAG) nor marks."""
        content, _, rest = (record.key or b"").partition(b"\x00")
        if content and b"\x00" not in rest:
            self.contents.setdefault(content, []).append(record)

    def _statistics(self, partition: int, record: Kept) -> None:
        if record.key == OUTCOMES_KEY and record.value is not None:
            found = json.loads(record.value)
            account = {name: int(found.get(name, 0)) for name in (*COUNTS, ROUTED)}
            self.accounts.setdefault(partition, []).append((record.offset, account))
        elif record.key is not None and record.key.startswith(ROUTER) and record.value is not None:
            topic, _, number = record.key.removeprefix(ROUTER).decode().rpartition("-")
            _, _, routed, dead = json.loads(record.value)
            account = {ROUTED: routed, "dead_lettered": dead}
            self.routers.setdefault((topic, int(number)), []).append((record.offset, account))
        elif record.key is not None and not record.key.startswith(b"\x00"):
            self.statistics[partition, record.key] = record.value

    def _slate(self, _partition: int, record: Kept) -> None:
        self.slates[record.key or b""] = record

    # -- how far the product is

    def unsettled(self, *, slates: bool) -> str | None:
        """What the product still owes by its own account; None when nothing."""
        newest = [accounts[-1][1] for accounts in self.accounts.values()]
        accounted = sum(account[name] for account in newest for name in COUNTS)
        accounted += sum(accounts[-1][1]["dead_lettered"] for accounts in self.routers.values())
        waiting = sum(account["retrying"] for account in newest)
        arrived = sum(map(len, self.inputs.values())) + sum(1 for _ in self.foreign_copies())
        arrived += sum(found.records for found in self.ranges())
        if accounted < arrived:
            return f"{arrived - accounted} of {arrived} inputs are not accounted for"
        if waiting:
            return f"{waiting} inputs wait to be tried again"
        if slates:
            owed = sum(
                user.value is not None and self.cause_of(name) != self.last_of(user.value)
                for name, user in self.users.items()
            )
            if owed:
                return f"{owed} of {len(self.users)} users have no slate for their last event"
        return None

    def ranges(self) -> Iterator[Range]:
        """Of event topics; what stood there was an input, too."""
        for _, letter in self.letters:
            named, last = origin(letter.headers), header(letter.headers, "last-offset")
            if last and named is not None and named.topic in self.events:
                records = int(header(letter.headers, "records"))
                yield Range(named.topic, named.partition, named.offset, int(last), records)

    def foreign_copies(self) -> Iterator[tuple[Spot, Kept]]:
        """Records of the retry topics that somebody else put there: inputs, and not copies of any."""
        for spot, copies in self.copies.items():
            for copy in copies.values():
                if origin(copy.headers) is None:
                    yield spot, copy

    def last_of(self, value: bytes) -> tuple[str | None, int, int]:
        """Topic, partition and offset of the event that a user's record names as applied last."""
        code, partition, offset = last_applied(value)
        return self._topic_of_code.get(code), partition, offset

    def cause_of(self, user: bytes) -> tuple[str, int, int] | None:
        """Topic, partition and offset of the event that the user's newest slate names; None without."""
        slate = self.slates.get(user)
        cause = json.loads(slate.value).get("caused_by") if slate is not None and slate.value else None
        return (cause["topic"], cause["partition"], cause["offset"]) if cause else None
