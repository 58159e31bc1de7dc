"""Makes the state anew from the events that are still there.

Of each partition, with a claim of our own on its inputs, so that whoever still holds it is refused:

1. one transaction sets accounts and positions back, and says that a rebuild has begun: from here on no worker
   serves the partition;
2. every user and every content's counts are deleted, in as many transactions as it takes;
3. one transaction says that this is done.

A crash before 1 leaves everything as it was; one after it is got over by doing all of it again. Receipts of
erasures, and with them the fences, stay: what was erased does not come back.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from stream_app.errors import RecordFormatError
from stream_app.events.named import user_in
from stream_app.hashing import key64
from stream_app.interests.owners import earlier_owners, written_topics
from stream_app.interests.record import decode
from stream_app.interests.statistics_record import (
    NOT_ROUTED,
    OUTCOMES_KEY,
    RESERVED,
    Outcomes,
    RouterStanding,
    routed_by,
    router_key,
)
from stream_app.kafka.admin import topic_states
from stream_app.kafka.empty_group import EmptyGroup
from stream_app.kafka.inputs import inputs
from stream_app.kafka.once import read_once
from stream_app.kafka.records import KeyedRecord, Partition, Record
from stream_app.kafka.shared import Share, SharedTransactions
from stream_app.kafka.transactions import Output, split
from stream_app.settings import Settings
from stream_app.topics import copy_topics

Progress = Callable[[str], None]


@dataclass(slots=True)
class Loss:
    """What the state has, and what the events that are still there make of it."""

    users: int = 0
    interactions: int = 0
    """Interactions that the users' records have counted."""
    events: int = 0
    """Records that the event topics still hold."""
    expired: int = 0
    """Offsets that have left them."""
    users_lost: int = 0
    """Users none of whose events is left."""
    interactions_lost: int = 0
    """Interactions, at least, whose events are not there any more."""
    retries: int = 0
    """Copies of events that wait to be tried again, or on their way to their users, and are skipped."""


async def loss(settings: Settings, progress: Progress = lambda _: None) -> Loss:
    """Read the whole state, and all events. Raises a KafkaError."""
    found, recorded, left = Loss(), Counter[int](), Counter[int]()

    async def take_users(records: Sequence[KeyedRecord]) -> None:
        for record in records:
            user = key64(record.key)
            try:
                recorded[user] = 0 if record.value is None else int(decode(record.value).header["total"])
            except RecordFormatError:
                recorded[user] = 0

    async def take_events(records: Sequence[Record]) -> None:
        for record in records:
            if (user := user_in(record.value or b"")) is not None:
                left[key64(user)] += 1

    await read_once(settings, settings.topic_name("interests"), take_users)
    progress(f"read {len(recorded):,} users")
    events = [settings.topic_name(action.topic) for action in settings.events.actions]
    for topic in events:
        count = await read_once(settings, topic, take_events)
        found.events += count
        progress(f"{topic}: read {count:,} records")
    states = await asyncio.to_thread(topic_states, settings)
    counts = {state.topic.name: state.partitions for state in states}
    there = await inputs(settings, [Partition(topic, p) for topic in events for p in range(counts[topic])])
    found.expired = sum(bounds.first for _, bounds in there.values())
    users = +recorded
    found.users, found.interactions = len(users), users.total()
    found.users_lost = sum(user not in left for user in users)
    found.interactions_lost = (users - left).total()
    found.retries = await _waiting(settings)
    return found


async def _waiting(settings: Settings) -> int:
    waiting, partitions = 0, range(settings.kafka.partitions)
    reached = {p: (await _kept(settings, p)).account.positions for p in partitions}

    async def count(records: Sequence[Record]) -> None:
        nonlocal waiting
        waiting += sum(r.offset >= reached[r.partition].get(r.topic, (0, ""))[0] for r in records)

    for topic in copy_topics(settings):
        await read_once(settings, topic, count, partitions)
    return waiting


async def rebuild(settings: Settings, partition: int, progress: Progress = lambda _: None) -> None:
    """Set one partition back to the beginning. Raises FencedError, TransactionError, a KafkaError."""
    name, group = settings.topic_name, settings.group("interests")
    topics = [*(name(action.topic) for action in settings.events.actions), *copy_topics(settings)]
    transactions = SharedTransactions(
        settings, group, "rebuild", written_topics(settings), lambda: EmptyGroup(settings, group)
    )
    try:
        await transactions.assigned(None)
        own = tuple(Partition(topic, partition) for topic in topics)
        share = Share(transactions, own, earlier_owners(settings, own))
        await share.claim()
        kept = await _kept(settings, partition)
        routed = tuple(Partition(*source) for source in kept.routers if source[1] != partition)
        if routed:  # who routes them writes to our partition, too
            await Share(transactions, routed, earlier_owners(settings, routed)).claim()
            kept = await _kept(settings, partition)
        account = await _set_back(settings, partition, kept)
        routers = await _routers_set_back(settings, partition, kept)
        offsets = {Partition(topic, partition): at for topic, (at, _) in account.positions.items()}
        ids = {topic: of for topic, (_, of) in account.positions.items()}
        begun = msgspec.structs.replace(account, rebuilding=True)
        await share.commit([_output(settings, partition, begun), *routers], offsets, ids)  # 1.
        for topic in (name("interests"), name("content-stats")):  # 2.
            keys = await _keys(settings, topic, partition)
            for part in split(
                (Output(topic, partition, key, None) for key in keys), settings.kafka.transaction_max_bytes
            ):
                await share.commit(part, {}, ids)
            progress(f"{topic}[{partition}]: {len(keys):,} records deleted")
        await share.commit([_output(settings, partition, account)], offsets, ids)  # 3.
        await transactions.release()
    finally:
        await transactions.close()


def _output(settings: Settings, partition: int, account: Outcomes) -> Output:
    value = msgspec.json.encode(account)
    return Output(settings.topic_name("content-stats"), partition, OUTCOMES_KEY, value)


@dataclass(slots=True)
class _Kept:
    """What stands on ``content-stats`` of a partition beside the counts."""

    account: Outcomes = field(default_factory=Outcomes)
    routers: dict[tuple[str, int], RouterStanding] = field(default_factory=dict)
    """By topic and partition."""


async def _kept(settings: Settings, partition: int) -> _Kept:
    kept = _Kept()

    async def take(records: Sequence[KeyedRecord]) -> None:
        for record in records:
            if record.value is None:
                continue
            if record.key == OUTCOMES_KEY:
                kept.account = msgspec.json.decode(record.value, type=Outcomes)
            elif (source := routed_by(record.key)) is not None:
                kept.routers[source] = msgspec.json.decode(record.value, type=RouterStanding)

    await read_once(settings, settings.topic_name("content-stats"), take, [partition])
    return kept


async def _set_back(settings: Settings, partition: int, kept: _Kept) -> Outcomes:
    """The account of a partition that has read nothing but requests for erasure. Copies of events are
    skipped: reading the events again makes them again."""
    again = {settings.topic_name(action.topic) for action in settings.events.actions}
    positions = dict(kept.account.positions)
    there = await inputs(
        settings, [Partition(topic, partition) for topic in (*again, *copy_topics(settings))]
    )
    for tp, (topic, bounds) in there.items():
        positions[tp.topic] = bounds.first if tp.topic in again else bounds.end, topic
    return Outcomes(positions=positions, settings=kept.account.settings)


async def _routers_set_back(settings: Settings, partition: int, kept: _Kept) -> list[Output]:
    """Standings of routers that have read nothing."""
    there = await inputs(settings, [Partition(*source) for source in kept.routers])
    made = []
    for (topic, number), before in kept.routers.items():
        standing = RouterStanding()
        if before.offset != NOT_ROUTED and (found := there.get(Partition(topic, number))) is not None:
            standing = RouterStanding(found[1].first, found[0])
        value = msgspec.json.encode(standing)
        made.append(Output(settings.topic_name("content-stats"), partition, router_key(topic, number), value))
    return made


async def _keys(settings: Settings, topic: str, partition: int) -> list[bytes]:
    """Keys of what has not been deleted; reserved ones are left out."""
    found: dict[bytes, bool] = {}

    async def take(records: Sequence[KeyedRecord]) -> None:
        found.update((record.key, record.value is not None) for record in records)

    await read_once(settings, topic, take, [partition])
    return [key for key, there in found.items() if there and not key.startswith(RESERVED)]
