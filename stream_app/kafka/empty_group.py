"""A consumer group without members, whose offsets a command sets while no worker runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import closing

from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata, TopicPartition

from stream_app.errors import FencedError
from stream_app.kafka.admin import group_members
from stream_app.kafka.clients import admin_client, naming_the_broker
from stream_app.kafka.inputs import inputs
from stream_app.kafka.marks import Mark, Membership, decode_mark
from stream_app.kafka.records import Partition
from stream_app.kafka.topic_ids import CommittedOffset, same_topic
from stream_app.settings import Settings


class EmptyGroup:
    """Its offsets and claims (:class:`stream_app.kafka.topic_ids.GroupOffsets`)."""

    def __init__(self, settings: Settings, group: str) -> None:
        self._settings, self._group = settings, group

    async def offsets(self, tps: Iterable[Partition]) -> Mapping[Partition, CommittedOffset]:
        """As the broker has them now. Raises BrokerUnavailableError, a KafkaError."""
        wanted = list(tps)
        there = await inputs(self._settings, wanted)
        found = await asyncio.to_thread(self._committed, wanted)
        marks: dict[Partition, CommittedOffset] = {}
        for tp in wanted:
            if tp not in there:
                marks[tp] = CommittedOffset(None, None)
                continue
            (topic, bounds), (offset, mark) = there[tp], found.get(tp, (-1, Mark()))
            known = offset >= 0 and same_topic(mark.topic_id, topic)
            marks[tp] = (
                CommittedOffset(offset, topic, mark) if known else CommittedOffset(bounds.first, topic)
            )
        return marks

    async def confirm(self, member: Membership | None) -> None:
        """Raise FencedError when there are members, BrokerUnavailableError."""
        assert member is None  # noqa: S101  # nobody is a member of it
        if members := await asyncio.to_thread(group_members, self._settings, self._group):
            raise FencedError(f"the group {self._group} has {members} members")

    async def claim(self, marks: Mapping[Partition, tuple[int, Mark]], member: Membership | None) -> None:
        """Set offsets. Raises FencedError when there are members, BrokerUnavailableError."""
        assert member is None  # noqa: S101  # nobody is a member of it
        await asyncio.to_thread(self._set, marks)

    def _committed(self, tps: Iterable[Partition]) -> dict[Partition, tuple[int, Mark]]:
        with closing(admin_client(self._settings)) as admin, naming_the_broker(self._settings):
            wanted = [TopicPartition(*tp) for tp in tps]
            found = admin.list_group_offsets({self._group: wanted})[self._group]
        return {Partition(*tp): (int(at.offset), decode_mark(at.metadata or "")) for tp, at in found.items()}

    def _set(self, marks: Mapping[Partition, tuple[int, Mark]]) -> None:
        with closing(admin_client(self._settings)) as admin, naming_the_broker(self._settings):
            offsets = {
                TopicPartition(*tp): OffsetAndMetadata(at, mark.encode(), -1)
                for tp, (at, mark) in marks.items()
            }
            refused = set(admin.alter_group_offsets(self._group, offsets).values()) - {kafka_errors.NoError}
        if refused:
            raise FencedError(f"the group {self._group} takes no offsets from outside: {refused}")
