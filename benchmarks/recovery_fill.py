"""Topics as a long-running system leaves them: many users' records, many contents with statistics."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import numpy as np
from aiokafka import AIOKafkaProducer, TopicPartition
from numpy.typing import NDArray

from stream_app.content.model import model_id
from stream_app.content.vectors import ContentVector, encode
from stream_app.hashing import action_code, model_code
from stream_app.interests.record import APPLIED
from stream_app.interests.slab import Slab
from stream_app.interests.statistics import PartitionStatistics
from stream_app.interests.update import Contributions
from stream_app.kafka.connection import aiokafka_options
from stream_app.kafka.transactions import Output, Transactions
from stream_app.settings import Settings

USERS_A_TRANSACTION = 2_000
INTERACTIONS, SEEN = 6, 10
"""What an average user's record keeps: 96 + 4·384 + 32·6 + 8·10 = 1,904 bytes."""
AUTHORS = 5_000
NEWEST_MS = 1_750_000_000_000
DAY_MS = 86_400_000


async def fill_users(settings: Settings, users: int) -> int:
    """Write ``users`` records to the changelog in transactions of the worker's own producer.

    Returns the bytes of one record.
    """
    partitions = settings.kafka.partitions
    sizes = await asyncio.gather(
        *(_fill_partition(settings, p, range(p, users, partitions)) for p in range(partitions))
    )
    return max(sizes)


async def _fill_partition(settings: Settings, partition: int, users: range) -> int:
    slab = random_rows(settings, seed=partition)
    rows = np.arange(slab.capacity)
    transactional_id = f"{settings.kafka.app_id}-interests-{partition}"
    transactions = Transactions(settings, transactional_id, settings.group("interests"))
    topic, size = settings.topic_name("interests"), 0
    await transactions.fence([TopicPartition(topic, partition)])
    for first in range(0, len(users), slab.capacity):
        numbers = users[first : first + slab.capacity]
        slab.header["offset"] += 1
        slab.vector[:] = np.roll(slab.vector, 1, axis=1)
        values = slab.encode(rows[: len(numbers)])
        size = len(values[0])
        pairs = zip(numbers, values, strict=True)
        await transactions.commit([Output(topic, partition, b"user-%07d" % n, v) for n, v in pairs], {})
    await transactions.close()
    return size


def random_rows(settings: Settings, seed: int) -> Slab:
    """Rows of users with a few interactions, seeded."""
    rng = np.random.default_rng(seed)
    interests, n = settings.interests, USERS_A_TRANSACTION
    slab = Slab(
        n, settings.content.dimensions, interests.recent, interests.seen, model_code(model_id(settings))
    )
    slab.vector[:] = rng.standard_normal(slab.vector.shape, np.float32)
    header = slab.header
    header["action"] = action_code(settings.events.actions[0].name)
    header["t_ref"] = header["occurred_at"] = header["received_at"] = NEWEST_MS - rng.integers(0, DAY_MS, n)
    header["mass"] = rng.uniform(1, INTERACTIONS, n)
    header["total"] = header["live"] = INTERACTIONS
    header["seen_total"] = SEEN
    ring = slab.interactions[:, :INTERACTIONS]
    ring["content"] = rng.integers(1, 1 << 62, ring.shape)
    ring["event"] = rng.integers(1, 1 << 62, ring.shape)
    ring["time"] = NEWEST_MS - rng.integers(0, 30 * DAY_MS, ring.shape)
    ring["weight"], ring["action"], ring["state"] = 1.0, header["action"][:, None], APPLIED
    slab.seen[:, :SEEN] = rng.integers(1, 1 << 62, (n, SEEN))
    return slab


async def fill_contents(settings: Settings, contents: int) -> None:
    """Write ``contents`` vectors, and statistics of each in every user partition."""
    rng = np.random.default_rng(0)
    model, names = model_id(settings), [b"content-%07d" % n for n in range(contents)]
    async with _producer(settings) as producer:
        shared, topic = settings.kafka.shared_partitions, settings.topic_name("content-vectors")
        for p in range(shared):
            numbers = range(p, contents, shared)
            ages = rng.integers(0, 30 * DAY_MS, len(numbers))
            vectors = (
                ContentVector(model, f"author-{n % AUTHORS}", NEWEST_MS - int(age), NEWEST_MS, vector)
                for n, age, vector in zip(
                    numbers, ages, _unit_vectors(rng, len(numbers), settings.content.dimensions), strict=True
                )
            )
            await _send(
                producer, topic, p, ((names[n], encode(v)) for n, v in zip(numbers, vectors, strict=True))
            )
        codes = [action_code(action.name) for action in settings.events.actions]
        for p in range(settings.kafka.partitions):
            statistics = PartitionStatistics(p, codes, settings.interests.stats_half_lives_h)
            records = statistics.add(_engagements(rng, contents, codes), names)
            await _send(producer, settings.topic_name("content-stats"), p, iter(records))


def _unit_vectors(rng: np.random.Generator, count: int, dimensions: int) -> NDArray[np.float16]:
    vectors = rng.standard_normal((count, dimensions), np.float32)
    unit: NDArray[np.float16] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    return unit


def _engagements(rng: np.random.Generator, contents: int, codes: list[int]) -> Contributions:
    """One engagement of each content."""
    return Contributions(
        contents=np.arange(contents),
        actions=np.array(codes, np.uint16)[rng.integers(0, len(codes), contents)],
        times=NEWEST_MS - rng.integers(0, 7 * DAY_MS, contents),
        signs=np.ones(contents, np.int8),
    )


async def _send(
    producer: AIOKafkaProducer, topic: str, partition: int, records: Iterator[tuple[bytes, bytes]]
) -> None:
    builder = producer.create_batch()
    for key, value in records:
        if builder.append(key=key, value=value, timestamp=None) is None:
            await producer.send_batch(builder, topic, partition=partition)
            builder = producer.create_batch()
            builder.append(key=key, value=value, timestamp=None)
    await producer.send_batch(builder, topic, partition=partition)
    await producer.flush()


@contextlib.asynccontextmanager
async def _producer(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(**aiokafka_options(settings, "benchmark"), max_batch_size=900_000)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()
