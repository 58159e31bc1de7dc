"""Who is due for a refresh: never by an older record, never somebody who has gone, and within bounds."""

from __future__ import annotations

import numpy as np
import pytest

from stream_app.interests.record import HEADER, InterestRecord
from stream_app.recommendations.active import ActiveUsers
from stream_app.settings import build

AFTER_S, ACTIVE_S = 100.0, 3600.0
OWNED = {0, 1}


class Clock:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def record(acted_at: float, offset: int = 0) -> InterestRecord:
    header = np.zeros((), HEADER)
    header["received_at"], header["offset"] = round(acted_at * 1000), offset
    nothing = np.zeros(0)
    return InterestRecord(header[()], nothing, nothing, nothing)  # type: ignore[arg-type]  # only the header counts


class World:
    """Users at a clock."""

    def __init__(self, users: int = 100, rate: float = 1.0) -> None:
        self.clock = Clock()
        ranking = {
            "refresh_per_s": rate,
            "refresh_after_s": AFTER_S,
            "refresh_active_h": ACTIVE_S / 3600,
            "refresh_users": users,
        }
        self.active = ActiveUsers(build({"ranking": ranking}), self.clock)

    def acts(self, *users: bytes, partition: int = 0, offset: int = 0) -> None:
        one = record(self.clock.now, offset)
        self.active.ranked([(user, one) for user in users], dict.fromkeys(users, partition))

    def later(self, seconds: float = AFTER_S + 1) -> None:
        self.clock.now += seconds
        self.active.changed()

    def due(self, count: int = 100) -> list[bytes]:
        return list(self.active.due(count, OWNED))


def test_due_are_those_ranked_longest_ago_and_only_once() -> None:
    it = World()
    for user in (b"a", b"b", b"c"):
        it.acts(user)
        it.later(1)
    it.acts(b"a")
    assert it.due() == []
    it.later()
    assert it.due(2) == [b"b", b"c"]
    assert it.due() == [b"b", b"c", b"a"]  # asking changes nothing
    it.active.refreshed([b"b", b"c"])
    assert it.due() == [b"a"]
    it.later()
    assert it.due() == [b"a", b"b", b"c"]


def test_nobody_is_due_while_nothing_has_changed() -> None:
    it = World()
    it.active.changed()
    it.clock.now += 1
    it.acts(b"a")
    it.clock.now += AFTER_S + 1
    assert it.due() == []
    it.active.changed()
    assert it.due() == [b"a"]


def test_who_acted_too_long_ago_is_forgotten() -> None:
    it = World()
    it.acts(b"a")
    it.later(ACTIVE_S - 10)
    it.acts(b"b")
    it.later()
    assert it.due() == [b"b"]
    assert len(it.active) == 1


def test_only_users_of_the_partitions_asked_for_are_due() -> None:
    it = World()
    it.acts(b"a", partition=3)
    it.acts(b"b", partition=1)
    it.later()
    assert it.due() == [b"b"]
    it.active.forget(1)
    assert it.due() == []
    assert len(it.active) == 1


def test_who_acted_longest_ago_gives_way() -> None:
    it = World(users=2)
    for user in (b"a", b"b", b"a", b"c"):
        it.acts(user)
        it.later(1)
    it.later()
    assert it.due() == [b"a", b"c"]
    assert len(it.active) == 2


def test_switched_off_nobody_is_kept() -> None:
    it = World(rate=0.0)
    it.acts(b"a")
    assert len(it.active) == 0


def test_what_is_read_is_not_newer_than_what_was_ranked_meanwhile() -> None:
    it = World()
    it.acts(b"before", offset=9)
    old = record(it.clock.now - 50, offset=1)
    terms = it.active.unfilled(OWNED)
    it.acts(b"ranked", b"gone", offset=9)
    it.active.gone([b"gone"])
    for user in (b"before", b"ranked", b"gone", b"idle", b"faded"):
        it.active.read(user, 0, old)
    it.active.read(b"faded", 0, None)
    it.active.filled(terms)
    assert it.active.unfilled(OWNED) == {}
    it.later()
    found = it.active.due(100, OWNED)
    assert list(found) == [b"idle", b"before", b"ranked"]
    assert {user: int(one.record.header["offset"]) for user, one in found.items()} == {
        b"idle": 1,
        b"before": 9,
        b"ranked": 9,
    }


@pytest.mark.parametrize("again", [False, True])
def test_a_partition_that_goes_while_it_is_read_is_read_anew(again: bool) -> None:
    it = World()
    terms = it.active.unfilled(OWNED)
    it.active.read(b"a", 0, record(it.clock.now))
    it.active.forget(0)
    it.active.read(b"b", 1, record(it.clock.now))
    it.active.filled(terms)
    it.later()
    assert it.due() == [b"b"]
    assert it.active.unfilled(OWNED) == {0: 1}
    if again:
        it.active.filled({0: 1})
        assert it.active.unfilled(OWNED) == {}


def test_reading_is_bounded_and_keeps_those_who_stand_last() -> None:
    it = World(users=3)
    terms = it.active.unfilled(OWNED)
    for number in range(10):
        it.active.read(b"%d" % number, 0, record(it.clock.now - 100 + number))
    it.active.filled(terms)
    it.later()
    assert it.due() == [b"7", b"8", b"9"]
