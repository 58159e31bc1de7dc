"""The learned ranker through a real broker: models come, go and are no models, and slates follow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from prometheus_client import REGISTRY

from stream_app.learning import checkpoint
from stream_app.learning.models_record import ONLINE_KEY, RANKER_KEY, Description
from stream_app.observability.health import Health
from stream_app.ranking.arms import Arms
from stream_app.recommendations.app import create_app
from stream_app.recommendations.slate import Slate
from stream_app.settings import Settings, build
from tests.ranking import learned_world
from tests.ranking import ranking_world as world
from tests.recommendations.test_ranker_app import (
    Subscriber,
    catalogue,
    committed,
    contents,
    liked,
    run,
    running,
    send,
)

USERS = 24


@pytest.fixture
def config(settings: Settings, topics: list[str]) -> Settings:
    """Two arms, short vectors, the CPU."""
    names = ("broker", "app_id", "topic_prefix", "partitions", "shared_partitions")
    arms = [
        {"name": "new", "ranker": "learned", "share": 3.0},
        {"name": "old", "ranker": "blend", "share": 1.0},
    ]
    return build(
        {
            "kafka": {name: getattr(settings.kafka, name) for name in names},
            "content": {"dimensions": world.D, "capacity": 500},
            "ranking": {"device": "cpu", "arms": arms},
            "recommendations": {"cold_start_interval_s": 0.2},
        }
    )


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"stream_app_{name}_total", labels) or 0.0


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not reached():  # noqa: ASYNC110  # what others count has no event
            await asyncio.sleep(0.01)


async def publish(
    config: Settings, version: int | None, value: bytes | None, key: bytes = RANKER_KEY
) -> None:
    """One record of ``models``."""
    headers = [] if version is None else Description(version, 10, 1.0, world.NOW, {0: 3}).headers()
    async with AIOKafkaProducer(bootstrap_servers=config.kafka.broker) as producer:
        await producer.send_and_wait(config.topic_name("models"), value, key=key, headers=headers)


async def publish_model(config: Settings, version: int) -> None:
    """A model of random weights, others for each version."""
    one = learned_world.published(version, strength=1.0)
    await publish(config, version, checkpoint.encode(one.model, one.habits))


def learned(config: Settings, slates: dict[str, Any]) -> dict[str, Slate]:
    """Slates of the arm that the learned ranker ranks for."""
    arms = Arms(config.ranking.arms, config.ranking.arms_salt)
    return {user: slate for user, slate in slates.items() if arms.of(user.encode()).name == "new"}


def test_slates_follow_the_newest_model_that_can_be_read(config: Settings) -> None:
    index, records = catalogue(config)
    found = learned_world.together(index.high, 16, 4)
    users = [(b"user-%d" % i, liked(config, index, i)) for i in range(USERS)]
    rejected = counted("ranker_rejected", topic="models")

    async def garbage(number: int) -> None:
        """Once it is counted, all that was published before it has been read."""
        await publish(config, 99, b"no checkpoint")
        await until(lambda: counted("ranker_rejected", topic="models") - rejected == number)

    async def scenario() -> None:
        await send(config, "content-vectors", records)
        await send(config, "co-engagement", [*learned_world.neighbour_records(index, found), (b"x", b"?")])
        await publish_model(config, 1)
        await publish(config, 5, b"of the trainer", key=ONLINE_KEY)
        await send(config, "interests", users)
        async with Subscriber(config) as subscriber, running(create_app(config, Health(config))):

            async def slates(ranker: str) -> dict[str, Slate]:
                def reached(all_: dict[str, Slate | None]) -> bool:
                    own = learned(config, all_)
                    return len(all_) > USERS and {s.ranker for s in own.values() if s} == {ranker}

                await subscriber.until(reached)
                return {user: slate for user, slate in subscriber.slates.items() if slate is not None}

            first = await slates("learned-1")
            for user, slate in first.items():
                arm = Arms(config.ranking.arms, "").of(user.encode())
                assert (slate.arm, slate.ranker) == (arm.name, "learned-1" if arm.name == "new" else "blend")
                assert len(slate.items) == 10
            assert any(item.parts.together for slate in first.values() for item in slate.items)

            await garbage(1)
            await publish(config, None, None, key=b"something else")
            await publish_model(config, 2)
            await garbage(2)
            await send(config, "interests", users)
            second = await slates("learned-2")
            for user, slate in learned(config, second).items():
                assert contents(slate) != contents(first[user])

            # withdrawn: the blend goes on, as for the other arm
            before = counted("fallbacks", cause="no_model")
            await publish(config, None, None)
            await garbage(3)
            await send(config, "interests", users)
            await slates("blend")
            assert counted("fallbacks", cause="no_model") > before
        assert await committed(config) == 3 * USERS

    run(scenario())


def test_no_record_is_lost_while_models_change(config: Settings) -> None:
    index, records = catalogue(config)

    async def scenario() -> None:
        await send(config, "content-vectors", records)
        await publish_model(config, 1)
        async with Subscriber(config) as subscriber, running(create_app(config, Health(config))):
            for version in range(2, 8):
                turn = [
                    (b"user-%d-%d" % (version, i), liked(config, index, (version * i) % 60))
                    for i in range(40)
                ]
                await asyncio.gather(publish_model(config, version), send(config, "interests", turn))
            await subscriber.until(lambda s: len(s) > 6 * 40)
            versions = {slate.ranker for slate in learned(config, subscriber.slates).values()}
            assert versions <= {f"learned-{v}" for v in range(1, 8)}
            assert len(versions) > 1
            assert all(slate is not None and len(slate.items) == 10 for slate in subscriber.slates.values())
        assert await committed(config) == 6 * 40

    run(scenario())
