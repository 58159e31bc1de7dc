"""The ledger: never "unchanged" by mistake, and nobody overlooked."""

from __future__ import annotations

import asyncio
import random

import pytest

from stream_app.recommendations.ledger import SlateLedger
from stream_app.settings import build

OWNED = {0, 1}


def ledger(users: int = 100, places: int = 3) -> SlateLedger:
    tree = {"recommendations": {"remembered_users": users}, "ranking": {"slate_size": places}}
    return SlateLedger(build(tree))


def naming(of: SlateLedger, *contents: int) -> dict[bytes, int]:
    return asyncio.run(of.naming(contents))


def filled(of: SlateLedger, *slates: tuple[bytes, int, tuple[int, list[int]] | None]) -> None:
    terms = of.unfilled(OWNED)
    for user, partition, slate in slates:
        of.fill(terms, user, partition, slate)
    of.filled(terms)


def test_only_the_same_slate_in_the_same_partition_is_unchanged() -> None:
    it = ledger()
    it.note(b"a", 0, 11, [1, 2, 3])
    assert it.unchanged(b"a", 0, 11)
    assert not it.unchanged(b"a", 0, 12)
    assert not it.unchanged(b"a", 1, 11)
    assert not it.unchanged(b"b", 0, 11)


def test_what_is_being_read_may_be_older_than_what_stands_there() -> None:
    it = ledger()
    terms = it.unfilled(OWNED)
    it.fill(terms, b"a", 0, (11, [1]))
    assert not it.unchanged(b"a", 0, 11)
    it.fill(terms, b"a", 0, (12, [2]))
    it.filled(terms)
    assert it.unchanged(b"a", 0, 12)
    assert it.unfilled(OWNED) == {}


def test_reading_does_not_overwrite_what_was_published_since() -> None:
    it = ledger()
    terms = it.unfilled(OWNED)
    it.note(b"a", 0, 12, [2])
    it.withdraw(b"b", 0)
    it.fill(terms, b"a", 0, (11, [1]))
    it.fill(terms, b"b", 0, (11, [1]))
    assert it.filled(terms) == OWNED
    assert it.unchanged(b"a", 0, 12)
    assert not it.unchanged(b"b", 0, 11)
    assert naming(it, 1) == {}
    assert len(it) == 1


def test_others_users_and_withdrawn_slates_are_left_out() -> None:
    it = ledger()
    filled(it, (b"a", 0, (1, [5])), (b"theirs", 7, (1, [5])), (b"b", 1, (1, [5])), (b"b", 1, None))
    assert naming(it, 5) == {b"a": 0}


def test_a_partition_that_went_and_came_back_knows_nothing() -> None:
    it = ledger()
    filled(it, (b"a", 0, (11, [1])), (b"b", 1, (11, [1])))
    it.note(b"c", 0, 11, [1])
    terms = it.unfilled({0})
    it.forget(0)
    assert naming(it, 1) == {b"b": 1}
    assert not it.unchanged(b"a", 0, 11)
    assert not it.unchanged(b"c", 0, 11)
    assert it.unchanged(b"b", 1, 11)
    # a reading of the former term says nothing about this one
    terms = it.unfilled({0})
    it.forget(0)
    it.fill(terms, b"a", 0, (11, [1]))
    assert it.filled(terms) == set()
    assert naming(it, 1) == {b"b": 1}
    assert it.unfilled(OWNED).keys() == {0}


def test_whoever_is_forgotten_for_want_of_room_makes_the_partition_incomplete() -> None:
    it = ledger(users=2)
    filled(it)
    it.note(b"a", 0, 1, [1])
    it.note(b"b", 1, 1, [1])
    it.note(b"a", 0, 1, [1])
    assert it.incomplete == set()
    it.note(b"c", 0, 1, [1])  # b was published longest ago
    assert it.incomplete == {1}
    assert naming(it, 1) == {b"a": 0, b"c": 0}
    it.forget(1)
    assert it.incomplete == set()


def test_what_gave_way_while_the_topic_is_read_is_not_read_again() -> None:
    it = ledger(users=2)
    terms = it.unfilled(OWNED)
    it.withdraw(b"a", 0)
    it.note(b"b", 1, 1, [1])
    it.note(b"c", 1, 1, [1])  # the withdrawal gives way
    it.withdraw(b"c", 1)
    it.fill(terms, b"a", 0, (1, [1]))
    it.filled(terms)
    it.note(b"d", 1, 1, [1])
    assert not it.unchanged(b"a", 0, 1)
    assert 0 in it.incomplete


def test_reading_more_users_than_there_is_room_for_is_noticed() -> None:
    it = ledger(users=2)
    filled(it, *((b"u%d" % n, n % 2, (1, [1])) for n in range(3)))
    assert len(it) == 2
    assert it.incomplete == {0}


def test_longer_slates_of_a_former_configuration_are_searched_on_the_topic() -> None:
    it = ledger(places=2)
    filled(it, (b"a", 1, (1, [1, 2, 3])))
    assert naming(it, 1) == {b"a": 1}
    assert it.incomplete == {1}


def test_whoever_gets_a_slate_is_no_longer_outdated() -> None:
    it = ledger()
    filled(it)
    it.outdated = {b"a": 0, b"b": 0, b"c": 1, b"d": 0}
    it.note(b"a", 0, 1, [1])
    it.withdraw(b"b", 0)
    it.forget(1)
    assert it.outdated == {b"d": 0}


@pytest.mark.parametrize("seed", range(5))
def test_against_a_dictionary(seed: int) -> None:
    rng = random.Random(seed)
    it, expected = ledger(users=40), dict[bytes, tuple[int, int, list[int]]]()
    filled(it)
    for _ in range(2_000):
        number = rng.randrange(40)
        user, partition = b"u%d" % number, number % 2
        match rng.randrange(8):
            case 0:
                it.withdraw(user, partition)
                expected.pop(user, None)
            case 1 if rng.random() < 0.05:
                it.forget(partition)
                expected = {u: e for u, e in expected.items() if e[0] != partition}
                it.filled(it.unfilled(OWNED))
            case _:
                contents = rng.sample(range(1, 30), rng.randrange(4))
                it.note(user, partition, hash(tuple(contents)) & 0xFFFF | 1, contents)
                expected[user] = (partition, hash(tuple(contents)) & 0xFFFF | 1, contents)
        wanted = set(rng.sample(range(1, 30), 2))
        if rng.random() < 0.05:
            found = {user: e[0] for user, e in expected.items() if wanted & set(e[2])}
            assert naming(it, *wanted) == found
    assert len(it) == len(expected)
    assert all(it.unchanged(user, p, mark) for user, (p, mark, _) in expected.items())
    assert it.incomplete == set()
