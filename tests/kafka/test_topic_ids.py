"""Topic ids from a real broker, over aiokafka's own connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import UUID

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError
from faust.types import TP

from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics, topic_id
from stream_app.kafka.topic_ids import topic_ids
from stream_app.settings import Settings
from tests.interests.workers import wait_until


def ask(
    settings: Settings, *tps: TP, change: Callable[[AIOKafkaClient], None] = lambda _: None
) -> list[str | None]:
    async def life() -> list[str | None]:
        client = AIOKafkaClient(bootstrap_servers=settings.kafka.broker)
        await client.bootstrap()
        try:
            await client.set_topics([tp.topic for tp in tps])
            change(client)
            found = await topic_ids(client, tps)
            return [found[tp] for tp in tps]
        finally:
            await client.close()

    return asyncio.run(life())


def test_they_are_those_that_the_admin_client_tells(settings: Settings, topics: list[str]) -> None:
    likes, shares = settings.topic_name("likes"), settings.topic_name("shares")
    first, second, third = ask(settings, TP(likes, 0), TP(likes, 1), TP(shares, 0))
    assert first == second != third
    assert first is not None
    assert UUID(first) == UUID(topic_id(settings, likes))


def test_a_topic_that_does_not_exist_has_none_and_is_not_created(settings: Settings) -> None:
    assert ask(settings, TP(settings.topic_name("likes"), 0)) == [None]
    assert settings.topic_name("likes") in create_topics(settings)


def test_it_changes_when_the_topic_is_created_again(settings: Settings, topics: list[str]) -> None:
    likes = settings.topic_name("likes")
    (before,) = ask(settings, TP(likes, 0))
    with clients.admin_client(settings) as admin:
        admin.delete_topics([likes])
    wait_until(lambda: likes in create_topics(settings), "the topic to be created again")
    (after,) = ask(settings, TP(likes, 0))
    assert after is not None
    assert before is not None
    assert len(after) == len(before) == 32
    assert after != before


def test_without_any_broker_there_is_an_error_not_an_id(settings: Settings, topics: list[str]) -> None:
    def forget(client: AIOKafkaClient) -> None:
        client.cluster._brokers.clear()
        client.cluster._partitions.clear()
        client.cluster._bootstrap_brokers.clear() if hasattr(client.cluster, "_bootstrap_brokers") else None

    with pytest.raises(KafkaConnectionError):
        ask(settings, TP(settings.topic_name("likes"), 0), change=forget)
