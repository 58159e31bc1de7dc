"""A real consumer group takes offsets and claims from its present members, and from nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer

from stream_app.errors import FencedError
from stream_app.kafka import clients
from stream_app.kafka.connection import aiokafka_options
from stream_app.kafka.empty_group import EmptyGroup
from stream_app.kafka.faust.transport import _ConsumerThread
from stream_app.kafka.marks import Mark, Membership, decode_mark
from stream_app.kafka.records import Partition
from stream_app.kafka.transactions import Output, Transactions
from stream_app.settings import Settings

pytestmark = pytest.mark.usefixtures("topics", "way")


class Group:
    """With one real member, ``member``."""

    def __init__(self, settings: Settings, consumer: AIOKafkaConsumer) -> None:
        coordinator = consumer._coordinator
        self.member = Membership(coordinator.generation, coordinator.member_id)
        self.source = Partition(settings.topic_name("likes"), 0)
        self._settings, self._consumer = settings, consumer

    async def claim(self, offset: int, owner: str, member: Membership | None) -> None:
        """As the transport does."""
        thread: Any = SimpleNamespace(
            _ensure_consumer=lambda: self._consumer, app=SimpleNamespace(patience_s=10.0)
        )
        thread._as_member = partial(_ConsumerThread._as_member, thread)
        await _ConsumerThread.claim(thread, {self.source: (offset, Mark("", owner))}, member)

    async def commit(self, offset: int, value: bytes, member: Membership | None) -> None:
        """One record and an offset in a transaction, by a producer of its own."""
        name = f"{self._settings.kafka.app_id}-{value.decode()}"
        group, topic = self._settings.group("interests"), self._settings.topic_name("interests")
        producer = Transactions(self._settings, name, group)
        await producer.begin([topic])
        producer.member = member
        try:
            await producer.commit([Output(topic, 0, b"k", value)], {self.source: (offset, Mark("", name))})
        finally:
            await producer.close()
            await Transactions(self._settings, name, group).fence_out([topic])  # readers wait for its end

    def committed(self) -> tuple[int, str] | None:
        """The offset, and who has claimed it."""
        group = self._settings.group("interests")
        with closing(clients.admin_client(self._settings)) as admin:
            found = admin.list_group_offsets(group)[group]
        marks = {(tp.topic, tp.partition): mark for tp, mark in found.items()}
        mark = marks.get(tuple(self.source))
        return None if mark is None else (int(mark.offset), decode_mark(mark.metadata).owner)

    def values(self) -> list[bytes]:
        return [r.value for r in clients.read_topic(self._settings, self._settings.topic_name("interests"))]


@asynccontextmanager
async def group(settings: Settings) -> AsyncIterator[Group]:
    consumer = AIOKafkaConsumer(
        settings.topic_name("likes"),
        **aiokafka_options(settings, "member"),
        group_id=settings.group("interests"),
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        async with asyncio.timeout(60):
            while not consumer.assignment():  # noqa: ASYNC110 - aiokafka has no event for it
                await asyncio.sleep(0.02)
            yield Group(settings, consumer)
    finally:
        await consumer.stop()


def outdated(member: Membership) -> list[Membership]:
    """Of an earlier generation, of a later one, of somebody who is no member."""
    return [
        member._replace(generation=member.generation - 1),
        member._replace(generation=member.generation + 1),
        member._replace(member_id="somebody-else"),
    ]


def test_a_transaction_counts_under_the_present_generation_alone(
    settings: Settings,
) -> None:
    async def steps() -> None:
        async with group(settings) as one:
            for number, member in enumerate(outdated(one.member)):
                with pytest.raises(FencedError):
                    await one.commit(7, b"refused-%d" % number, member)
            assert (one.committed(), one.values()) == (None, [])
            await one.commit(8, b"taken", one.member)
            assert one.committed() == (8, f"{settings.kafka.app_id}-taken")
            assert one.values() == [b"taken"]

    asyncio.run(steps())


def test_a_claim_counts_under_the_present_generation_alone(settings: Settings) -> None:
    async def steps() -> None:
        async with group(settings) as one:
            await one.claim(3, "owner", one.member)
            assert one.committed() == (3, "owner")
            for member in [*outdated(one.member), None]:
                with pytest.raises(FencedError, match="the group has moved on"):
                    await one.claim(4, "zombie", member)
            assert one.committed() == (3, "owner")

    asyncio.run(steps())


def test_a_group_is_claimed_from_outside_while_nobody_is_in_it(settings: Settings) -> None:
    async def steps() -> None:
        outside = EmptyGroup(settings, settings.group("interests"))
        async with group(settings) as one:
            await one.claim(3, "owner", one.member)
            with pytest.raises(FencedError, match="takes no offsets from outside"):
                await outside.claim({one.source: (0, Mark("", "command"))}, None)
            assert one.committed() == (3, "owner")
        found = (await outside.offsets([one.source]))[one.source]
        assert found.offset == 3
        assert found.mark == Mark("", "owner")
        await outside.claim({one.source: (0, Mark("", "command"))}, None)
        assert one.committed() == (0, "command")

    asyncio.run(steps())
