"""No committed offset may pass an input whose effects are not on the topics.

Each sample of the archive holds the offsets committed at one moment and the ends of the output topics
*after* it, open transactions included. All that the offsets vouch for lies before these ends, so the
first sample that has passed an input decides: an effect that came later was not durable when the
offset was.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from stream_app.chaos.archived import Archived, Place, Sample, Spot
from stream_app.chaos.arrivals import Arrival, Arrivals
from stream_app.chaos.layouts import Event


class Passed(NamedTuple):
    """One record whose offset can be committed: an input (attempt 0), its routed copy, or a retry of it."""

    offset: int
    attempt: int
    arrival: Arrival
    routed: bool = False


def ahead(archived: Archived, arrivals: Arrivals) -> Iterator[str]:
    """Each record that was passed too early, in words, and each account that lagged behind."""
    records = _by_spot(archived, arrivals)
    offsets = {spot: [record.offset for record in mine] for spot, mine in records.items()}
    passed: dict[Spot, int] = {}
    for sample in archived.samples:
        moved: set[int] = set()
        for spot, committed in sample.committed.items():
            before = passed.get(spot, 0)
            if committed <= before or spot not in records:
                continue
            passed[spot] = committed
            moved.add(spot.partition)
            for record in records[spot][
                bisect_left(offsets[spot], before) : bisect_left(offsets[spot], committed)
            ]:
                if not any(
                    place.offset < sample.ends.get((place.topic, place.partition), 0)
                    for place in _effects(archived, arrivals, record)
                ):
                    yield f"{record.arrival} (try {record.attempt}) was passed by offset {committed}"
        for partition in sorted(moved):
            below = sum(
                bisect_left(offsets[spot], committed)
                for spot, committed in passed.items()
                if spot.partition == partition and spot.topic in archived.events
            )
            accounted = _accounted(archived, sample, partition)
            if accounted < below:
                yield f"partition {partition}: offsets passed {below} inputs, its account knew {accounted}"


def _by_spot(archived: Archived, arrivals: Arrivals) -> dict[Spot, list[Passed]]:
    records: dict[Spot, list[Passed]] = defaultdict(list)
    for arrival in arrivals.all:
        records[arrival.spot].append(Passed(arrival.origin.offset, 0, arrival))
        for place in arrival.routes:
            spot = Spot(place.topic, 0, place.partition)
            records[spot].append(Passed(place.offset, 0, arrival, routed=True))
        for attempt, place in arrival.copies:
            records[Spot(place.topic, 0, place.partition)].append(Passed(place.offset, attempt, arrival))
    for mine in records.values():
        mine.sort(key=lambda record: record.offset)
    return records


def _effects(archived: Archived, arrivals: Arrivals, record: Passed) -> Iterator[Place]:
    """Where it stands that this record was dealt with."""
    arrival = record.arrival
    if not record.routed:
        yield from arrival.routes
    yield from (place for place, _ in arrival.letters)
    yield from (place for attempt, place in arrival.copies if attempt > record.attempt)
    if isinstance(arrival.event, Event) and (user := archived.users.get(arrival.event.user)) is not None:
        event = arrivals.hash_of(arrival, arrival.event)
        offset = (user.undone if arrival.event.undo else user.first).get(event)
        if offset is not None:
            yield Place(archived.settings.topic_name("interests"), user.partition, offset)


def _accounted(archived: Archived, sample: Sample, partition: int) -> int:
    """Inputs that the partition's account knew of when the sample was taken."""
    place = partition % archived.settings.kafka.partitions
    end = sample.ends.get((archived.settings.topic_name("content-stats"), place), 0)
    accounts = archived.accounts.get(partition, [])
    routers = [told for (_, number), told in archived.routers.items() if number == partition]
    return sum(_newest(told, end) for told in (accounts, *routers))


def _newest(accounts: list[tuple[int, dict[str, int]]], end: int) -> int:
    at = bisect_left(accounts, end, key=lambda account: account[0])
    return sum(accounts[at - 1][1].values()) if at else 0
