"""Removing copies: exactly those of the erased users go, and no crash or rival costs or doubles a letter."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter

import pytest

from stream_app.errors import BrokerUnavailableError
from stream_app.hashing import key64
from stream_app.interests import sweep as sweep_module
from stream_app.interests.receipts import Removed
from stream_app.interests.sweep import LATER, CopySweep
from stream_app.kafka import changelog, clients
from stream_app.kafka.admin import committed_offset, delete_records
from stream_app.settings import Settings
from tests.erasure.erasing import NEIGHBOUR, VICTIM, beginnings, letters, topics_naming
from tests.interests.workers import wait_until

NOBODY: dict[str, int | None] = {}


@pytest.fixture
def filled(settings: Settings, topics: list[str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Sixty dead letters in two partitions, some of the victim's, read and rewritten by sevens."""
    monkeypatch.setattr(changelog, "BATCH_RECORDS", 7)
    with clients.producer(settings) as producer:
        for number in range(60):
            user = VICTIM if number % 6 == 0 else NEIGHBOUR
            key: bytes | None = user.encode()
            value: bytes | None = json.dumps({"user_id": user, "n": number}).encode()
            if number % 12 == 6:
                key = None  # only the value names the user
            elif number % 4 == 0:
                value = b"not JSON"  # only the key does
            if number == 59:
                key, value = b"k", None
            headers = [("stream-app-offset", b"%d" % number), ("theirs", b"\x00\xff")]
            producer.send(
                settings.topic_name("events-dlq"), key=key, value=value, headers=headers, partition=number % 2
            )
    wait_until(lambda: coordinated(settings), "the broker to keep offsets: on a fresh one it takes a moment")
    return settings


def coordinated(settings: Settings) -> bool:
    try:
        return committed_offset(settings, "anybody", settings.topic_name("events-dlq"), 0) == 0
    except BrokerUnavailableError:
        return False


def sweep_once(settings: Settings, *users: str) -> dict[int, Removed]:
    done = asyncio.run(CopySweep(settings).sweep({0: [key64(u) for u in users]}, {0: NOBODY}))
    return done[0]


def survivors(settings: Settings) -> list[tuple[int, bytes | None, bytes | None, dict[str, bytes]]]:
    """What may stay of the letters as they stand now."""
    name = VICTIM.encode()
    return [one for one in letters(settings) if name not in (one[1] or b"") and name not in (one[2] or b"")]


def test_letters_of_others_stay_as_they_are_and_in_order(filled: Settings) -> None:
    stay = survivors(filled)
    assert len(stay) == 50
    assert sweep_once(filled, VICTIM) == {key64(VICTIM): Removed(dead_letters=10)}
    assert letters(filled) == stay
    assert topics_naming(filled, VICTIM) == Counter()
    before = beginnings(filled, "events-dlq")
    assert sweep_once(filled, VICTIM) == {key64(VICTIM): Removed()}
    assert beginnings(filled, "events-dlq") == before, (
        "where there is nothing to remove, nothing is rewritten"
    )


@pytest.mark.parametrize("call", [1, 2, 3, 5])
def test_a_crash_between_rewriting_and_deleting_neither_loses_nor_doubles_a_letter(
    filled: Settings, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    stay = survivors(filled)
    calls = 0

    def failing(settings: Settings, before: dict[tuple[str, int], int]) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise BrokerUnavailableError("killed here")
        delete_records(settings, before)

    monkeypatch.setattr(sweep_module, "delete_records", failing)
    with pytest.raises(BrokerUnavailableError):
        sweep_once(filled, VICTIM)
    seen = [headers["stream-app-offset"] for *_, headers in letters(filled)]
    assert {headers["stream-app-offset"] for *_, headers in stay} <= set(seen)
    assert len(seen) > len(set(seen)), "a chunk stands twice: this is the moment that is meant"
    sweep_once(filled, VICTIM)
    assert sorted(letters(filled), key=repr) == sorted(stay, key=repr)
    assert topics_naming(filled, VICTIM) == Counter()


def test_rivals_fence_each_other_and_the_letters_stay_whole(filled: Settings) -> None:
    stay = survivors(filled)

    async def race() -> list[object]:
        sweeps = [CopySweep(filled) for _ in range(3)]
        users = {0: [key64(VICTIM)]}
        return await asyncio.gather(*(s.sweep(users, {0: NOBODY}) for s in sweeps), return_exceptions=True)

    for outcome in asyncio.run(race()):
        assert isinstance(outcome, (dict, *LATER)), outcome
    sweep_once(filled, VICTIM)
    assert sorted(letters(filled), key=repr) == sorted(stay, key=repr)


DAY_MS = 86_400_000
NOW_MS = time.time_ns() // 1_000_000


def write_letters(settings: Settings, *letters: tuple[str, float]) -> None:
    """Dead letters in partition 0: whose, and how many days ago they were written, by their header."""
    with clients.producer(settings, linger_ms=0) as producer:
        for number, (user, days) in enumerate(letters):
            written = b"%d" % (NOW_MS - int(days * DAY_MS))
            headers = [("stream-app-time", written), ("stream-app-offset", b"%d" % number)]
            topic = settings.topic_name("events-dlq")
            producer.send(topic, key=user.encode(), value=b"%g" % days, headers=headers, partition=0).get(10)


def ages(settings: Settings) -> list[bytes | None]:
    """Of the letters that stand in partition 0, in their order."""
    return [value for partition, _, value, _ in letters(settings) if partition == 0]


def test_letters_that_move_expire_by_their_own_time(filled: Settings) -> None:
    """Retention is seven days. To the broker a letter that has moved is as good as new."""
    delete_records(filled, {(filled.topic_name("events-dlq"), p): 30 for p in range(2)})
    write_letters(filled, (NEIGHBOUR, 8), (NEIGHBOUR, 6.9), (VICTIM, 6.5), (NEIGHBOUR, 3), (NEIGHBOUR, 0))
    sweep_once(filled, VICTIM)
    assert ages(filled) == [b"6.9", b"3", b"0"], "what is past its time does not move"

    def expire(days: float) -> list[bytes | None]:
        later = NOW_MS + int(days * DAY_MS)
        asyncio.run(CopySweep(filled, now_ms=lambda: later).expire(range(2)))
        return ages(filled)

    assert expire(0) == [b"6.9", b"3", b"0"]
    assert expire(0.2) == [b"3", b"0"]
    write_letters(filled, (NEIGHBOUR, -1), (NEIGHBOUR, 2))  # the younger was written while the other moved
    assert expire(0.2) == [b"3", b"0", b"-1", b"2"]
    assert expire(5.1) == [b"0", b"-1"], "also what stands behind younger ones"
    assert expire(7.1) == []


def test_what_never_moved_is_left_to_the_brokers_retention(filled: Settings) -> None:
    stay = letters(filled)
    asyncio.run(CopySweep(filled, now_ms=lambda: NOW_MS + 30 * DAY_MS).expire(range(2)))
    assert letters(filled) == stay


@pytest.mark.parametrize("name", ["events-retry", "events-routed"])
def test_a_copy_that_waits_holds_the_sweep_up_and_consumed_ones_go(
    settings: Settings, topics: list[str], name: str
) -> None:
    topic = settings.topic_name(name)
    with clients.producer(settings) as producer:
        for user in (VICTIM, NEIGHBOUR, VICTIM, NEIGHBOUR):
            producer.send(topic, key=user.encode(), value=b"{}", partition=1)
    users = [key64(VICTIM), key64("someone")]
    sweep = CopySweep(settings)

    def swept(consumed: int | None) -> dict[int, Removed]:
        return asyncio.run(sweep.sweep({1: users}, {1: {topic: consumed}}))[1]

    assert swept(None) == {key64("someone"): Removed()}
    assert swept(2) == {key64("someone"): Removed()}
    with clients.producer(settings) as producer:  # the user came back, and this is of the time after
        producer.send(topic, key=VICTIM.encode(), value=b"{}", partition=1)
    assert swept(3) == {key64("someone"): Removed(), key64(VICTIM): Removed(retries=1)}
    assert beginnings(settings, name) == [0, 3]
    assert topics_naming(settings, VICTIM) == Counter({name: 1})
