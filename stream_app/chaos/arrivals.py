"""Every input of a run with all that became of it: its dead letters, its retries, its place in a record."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from stream_app.chaos.archived import Archived, Kept, Place, Spot
from stream_app.chaos.layouts import (
    Event,
    EventReader,
    Headers,
    Origin,
    event_hash,
    header,
    home_of,
    origin,
    user_of,
)
from stream_app.errors import StreamAppError

BY_ROUTERS = -1
"""In place of a user partition: a record that names nobody, on a topic with other partitions."""
CERTAIN_MS = 60_000
"""A content that had its vector this long before an event was given up as unknown was known."""


@dataclass(slots=True)
class Arrival:
    """One input record."""

    origin: Origin
    spot: Spot
    event: Event | frozenset[str]
    """What it says, or why it may be refused."""
    home: int
    """The user partition that accounts for it, or BY_ROUTERS."""
    routes: list[Place] = field(default_factory=list)
    """Copies on ``events-routed``."""
    letters: list[tuple[Place, Headers]] = field(default_factory=list)
    copies: list[tuple[int, Place]] = field(default_factory=list)
    """Retries: which one, and where."""
    waiting: bool = False
    """Its last copy has not been read yet."""

    def __str__(self) -> str:
        life = f" of life {self.spot.life}" if self.spot.life else ""
        return f"{self.origin.topic}[{self.origin.partition}]@{self.origin.offset}{life}"


@dataclass(slots=True)
class Group:
    """The inputs that are one event: sent once or several times, and taken back or not."""

    originals: list[Arrival] = field(default_factory=list)
    undos: list[Arrival] = field(default_factory=list)

    @property
    def applied(self) -> int:
        """How many of them count as applied; all others are duplicates."""
        return bool(self.originals) + bool(self.undos)

    @property
    def times(self) -> list[int]:
        """Event times of the originals."""
        return [arrival.event.time for arrival in self.originals if isinstance(arrival.event, Event)]

    @property
    def undone(self) -> list[int]:
        """Event times of the undos."""
        return [arrival.event.time for arrival in self.undos if isinstance(arrival.event, Event)]

    @property
    def stands(self) -> bool:
        """Whether it counts: never taken back, or sent again, later than it was."""
        times = set(self.times)
        return bool(times) and (not self.undos or (len(times) > 1 and max(times) > max(self.undone)))

    @property
    def counting(self) -> list[Arrival]:
        """The originals that may be the one that counts: the newest, or any of what was taken back."""
        newest = max(self.times, default=0)
        return [
            one
            for one, time in zip(self.originals, self.times, strict=True)
            if not self.stands or time == newest
        ]

    def __len__(self) -> int:
        return len(self.originals) + len(self.undos)


class Arrivals:
    """The inputs of an archive, read and sorted."""

    def __init__(self, archived: Archived) -> None:
        """Raises StreamAppError for inputs whose effect depends on the order of arrival."""
        self.archived = archived
        self.all: list[Arrival] = []
        self.by_origin: dict[Origin, Arrival] = {}
        self.stray: list[str] = []
        """Letters and retries of no input."""
        self.groups: dict[bytes, dict[int, Group]] = defaultdict(dict)
        """By user and event hash; without those that were dead-lettered or wait."""
        self._read(EventReader(archived.settings))
        self._attach()
        for arrival in self.all:
            if not (isinstance(arrival.event, frozenset) or arrival.letters or arrival.waiting):
                self._group(arrival, arrival.event)

    def hash_of(self, arrival: Arrival, event: Event) -> int:
        """How records name this event."""
        place = arrival.origin
        name = event.name if event.name is not None else "-".join(map(str, place))
        return event_hash(name, self.archived.events[place.topic].name)

    def accounts(self) -> dict[int, Counter[str]]:
        """By partition, what became of each input: the product's own account must say the same."""
        accounts: dict[int, Counter[str]] = defaultdict(Counter)
        for arrival in self.all:
            if arrival.waiting:
                accounts[arrival.home]["retrying"] += 1
            elif isinstance(arrival.event, frozenset) or arrival.letters:
                accounts[arrival.home]["dead_lettered"] += 1
        for found in self.archived.ranges():
            routed = (found.topic, found.partition) in self.archived.routers
            accounts[BY_ROUTERS if routed else found.partition]["dead_lettered"] += found.records
        for groups in self.groups.values():
            for group in groups.values():
                if group.stands and group.undos:
                    raise StreamAppError(
                        f"{group.undos[0]} and a later event of its id: how many of them are repeats "
                        "depends on the order of arrival, so the oracle cannot judge it"
                    )
                partition = (group.originals or group.undos)[0].home
                accounts[partition]["applied"] += group.applied
                accounts[partition]["duplicates"] += len(group) - group.applied
        return accounts

    def misjudged(self) -> Iterator[str]:
        """Dead letters whose reason is not so."""
        newest = self._newest_times()
        for arrival in self.all:
            for _, headers in arrival.letters:
                reason = header(headers, "reason")
                if isinstance(arrival.event, frozenset):
                    if reason not in arrival.event:
                        yield f"{arrival} was refused as {reason}, and may be as {sorted(arrival.event)}"
                elif not self._rightly(arrival, arrival.event, reason, headers, newest):
                    yield f"{arrival} was refused as {reason}, and is a good event"

    # -- reading

    def _read(self, reader: EventReader) -> None:
        for spot, records in self.archived.inputs.items():
            for kept in records.values():
                self._add(spot, kept, reader.read(kept.value, kept.timestamp))
        for spot, kept in self.archived.foreign_copies():
            read = reader.read(kept.value, kept.timestamp)
            faults = read if isinstance(read, frozenset) else frozenset()
            self._add(spot, kept, faults | {"bad_origin"})

    def _add(self, spot: Spot, kept: Kept, event: Event | frozenset[str]) -> None:
        place = Origin(spot.topic, spot.partition, kept.offset, kept.timestamp)
        arrival = Arrival(place, spot, event, self._home(spot, kept, event))
        self.all.append(arrival)
        self.by_origin[arrival.origin] = arrival

    def _home(self, spot: Spot, kept: Kept, event: Event | frozenset[str]) -> int:
        settings = self.archived.settings
        user = event.user if isinstance(event, Event) else user_of(kept.key, kept.value)
        if user is not None and 0 < len(user) <= settings.events.max_id_bytes and b"\x00" not in user:
            return home_of(user, settings.kafka.partitions)
        return BY_ROUTERS if (spot.topic, spot.partition) in self.archived.routers else spot.partition

    def _attach(self) -> None:
        settings = self.archived.settings
        dead = settings.topic_name("events-dlq")
        for partition, letter in self.archived.letters:
            if header(letter.headers, "last-offset"):
                continue  # of a range that nobody can read
            place = Place(dead, partition, letter.offset)
            found = self._origin(letter.headers, place)
            if found is not None:
                found.letters.append((place, letter.headers))
        routed = settings.topic_name("events-routed")
        for partition, copies in self.archived.routed.items():
            committed = self._committed(Spot(routed, 0, partition))
            for offset, copy in copies.items():
                place = Place(routed, partition, offset)
                if (found := self._origin(copy.headers, place)) is not None:
                    found.routes.append(place)
                    found.waiting |= offset >= committed
        for spot, copies in self.archived.copies.items():
            committed = self._committed(spot)
            for offset, copy in copies.items():
                if origin(copy.headers) is None:
                    continue
                place = Place(spot.topic, spot.partition, offset)
                found = self._origin(copy.headers, place)
                if found is not None:
                    found.copies.append((int(header(copy.headers, "attempts") or 0), place))
                    found.waiting |= offset >= committed

    def _origin(self, headers: Headers, place: Place) -> Arrival | None:
        named = origin(headers)
        # only what came from a content worker names another topic than those of events
        if named is not None and named.topic == self.archived.settings.topic_name("content"):
            return None
        arrival = self.by_origin.get(named) if named is not None else None
        if arrival is None:
            self.stray.append(f"{place.topic}[{place.partition}]@{place.offset} names no input: {named}")
        return arrival

    def _committed(self, spot: Spot) -> int:
        # of all samples: a group that was deleted since has forgotten, the state has not
        return max((sample.committed.get(spot, 0) for sample in self.archived.samples), default=0)

    def _group(self, arrival: Arrival, event: Event) -> None:
        if event.undo and event.name is None:
            raise StreamAppError(
                f"{arrival} takes back an event without naming it: what that does depends on the order of "
                "arrival, so the oracle cannot judge it. Give undos an event_id"
            )
        group = self.groups[event.user].setdefault(self.hash_of(arrival, event), Group())
        (group.undos if event.undo else group.originals).append(arrival)

    # -- reasons

    def _newest_times(self) -> dict[int, int]:
        newest: dict[int, int] = {}
        for arrival in self.all:
            if not (isinstance(arrival.event, frozenset) or arrival.letters):
                p = arrival.home
                newest[p] = max(newest.get(p, 0), arrival.event.time)
        return newest

    def _rightly(
        self, arrival: Arrival, event: Event, reason: str, headers: Headers, newest: dict[int, int]
    ) -> bool:
        """Whether a good event may end as a dead letter for this reason."""
        settings = self.archived.settings.events
        history = self.archived.contents.get(event.content.encode(), [])
        if reason == "unknown_content":
            letter_ms = int(header(headers, "time") or 0)
            before = [record for record in history if record.timestamp < letter_ms - CERTAIN_MS]
            known = bool(before) and before[-1].value is not None
            tried = int(header(headers, "attempts") or 0) == len(settings.retry_delays_s)
            return tried and not known
        if reason == "timestamp_in_future":  # beyond the worker's clock, whatever the Kafka timestamp says
            return event.time > int(header(headers, "time") or 0)
        if reason == "undo_target_gone":
            return event.undo and any(record.value is None for record in history)
        if reason == "too_old":
            return event.time < newest[arrival.home] - settings.max_age_days * 86_400_000
        return False
