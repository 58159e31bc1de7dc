"""The closed form of every user and of every content's counts, against what stands on the topics."""

from __future__ import annotations

import math
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_app.chaos.archived import Archived, Followed
from stream_app.chaos.arrivals import Arrival, Arrivals, Group
from stream_app.chaos.findings import Findings
from stream_app.chaos.layouts import (
    APPLIED,
    AWAITING,
    UNDONE,
    Entry,
    Event,
    User,
    code16,
    content_vector,
    hash64,
    statistics_record,
    user_record,
)

DAY_MS, HOUR_MS = 86_400_000.0, 3_600_000.0
COUNT_TOLERANCE = 1e-4


def _remaining(half_lives: float) -> float:
    """What is left of a weight after so many half-lives; bounded where a wrong record is far too old."""
    return math.pow(2.0, min(-half_lives, 400.0))


class Standing(NamedTuple):
    """One engagement that counts in its user's sum."""

    partition: int
    content: bytes
    action: int
    """Index into ``settings.events.actions``"""
    time: int
    weight: float


def _people(engagements: Iterable[Standing]) -> Iterable[Standing]:
    """Of a user's engagements with a content by an action only the newest: people count, not acts."""
    newest: dict[tuple[bytes, int], Standing] = {}
    for one in engagements:
        held = newest.get((one.content, one.action))
        if held is None or one.time > held.time:
            newest[one.content, one.action] = one
    return newest.values()


class UserCheck:
    """Compares every user's record with the groups of inputs that are theirs."""

    def __init__(self, archived: Archived, arrivals: Arrivals, findings: Findings) -> None:
        self._archived, self._arrivals, self._findings = archived, arrivals, findings
        settings = archived.settings
        self._half_life_ms = settings.interests.half_life_days * DAY_MS
        self._dimensions = settings.content.dimensions
        self._place = {settings.topic_name(a.topic): i for i, a in enumerate(settings.events.actions)}
        self._codes = [code16(a.name) for a in settings.events.actions]
        self._weights = [float(a.weight) for a in settings.events.actions]
        self._vectors: dict[tuple[bytes, int], tuple[NDArray[np.float64], float]] = {}
        self.standing: list[Standing] = []
        """What counts in contents' statistics, over all users."""

    def judge(self, tolerance: float) -> float:
        """Check every user; the largest relative error."""
        worst = 0.0
        for user in sorted(self._archived.users.keys() | self._arrivals.groups.keys()):
            followed = self._archived.users.get(user, Followed(-1))
            groups = self._arrivals.groups.get(user, {})
            where = f"interests[{followed.partition}]@{followed.offset}"
            if followed.regressions:
                self._findings.add(
                    "lost", f"{where}: an earlier record of this user held more", followed.regressions
                )
            if followed.value is None:
                self._missing(groups)
                continue
            try:
                record = user_record(followed.value)
            except (ValueError, struct.error) as broken:
                self._findings.add("users_wrong", f"{where}: {broken}")
                continue
            error = self._compare(where, followed, record, groups)
            worst = max(worst, error)
            if error > tolerance:
                self._findings.add("users_wrong", f"{where}: relative error {error:.3g}")
        return worst

    def _missing(self, groups: dict[int, Group]) -> None:
        for group in groups.values():
            first = (group.originals or group.undos)[0]
            self._findings.add("lost", f"{first}: its user has no record", len(group))

    def _compare(self, where: str, followed: Followed, record: User, groups: dict[int, Group]) -> float:
        findings = self._findings
        if record.total > record.recent:
            findings.add("users_wrong", f"{where}: {record.total} events, the record holds {record.recent}")
        entries: dict[int, Entry] = {}
        for event, count in Counter(entry.event for entry in record.entries).items():
            if event not in groups:
                findings.add(
                    "doubled", f"{where} holds an event that is no input of its user, or a dead letter", count
                )
            elif count > 1:
                first = (groups[event].originals or groups[event].undos)[0]
                findings.add("doubled", f"{first} stands {count} times in {where}", count - 1)
        for entry in record.entries:
            entries.setdefault(entry.event, entry)
        mine: list[Standing] = []
        times: set[int] = set()
        for event, group in groups.items():
            at = self._expected(where, entries.get(event), group)
            times |= set(group.times) | set(group.undone)
            if at is not None and group.stands:
                mine.append(at._replace(partition=followed.partition))
        self.standing += _people(mine)
        counts, should = (record.live, record.total), (len(mine), len(groups))
        if counts != should:
            what = f"{where} counts {counts} live and in total, should {should}"
            if len(entries) == len(record.entries) and entries.keys() == groups.keys():
                findings.add("doubled" if counts > should else "lost", what)
            findings.add("users_wrong", what)
        if record.t_ref != max(times, default=0):
            findings.add(
                "users_wrong", f"{where}: t_ref {record.t_ref}, newest event {max(times, default=0)}"
            )
        self._compare_seen(where, record, groups)
        return self._error(record, mine)

    def _compare_seen(self, where: str, record: User, groups: dict[int, Group]) -> None:
        contents = {
            hash64(arrival.event.content)
            for group in groups.values()
            for arrival in group.originals
            if isinstance(arrival.event, Event)
        }
        if len(contents) <= record.seen_limit and contents != record.seen:
            self._findings.add(
                "users_wrong", f"{where}: {len(record.seen)} contents seen, should be {len(contents)}"
            )

    def _expected(self, where: str, entry: Entry | None, group: Group) -> Standing | None:
        """Which original of the group counts (also when it was taken back), by what the record says."""
        members = [*group.originals, *group.undos]
        if entry is None:
            self._findings.add("lost", f"{members[0]} is not in {where}", len(members))
            return self._standing(group.counting[0]) if group.originals else None
        expected = AWAITING if not group.originals else APPLIED if group.stands else UNDONE
        if entry.state != expected:
            missing = entry.state == APPLIED or (entry.state == AWAITING and expected == UNDONE)
            self._findings.add(
                "lost" if missing else "doubled",
                f"{members[0]} has state {entry.state} in {where}, not {expected}",
            )
        for arrival in group.counting or group.undos:
            if self._is(entry, arrival):
                return self._standing(arrival) if group.originals else None
        self._findings.add("users_wrong", f"{members[0]} stands in {where} with other figures")
        return self._standing(group.counting[0]) if group.originals else None

    def _standing(self, arrival: Arrival) -> Standing:
        event, action = arrival.event, self._place[arrival.origin.topic]
        assert isinstance(event, Event)  # noqa: S101 - only such are grouped
        return Standing(-1, event.content.encode(), action, event.time, self._weights[action])

    def _is(self, entry: Entry, arrival: Arrival) -> bool:
        event, action = arrival.event, self._place[arrival.origin.topic]
        assert isinstance(event, Event)  # noqa: S101 - only such are grouped
        return entry[:1] + entry[2:5] == (
            hash64(event.content),
            event.time,
            float(np.float32(self._weights[action])),
            self._codes[action],
        )

    def _error(self, record: User, mine: list[Standing]) -> float:
        """Relative error of vector and mass, beyond what several encodings of one content leave open."""
        if len(record.vector) != self._dimensions:
            return float("inf")
        total, mass, open_ = np.zeros(self._dimensions), 0.0, 0.0
        for one in mine:
            vector, spread = self._vector(one.content, record.model)
            left = one.weight * _remaining((record.t_ref - one.time) / self._half_life_ms)
            total += left * vector
            mass += abs(left)
            open_ += abs(left) * spread
        length = float(np.linalg.norm(total)) or 1.0  # all taken back: the error is absolute
        vector_error = max(0.0, float(np.linalg.norm(record.vector - total)) - open_) / length
        error = max(vector_error, abs(record.mass - mass) / (mass or 1.0))
        return error if np.isfinite(error) else float("inf")

    def _vector(self, content: bytes, model: int) -> tuple[NDArray[np.float64], float]:
        """A content's vector by one encoder, and how far apart its encodings are (0: all are the same)."""
        known = self._vectors.get((content, model))
        if known is None:
            values = dict.fromkeys(r.value for r in self._archived.contents.get(content, []) if r.value)
            vectors = [vector for code, vector in map(content_vector, values) if code == model]
            vectors = [vector if vector.size else np.zeros(self._dimensions) for vector in vectors]
            if not vectors:
                self._findings.add("users_wrong", "an event was applied whose content never had a vector")
                vectors = [np.zeros(self._dimensions)]
            spread = max(float(np.linalg.norm(vector - vectors[-1])) for vector in vectors)
            known = self._vectors[content, model] = (vectors[-1], spread)
        return known


class StatisticsCheck:
    """Compares contents' counts with what stands in the users' records."""

    def __init__(self, archived: Archived, standing: list[Standing], findings: Findings) -> None:
        self._archived, self._findings = archived, findings
        self._codes = [code16(a.name) for a in archived.settings.events.actions]
        self._expected: dict[tuple[int, bytes], list[Standing]] = defaultdict(list)
        for one in standing:
            self._expected[one.partition, one.content].append(one)

    def judge(self) -> None:
        """Check every content in every partition."""
        found = self._archived.statistics
        for partition, content in sorted(self._expected.keys() | found.keys()):
            value, mine = found.get((partition, content)), self._expected.get((partition, content), [])
            if value is None:
                if mine:
                    self._findings.add("statistics_wrong", f"partition {partition} does not count a content")
                continue
            record = statistics_record(value)
            times = np.array([one.time for one in mine], np.float64)
            actions = np.array([one.action for one in mine], np.int64)
            if len(mine) and times.max() > record.t_ref:
                self._findings.add(
                    "statistics_wrong", f"partition {partition} misses a content's newest event"
                )
                continue
            wrong = False
            age_h = (record.t_ref - times) / HOUR_MS
            for h, hours in enumerate(record.half_lives_h):
                left = np.bincount(actions, 2.0 ** (-age_h / hours), len(self._codes))
                for code, count in zip(record.actions, record.counts[:, h], strict=True):
                    should = left[self._codes.index(code)]
                    wrong = wrong or abs(count - should) > COUNT_TOLERANCE * (1 + should)
            if wrong:
                self._findings.add("statistics_wrong", f"partition {partition} counts a content wrong")
