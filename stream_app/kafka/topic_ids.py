"""Which topic a name stands for: a topic that is deleted and created again has another id.

Its offsets start at 0 again, while a consumer group may keep the old ones for a moment (a group
coordinator drops them when it learns of the deletion), and a fetch from an old offset succeeds as soon as
the new topic has grown past it. So an offset is committed together with the id of its topic, and is
nothing to a topic with another one.

Brokers older than Apache Kafka 2.8 have no ids. There a topic that exists has the id ``""``, and one that
was created again is known by being shorter than the position in it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.errors import IncompatibleBrokerVersion, KafkaConnectionError
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from stream_app.kafka.marks import Mark, Membership
from stream_app.kafka.records import Partition

PAUSE_S = 0.1
"""Without a batch of a topic for so long, it may have been deleted, created again and filled, unseen:
whoever reads without a pause sees it missing. Half of it is a batch's to come in, the other half an answer's
to be used by all partitions of a worker, or each would ask for itself."""

NAMELESS = UUID(int=0)


class _Uuid(AbstractType[UUID]):  # type: ignore[misc]  # untyped base
    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))


class _Topics_v10(Response):  # type: ignore[misc]  # noqa: N801 - untyped base; as aiokafka names them
    """Kafka's Metadata response, version 10: the first one with topic ids (KIP-516, Apache Kafka 2.8)."""

    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _TopicsRequest_v10(RequestStruct):  # type: ignore[misc]  # noqa: N801 - as above
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = _Topics_v10
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("topic", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _TopicsRequest(Request[_TopicsRequest_v10]):  # type: ignore[misc]  # untyped base
    API_KEY = 3

    def __init__(self, names: Iterable[str]) -> None:
        self._names = names

    def build(self, request_struct_class: type[_TopicsRequest_v10]) -> _TopicsRequest_v10:
        return request_struct_class([(NAMELESS, name, {}) for name in self._names], False, False, False, {})


async def topic_ids(client: AIOKafkaClient, tps: Iterable[Partition]) -> dict[Partition, str | None]:
    """The id of each partition's topic, as the partition's leader knows it: whose records are fetched.

    None where there is no such topic; empty where there is one, on a broker without ids. Raises a
    KafkaError when the broker cannot be reached.
    """
    asked: dict[int, list[Partition]] = {}
    for tp in tps:
        leader = client.cluster.leader_for_partition(tp)
        node = client.get_random_node() if leader is None or leader < 0 else leader
        if node is None:
            raise KafkaConnectionError("no broker is known")
        asked.setdefault(node, []).append(tp)
    answers = await asyncio.gather(
        *(_known(client, node, {tp.topic for tp in of}) for node, of in asked.items())
    )
    return {tp: answer.get(tp.topic) for of, answer in zip(asked.values(), answers, strict=True) for tp in of}


async def _known(client: AIOKafkaClient, node: int, names: set[str]) -> dict[str, str]:
    ids = await _ask(client, node, names)
    missing = names - ids.keys()
    return ids | dict.fromkeys(await _there(client, node, missing), "") if missing else ids


async def _ask(client: AIOKafkaClient, node: int, names: set[str]) -> dict[str, str]:
    try:
        # not on the connection of the fetches: a broker answers each connection's requests in their order
        answer: Any = await client.send(node, _TopicsRequest(names), group=ConnectionGroup.COORDINATION)
    except (IncompatibleBrokerVersion, NotImplementedError):  # aiokafka's words for a broker too old
        return {}
    found = {topic["topic"]: topic for topic in answer.to_object()["topics"]}
    return {name: topic["topic_id"].hex for name, topic in found.items() if topic["error_code"] == 0}


async def _there(client: AIOKafkaClient, node: int, names: set[str]) -> set[str]:
    """Those that exist, in words that every broker knows."""
    request = MetadataRequest(sorted(names), allow_auto_topic_creation=False)
    answer: Any = await client.send(node, request, group=ConnectionGroup.COORDINATION)
    return {topic["topic"] for topic in answer.to_object()["topics"] if topic["error_code"] == 0}


def same_topic(before: str, now: str) -> bool:
    """Whether two ids may be of one topic: where one of them is not known, nothing speaks against it."""
    return not before or not now or before == now


class CommittedOffset(NamedTuple):
    """Where a consumer group reads a partition on."""

    offset: int | None
    """The first one that there is, where the group knows none; None while there is no such topic."""
    topic_id: str | None
    """Of the topic that has the name now; None while there is none."""
    mark: Mark | None = None
    """What was committed with the offset; None where nothing was, or was of another topic."""


class Bounds(NamedTuple):
    """What there is of a partition."""

    first: int
    """The first offset that there is."""
    end: int
    """The offset after the last decided record."""


class GroupOffsets(Protocol):
    """What the offsets of a group say of partitions, and who writes for them."""

    async def offsets(self, tps: Iterable[Partition]) -> Mapping[Partition, CommittedOffset]:
        """As the broker has them now. Raises a KafkaError."""

    async def confirm(self, member: Membership | None) -> None:
        """Raise FencedError when ``member`` is out of date: partitions may be somebody else's now; or a
        KafkaError."""

    async def claim(self, marks: Mapping[Partition, tuple[int, Mark]], member: Membership | None) -> None:
        """Commit offsets with their marks. Raises FencedError when ``member`` is out of date, a KafkaError.
        None: in nobody's name, which no group with members takes."""


class InputOffsets(GroupOffsets, Protocol):
    """What the owner of a partition asks the broker about its inputs, and of what it has written."""

    async def stable_end(self, tp: Partition) -> int:
        """Where the decided part of a partition ends. Raises a KafkaError."""

    async def committed(self, tps: Iterable[Partition]) -> Mapping[Partition, CommittedOffset]:
        """As ``offsets``, for whoever opens these partitions."""

    async def bounds(self, tps: Iterable[Partition]) -> Mapping[Partition, Bounds]:
        """Where these partitions begin and end. Raises a KafkaError."""

    async def topic_id(self, tp: Partition) -> str | None:
        """As the partition's leader has known it within PAUSE_S / 2; None while there is no such topic."""


class Inputs:
    """The input topics that an owned partition is fed from, as they were when it was opened."""

    def __init__(self, offsets: InputOffsets, committed: Mapping[Partition, CommittedOffset]) -> None:
        self._offsets = offsets
        self.ids = {tp.topic: mark.topic_id or "" for tp, mark in committed.items()}
        self._there = {tp.topic for tp, mark in committed.items() if mark.topic_id is not None}
        self._seen: dict[Partition, float] = {}

    async def same(self, tp: Partition) -> bool:
        """Whether what has just come from there is of the same topic as before. Raises a KafkaError."""
        now = time.monotonic()
        if now - self._seen.get(tp, -PAUSE_S) >= PAUSE_S / 2:
            topic = await self._offsets.topic_id(tp)
            if topic is None or tp.topic not in self._there or not same_topic(self.ids[tp.topic], topic):
                return False
        self._seen[tp] = now
        return True
