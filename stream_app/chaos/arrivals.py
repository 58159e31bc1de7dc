"""Every input of a run with all that became of it: its dead letters, its retries, its place in a record."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from stream_app.chaos.archived import Archived, Kept, Place, Spot
from stream_app.chaos.layouts import Event, EventReader, Headers, Origin, event_hash, header, origin
from stream_app.errors import StreamAppError

CERTAIN_MS = 60_000
"""A content that had its vector this long before an event was given up as unknown was known."""


@dataclass(slots=True)
class Arrival:
    """One input record."""

    origin: Origin
    spot: Spot
    event: Event | frozenset[str]
    """What it says, or why it may be refused."""
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
        return event_hash(event.name if event.name is not None else "-".join(map(str, place)))

    def accounts(self) -> dict[int, Counter[str]]:
        """By partition, what became of each input: the product's own account must say the same."""
        accounts: dict[int, Counter[str]] = defaultdict(Counter)
        for arrival in self.all:
            if arrival.waiting:
                accounts[arrival.spot.partition]["retrying"] += 1
            elif isinstance(arrival.event, frozenset) or arrival.letters:
                accounts[arrival.spot.partition]["dead_lettered"] += 1
        for groups in self.groups.values():
            for group in groups.values():
                partition = (group.originals or group.undos)[0].spot.partition
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
                self._add(spot, kept, reader.read(kept.key, kept.value, kept.timestamp))
        retry_topic = self.archived.settings.topic_name("events-retry")
        for partition, kept in self.archived.foreign_copies():
            read = reader.read(kept.key, kept.value, kept.timestamp)
            faults = read if isinstance(read, frozenset) else frozenset()
            self._add(Spot(retry_topic, 0, partition), kept, faults | {"bad_origin"})

    def _add(self, spot: Spot, kept: Kept, event: Event | frozenset[str]) -> None:
        arrival = Arrival(Origin(spot.topic, spot.partition, kept.offset, kept.timestamp), spot, event)
        self.all.append(arrival)
        self.by_origin[arrival.origin] = arrival

    def _attach(self) -> None:
        settings = self.archived.settings
        dead, retries = settings.topic_name("events-dlq"), settings.topic_name("events-retry")
        for partition, letter in self.archived.letters:
            place = Place(dead, partition, letter.offset)
            found = self._origin(letter.headers, place)
            if found is not None:
                found.letters.append((place, letter.headers))
        for partition, copies in self.archived.copies.items():
            committed = self._committed(Spot(retries, 0, partition))
            for offset, copy in copies.items():
                if origin(copy.headers) is None:
                    continue
                place = Place(retries, partition, offset)
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
            if not isinstance(arrival.event, frozenset):
                p = arrival.spot.partition
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
        if reason == "undo_target_gone":
            return event.undo and any(record.value is None for record in history)
        if reason == "too_old":
            return event.time < newest[arrival.spot.partition] - settings.max_age_days * 86_400_000
        return False
