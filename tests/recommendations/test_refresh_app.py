"""Refreshing on a real broker: users who do nothing see what has come out since, also after a restart."""

from __future__ import annotations

import asyncio
import itertools
import time

import numpy as np
import pytest
from aiokafka import AIOKafkaProducer
from prometheus_client import REGISTRY

from stream_app.content import vectors
from stream_app.content.index import ContentIndex
from stream_app.content.vectors import ContentVector
from stream_app.interests.record import HEADER
from stream_app.kafka.clients import read_topic
from stream_app.kafka.partitions import partition_of
from stream_app.observability.health import Health
from stream_app.recommendations.app import create_app
from stream_app.recommendations.slate import COLD_START_USER, decode
from stream_app.settings import Settings, build
from tests.ranking import ranking_world as world
from tests.recommendations.test_ranker_app import Subscriber, catalogue, contents, liked, run, running, send

USERS = 12


@pytest.fixture
def config(settings: Settings, topics: list[str]) -> Settings:
    """Users are due half a second after their ranking; the cold-start slate is not renewed by the clock."""
    names = ("broker", "app_id", "topic_prefix", "partitions", "shared_partitions")
    return build(
        {
            "kafka": {name: getattr(settings.kafka, name) for name in names},
            "content": {"dimensions": world.D, "capacity": 500},
            "ranking": {"device": "cpu", "refresh_after_s": 0.5, "refresh_per_s": 100.0},
            "recommendations": {"cold_start_interval_s": 3600},
        }
    )


def acted(config: Settings, index: ContentIndex, user: bytes, i: int, ago_s: float = 0.0) -> bytes:
    """The record of somebody whose event has just come, or so long ago."""
    value = bytearray(liked(config, index, i))
    header = np.frombuffer(value, HEADER, count=1)
    header["received_at"] = int(1000 * (time.time() - ago_s))
    header["partition"] = partition_of(user, config.kafka.partitions)
    return bytes(value)


async def publish_like(config: Settings, index: ContentIndex, name: bytes, as_row: int) -> None:
    """A content close to that one, of some days ago: nothing for everybody."""
    near = index.vectors[as_row] + 0.02 * np.random.default_rng(as_row).normal(size=world.D)
    one = ContentVector(
        index.model, "", world.NOW - 10 * world.DAY, 0, (near / np.linalg.norm(near)).astype(np.float16)
    )
    async with AIOKafkaProducer(bootstrap_servers=config.kafka.broker) as producer:
        await producer.send_and_wait(config.topic_name("content-vectors"), vectors.encode(one), key=name)


def refreshed() -> float:
    names = ("changed", "unchanged")
    found = [REGISTRY.get_sample_value("stream_app_slates_refreshed_total", {"outcome": n}) for n in names]
    return sum(one or 0.0 for one in found)


def shown(config: Settings) -> dict[bytes, list[list[str]]]:
    """What each user was shown, one slate after the other."""
    found: dict[bytes, list[list[str]]] = {}
    for record in read_topic(config, config.topic_name("recommendations")):
        if record.key != COLD_START_USER:
            found.setdefault(record.key, []).append(contents(decode(record.value)))
    return found


def test_who_does_nothing_sees_what_came_out_since(config: Settings) -> None:
    index, records = catalogue(config)
    users = [b"user-%d" % i for i in range(USERS)]

    async def until_refreshed(before: float) -> None:
        async with asyncio.timeout(30):
            while refreshed() < before + USERS:  # noqa: ASYNC110  # what is counted has no event
                await asyncio.sleep(0.05)

    async def scenario() -> None:
        await send(config, "content-vectors", records)
        await send(config, "interests", [(u, acted(config, index, u, i)) for i, u in enumerate(users)])
        long_ago = acted(config, index, b"long-ago", 1, ago_s=2 * 86_400)
        await send(config, "interests", [(b"long-ago", long_ago)])
        async with Subscriber(config) as subscriber:
            health = Health(config)
            async with running(create_app(config, health)):
                await subscriber.until(lambda s: len(s) == USERS + 2)
                before = refreshed()
                await publish_like(config, index, b"fits-user-3", 3)
                await subscriber.until(lambda s: "fits-user-3" in contents(s["user-3"]))
                await until_refreshed(before)
                assert not health.busy  # no event has to follow
            # and after a restart, what came out meanwhile
            before = refreshed()
            await publish_like(config, index, b"fits-user-7", 7)
            async with running(create_app(config, Health(config))):
                await subscriber.until(lambda s: "fits-user-7" in contents(s["user-7"]))
                await until_refreshed(before)
        slate = subscriber.slates["user-3"]
        assert slate is not None
        assert slate.caused_by is not None
        assert slate.caused_by.offset == 42  # the event before

    run(scenario())
    slates = shown(config)
    assert slates.keys() == {*users, b"long-ago"}
    for user, those in slates.items():
        # nobody is shown the same twice in a row; who acted too long ago keeps what they had
        assert all(a != b for a, b in itertools.pairwise(those))
        assert len(those) <= (1 if user == b"long-ago" else 3)
    assert sum(len(those) == 1 for those in slates.values()) > USERS // 2
    assert any("fits" in one for one in slates[b"user-3"][-1])
