"""Makes the state anew from the events that are still there.

Of each partition, under its owner's transactional id, so that whoever still holds it is refused:

1. one transaction sets accounts and positions back, and says that a rebuild has begun: from here on no worker
   serves the partition;
2. every user and every content's counts are deleted, in as many transactions as it takes;
3. one transaction says that this is done.

A crash before 1 leaves everything as it was; one after it is got over by doing all of it again. Receipts of
erasures, and with them the fences, stay: what was erased does not come back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import msgspec
from aiokafka import ConsumerRecord, TopicPartition
from faust.types import TP

from stream_app.errors import RecordFormatError
from stream_app.events.faults import DECODING_ERRORS
from stream_app.hashing import key64
from stream_app.interests.partition import writes
from stream_app.interests.record import decode
from stream_app.interests.statistics_record import OUTCOMES_KEY, Outcomes
from stream_app.kafka.inputs import inputs
from stream_app.kafka.once import read_once
from stream_app.kafka.transactions import Output, PartitionTransactions, split
from stream_app.settings import Settings

REPEATED = ("events-retry",)
"""Inputs that come of the events: reading these again makes them again, so they are skipped."""

Progress = Callable[[str], None]


class _Named(msgspec.Struct):
    user_id: str | None = None


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
    """Records that wait on ``events-retry`` and are skipped."""


async def loss(settings: Settings, progress: Progress = lambda _: None) -> Loss:
    """Read the whole state, and all events. Raises a KafkaError."""
    found, recorded, left = Loss(), Counter[int](), Counter[int]()
    named = msgspec.json.Decoder(_Named).decode

    async def take_users(records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            user = key64(record.key)
            try:
                recorded[user] = 0 if record.value is None else int(decode(record.value).header["total"])
            except RecordFormatError:
                recorded[user] = 0

    async def take_events(records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            try:
                user = named(record.value or b"").user_id
            except DECODING_ERRORS:
                continue
            if user is not None:
                left[key64(user.encode(errors="surrogatepass"))] += 1

    await read_once(settings, settings.topic_name("interests"), take_users)
    progress(f"read {len(recorded):,} users")
    events = [settings.topic_name(action.topic) for action in settings.events.actions]
    for topic in events:
        count = await read_once(settings, topic, take_events)
        found.events += count
        progress(f"{topic}: read {count:,} records")
    partitions = range(settings.kafka.partitions)
    there = await inputs(settings, [TP(topic, p) for topic in events for p in partitions])
    found.expired = sum(bounds.first for _, bounds in there.values())
    users = +recorded
    found.users, found.interactions = len(users), users.total()
    found.users_lost = sum(user not in left for user in users)
    found.interactions_lost = (users - left).total()
    found.retries = await _retries(settings, partitions)
    return found


async def _retries(settings: Settings, partitions: Collection[int]) -> int:
    topic, waiting = settings.topic_name("events-retry"), 0
    reached = {p: (await _account(settings, p)).positions.get(topic, (0, ""))[0] for p in partitions}

    async def count(records: Sequence[ConsumerRecord]) -> None:
        nonlocal waiting
        waiting += sum(record.offset >= reached[record.partition] for record in records)

    await read_once(settings, topic, count, partitions)
    return waiting


async def rebuild(settings: Settings, partition: int, progress: Progress = lambda _: None) -> None:
    """Set one partition back to the beginning. Raises FencedError, TransactionError, a KafkaError."""
    name = settings.topic_name
    group = settings.group("interests")
    transactions = PartitionTransactions(settings, f"{settings.kafka.app_id}-interests-{partition}", group)
    await transactions.fence(writes(settings, partition))
    try:
        account = await _set_back(settings, partition)
        offsets = {TopicPartition(topic, partition): at for topic, (at, _) in account.positions.items()}
        ids = {topic: of for topic, (_, of) in account.positions.items()}
        begun = msgspec.structs.replace(account, rebuilding=True)
        await transactions.commit([_output(settings, partition, begun)], offsets, ids)  # 1.
        for topic in (name("interests"), name("content-stats")):  # 2.
            keys = await _keys(settings, topic, partition)
            for part in split(
                (Output(topic, partition, key, None) for key in keys), settings.kafka.transaction_max_bytes
            ):
                await transactions.commit(part, {})
            progress(f"{topic}[{partition}]: {len(keys):,} records deleted")
        await transactions.commit([_output(settings, partition, account)], offsets, ids)  # 3.
    finally:
        await transactions.close()


def _output(settings: Settings, partition: int, account: Outcomes) -> Output:
    value = msgspec.json.encode(account)
    return Output(settings.topic_name("content-stats"), partition, OUTCOMES_KEY, value)


async def _set_back(settings: Settings, partition: int) -> Outcomes:
    """The account of a partition that has read nothing but requests for erasure."""
    name = settings.topic_name
    again = {name(action.topic) for action in settings.events.actions}
    skipped = {name(topic) for topic in REPEATED}
    positions = dict((await _account(settings, partition)).positions)
    there = await inputs(settings, [TP(topic, partition) for topic in again | skipped])
    for tp, (topic, bounds) in there.items():
        positions[tp.topic] = bounds.first if tp.topic in again else bounds.end, topic
    return Outcomes(positions=positions)


async def _account(settings: Settings, partition: int) -> Outcomes:
    account = Outcomes()

    async def take(records: Sequence[ConsumerRecord]) -> None:
        nonlocal account
        for record in records:
            if record.key == OUTCOMES_KEY and record.value is not None:
                account = msgspec.json.decode(record.value, type=Outcomes)

    await read_once(settings, settings.topic_name("content-stats"), take, [partition])
    return account


async def _keys(settings: Settings, topic: str, partition: int) -> list[bytes]:
    """Keys of what has not been deleted; reserved ones are left out."""
    found: dict[bytes, bool] = {}

    async def take(records: Sequence[ConsumerRecord]) -> None:
        found.update((record.key, record.value is not None) for record in records)

    await read_once(settings, topic, take, [partition])
    return [key for key, there in found.items() if there and not key.startswith(b"\x00")]
