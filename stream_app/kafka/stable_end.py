"""Where a partition's decided part ends: every transaction before it has its marker."""

from __future__ import annotations

from typing import Any

from aiokafka import errors
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.protocol.offset import OffsetRequest
from faust.types import TP

READ_COMMITTED = 1
LATEST = -1
NO_REPLICA = -1


async def stable_end(client: AIOKafkaClient, tp: TP) -> int:
    """The last stable offset, as the partition's leader has it now. Raises a KafkaError."""
    leader = client.cluster.leader_for_partition(tp)
    if leader is None or leader < 0:
        raise errors.LeaderNotAvailableError(f"{tp.topic}[{tp.partition}] has no leader")
    request = OffsetRequest(NO_REPLICA, READ_COMMITTED, [(tp.topic, [(tp.partition, LATEST)])])
    # not on the connection of the fetches: a broker answers each connection's requests in their order
    answer: Any = await client.send(leader, request, group=ConnectionGroup.COORDINATION)
    ((_, ((_, code, *_, offset),)),) = answer.topics
    if (error := errors.for_code(code)) is not errors.NoError:
        raise error(f"{tp.topic}[{tp.partition}] does not tell its end")
    return int(offset)
