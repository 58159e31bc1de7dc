"""Erasure in one partition, step by step: what a request causes, what is refused, what a crash leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import ConsumerRecord
from prometheus_client import REGISTRY

from stream_app.content.index import ContentIndex
from stream_app.events.dead_letters import Origin, retry
from stream_app.hashing import key64
from stream_app.interests.receipts import Removed
from stream_app.kafka.records import RecordBatch
from stream_app.replay.accounting import read_outcomes
from stream_app.settings import Settings
from tests.erasure.erasing import NEIGHBOUR, VICTIM, letters, receipt_of, receipts
from tests.interests.test_partition import Owner, small, users_on_disk
from tests.interests.workers import DAY_MS, NOW_MS, states

LATER_MS = NOW_MS + 60_000


def request(offset: int, user: str, key: bytes | None = None, **fields: Any) -> ConsumerRecord:
    """A request that arrived a minute after the events."""
    text = json.dumps({"user_id": user, **fields}).encode()
    return raw_request(offset, key if key is not None else user.encode(), text)


def raw_request(offset: int, key: bytes | None, text: bytes | None) -> ConsumerRecord:
    return ConsumerRecord("erasures", 0, offset, LATER_MS, 1, key, text, None, 0, 0, ())


async def erase(owner: Owner, *requests: ConsumerRecord) -> None:
    start = requests[0].offset
    batch = RecordBatch(owner.settings.topic_name("erasures"), 0, start, list(requests))
    await owner.partition.erase(batch)


def live(
    settings: Settings, directory: Path, life: Callable[[Owner], Awaitable[None]], read: int = 0
) -> None:
    """One owner's life; ``read`` events have been read before."""
    owner = Owner(settings, directory)

    async def whole() -> None:
        await owner.open(committed=read)
        try:
            await life(owner)
        finally:
            await owner.close()

    asyncio.run(whole())


def asked(result: str) -> float:
    """Requests counted so far."""
    return REGISTRY.get_sample_value("stream_app_erasures_total", {"result": result}) or 0.0


def dead_lettered(reason: str) -> float:
    """Letters counted so far."""
    return REGISTRY.get_sample_value("stream_app_dead_letters_total", {"reason": reason}) or 0.0


@pytest.fixture
def world(settings: Settings, topics: list[str]) -> Settings:
    return small(settings)


def test_a_request_takes_the_record_away_everywhere(world: Settings, tmp_path: Path) -> None:
    async def life(owner: Owner) -> None:
        await owner.partition.handle(owner.batch(0, VICTIM, NEIGHBOUR, VICTIM))
        await erase(owner, request(0, VICTIM))
        assert not owner.partition.lost
        slab = owner.partition._slab
        assert set(slab.index) == {NEIGHBOUR.encode()}
        assert VICTIM.encode() not in slab.users

    live(world, tmp_path / "a", life)
    assert states(world).keys() == {NEIGHBOUR.encode()}
    assert users_on_disk(tmp_path / "a") == {NEIGHBOUR.encode()}
    receipt = receipt_of(world, VICTIM)
    assert receipt is not None
    assert receipt.removed == Removed(records=1, interactions=2)
    assert (receipt.requested_at, receipt.fence, receipt.request_offset) == (LATER_MS, LATER_MS, 0)
    assert receipt.swept_at is None
    assert VICTIM.encode() not in msgspec.json.encode(receipt)


@pytest.mark.parametrize("same_batch", [True, False])
def test_the_same_request_twice_is_one_erasure(world: Settings, tmp_path: Path, same_batch: bool) -> None:
    async def life(owner: Owner) -> None:
        await owner.partition.handle(owner.batch(0, VICTIM))
        if same_batch:
            await erase(owner, request(0, VICTIM), request(1, VICTIM))
        else:
            await erase(owner, request(0, VICTIM))
            await erase(owner, request(1, VICTIM))

    live(world, tmp_path / "a", life)
    receipt = receipt_of(world, VICTIM)
    assert receipt is not None
    assert receipt.removed == Removed(records=1, interactions=1), "nothing was found the second time"
    assert (receipt.fence, receipt.request_offset) == (LATER_MS, 1)


def test_an_unknown_user_gets_a_receipt_and_a_fence(world: Settings, tmp_path: Path) -> None:
    async def life(owner: Owner) -> None:
        await erase(owner, request(0, VICTIM))
        await owner.partition.handle(owner.batch(0, VICTIM))

    live(world, tmp_path / "a", life)
    receipt = receipt_of(world, VICTIM)
    assert receipt is not None
    assert receipt.removed == Removed()
    assert not states(world)
    assert read_outcomes(world).dead_lettered == 1


@pytest.mark.parametrize(
    ("requested_at", "fence"),
    [
        (NOW_MS - 900 * DAY_MS, NOW_MS),  # what was recorded is gone, whenever it was asked for
        (NOW_MS + 5, NOW_MS + 5),
        ("2025-06-15T15:06:41Z", NOW_MS + 1_000),
        (LATER_MS + 300_000, LATER_MS + 300_000),
        (None, LATER_MS),
    ],
)
def test_the_fence_is_the_requests_time_or_that_of_the_newest_event_erased(
    world: Settings, tmp_path: Path, requested_at: int | str | None, fence: int
) -> None:
    async def life(owner: Owner) -> None:
        await owner.partition.handle(owner.batch(0, VICTIM))
        await erase(owner, request(0, VICTIM, requested_at=requested_at))

    live(world, tmp_path / "a", life)
    receipt = receipt_of(world, VICTIM)
    assert receipt is not None
    assert receipt.fence == fence


BAD_REQUESTS = [
    (raw_request(0, b"u", None), b"empty"),
    (raw_request(0, b"u", b"{"), b"malformed_json"),
    (raw_request(0, b"u", b"{}"), b"missing_field"),
    (raw_request(0, b"u", b'{"user_id": 5}'), b"bad_type"),
    (raw_request(0, b"u", b'{"user_id": "u", "x": "\xff"}'), b"invalid_utf8"),
    (raw_request(0, b"u", b'{"user_id": "u"}' + b" " * 70_000), b"oversized"),
    (request(0, "u\x07"), b"invalid_id"),
    (request(0, "u" * 300), b"invalid_id"),
    (request(0, "u", requested_at="yesterday"), b"bad_timestamp"),
    (request(0, "u", requested_at=LATER_MS + 300_001), b"timestamp_in_future"),
    (request(0, "u", requested_at=LATER_MS // 1000), b"too_old"),  # seconds
    (request(0, "u", requested_at=1 << 70), b"timestamp_in_future"),
]


def test_bad_requests_are_dead_letters_and_cost_their_neighbours_nothing(
    world: Settings, tmp_path: Path
) -> None:
    records = []
    for offset, (bad, _) in enumerate(BAD_REQUESTS):
        records.append(
            ConsumerRecord(**{f: getattr(bad, f) for f in bad.__dataclass_fields__} | {"offset": offset})
        )

    async def life(owner: Owner) -> None:
        await erase(owner, *records, request(len(records), VICTIM))

    erased, rejected, malformed = asked("erased"), asked("rejected"), dead_lettered("malformed_json")
    live(world, tmp_path / "a", life)
    assert asked("rejected") - rejected == len(BAD_REQUESTS)
    assert asked("erased") - erased == 1
    assert dead_lettered("malformed_json") - malformed == 1
    found = {
        int(headers["stream-app-offset"]): headers["stream-app-reason"] for *_, headers in letters(world)
    }
    assert found == {offset: reason for offset, (_, reason) in enumerate(BAD_REQUESTS)}
    assert receipts(world).keys() == {key64(VICTIM)}
    assert read_outcomes(world).accounted == 0, "the accounts are of events"


def test_a_retry_of_before_is_refused_when_it_is_due(world: Settings, tmp_path: Path) -> None:
    async def life(owner: Owner) -> None:
        event = owner.batch(0, VICTIM).records[0]
        await erase(owner, request(0, VICTIM))
        key, text, headers = retry(event, Origin(owner.topic, 0, 0, NOW_MS, 0, 0), NOW_MS, NOW_MS)
        topic = owner.settings.topic_name("events-retry")
        record = ConsumerRecord(topic, 0, 0, LATER_MS + 1, 1, key, text, None, 0, 0, tuple(headers))
        await owner.partition.handle(RecordBatch(topic, 0, 0, [record]))

    live(world, tmp_path / "a", life)
    assert not states(world)
    ((_, key, text, headers),) = letters(world)
    assert (key, text, headers["stream-app-reason"]) == (None, None, b"erased")
    assert headers["stream-app-topic"] == world.topic_name("likes").encode()


def test_the_next_owner_knows_the_fence_even_when_the_old_one_was_killed(
    world: Settings, tmp_path: Path
) -> None:
    async def first(owner: Owner) -> None:
        await owner.partition.handle(owner.batch(0, VICTIM, NEIGHBOUR))
        await owner.partition.flush()
        await erase(owner, request(0, VICTIM))
        # killed between the transaction and its own disk: the disk still has the user
        owner.partition.lost = True
        owner.partition._state.store.write(  # type: ignore[union-attr]
            [(VICTIM.encode(), b"left")], owner.partition._position - 4
        )

    async def next_one(owner: Owner, read: int) -> None:
        assert users_of(owner) == {NEIGHBOUR.encode()}
        await owner.partition.handle(owner.batch(read, VICTIM, NEIGHBOUR))

    live(world, tmp_path / "a", first)
    assert VICTIM.encode() in users_on_disk(tmp_path / "a")
    for number, directory in enumerate(("a", "elsewhere")):
        read = 2 + 2 * number
        live(world, tmp_path / directory, partial(next_one, read=read), read=read)
        assert states(world).keys() == {NEIGHBOUR.encode()}
        assert read_outcomes(world).dead_lettered == number + 1


def users_of(owner: Owner) -> set[bytes]:
    state = owner.partition._state
    assert state is not None
    return {user for user, _ in state.store.scan(b"", 100)}


def test_fences_that_are_no_longer_needed_go(world: Settings, tmp_path: Path) -> None:
    """Older than events may be; or more of them than are remembered. Never one that waits for its sweep."""
    interests = msgspec.structs.replace(world.interests, fences=2)
    world = msgspec.structs.replace(world, interests=interests)
    users = ["old", "unswept", "b", "c", "d"]
    times = [NOW_MS - 401 * DAY_MS, NOW_MS - 402 * DAY_MS, *(NOW_MS - n for n in (3, 2, 1))]

    async def life(owner: Owner) -> None:
        await erase(
            owner,
            *(request(n, u, requested_at=t) for n, (u, t) in enumerate(zip(users, times, strict=True))),
        )
        gone = {user: Removed() for user in map(key64, users) if user != key64("unswept")}
        await owner.partition.swept(gone, owner.partition.unswept)
        assert owner.partition.unswept.keys() == {key64("unswept")}
        await owner.partition.handle(owner.batch(0, NEIGHBOUR))  # there is a stream time now
        await owner.partition.expire(ContentIndex(owner.settings, "m"))

    live(world, tmp_path / "a", life)
    assert receipts(world).keys() == {key64(user) for user in ("unswept", "d")}


def test_who_is_asked_for_again_during_a_sweep_is_swept_again(world: Settings, tmp_path: Path) -> None:
    async def life(owner: Owner) -> None:
        await erase(owner, request(0, VICTIM))
        asked = owner.partition.unswept
        await erase(owner, request(1, VICTIM))
        await owner.partition.swept({key64(VICTIM): Removed(dead_letters=1)}, asked)
        assert owner.partition.unswept == {key64(VICTIM): 1}
        await owner.partition.swept({key64(VICTIM): Removed(dead_letters=2)}, owner.partition.unswept)
        assert not owner.partition.unswept

    live(world, tmp_path / "a", life)
    receipt = receipt_of(world, VICTIM)
    assert receipt is not None
    assert receipt.removed.dead_letters == 2


def test_a_fenced_owner_erases_nothing(world: Settings, tmp_path: Path) -> None:
    old, new = Owner(world, tmp_path / "old"), Owner(world, tmp_path / "new")
    before = asked("erased"), asked("rejected"), dead_lettered("empty")

    async def life() -> None:
        await old.open(committed=0)
        await old.partition.handle(old.batch(0, VICTIM))
        await old.partition.settle()
        new.claims = old.claims
        await new.open(committed=1)
        await erase(old, request(0, VICTIM), raw_request(1, b"u", None))
        assert old.partition.lost
        await old.close()
        await new.close()

    asyncio.run(life())
    assert states(world).keys() == {VICTIM.encode()}
    assert not receipts(world)
    assert users_on_disk(tmp_path / "old") == {VICTIM.encode()}
    assert (asked("erased"), asked("rejected"), dead_lettered("empty")) == before


def test_requests_out_of_sequence_are_refused(world: Settings, tmp_path: Path) -> None:
    async def life(owner: Owner) -> None:
        await erase(owner, request(0, VICTIM))
        await erase(owner, request(5, NEIGHBOUR))
        assert owner.partition.lost

    live(world, tmp_path / "a", life)
    assert receipts(world).keys() == {key64(VICTIM)}
