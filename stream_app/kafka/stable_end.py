"""Where a partition ends: all of it, and the part of it in which every transaction has its marker."""

from __future__ import annotations

from typing import Any

from aiokafka import errors
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.protocol.offset import OffsetRequest

from stream_app.kafka.records import Partition

READ_UNCOMMITTED, READ_COMMITTED = 0, 1
LATEST = -1
NO_REPLICA = -1


async def stable_end(client: AIOKafkaClient, tp: Partition) -> int:
    """The last stable offset, as the partition's leader has it now. Raises a KafkaError."""
    return await _end(client, tp, READ_COMMITTED)


async def high_watermark(client: AIOKafkaClient, tp: Partition) -> int:
    """The end that includes what is not decided yet. Raises a KafkaError.

    Where several producers have transactions on a partition, what one of them has committed may stand
    behind what another has left open, and behind the last stable offset.
    """
    return await _end(client, tp, READ_UNCOMMITTED)


async def _end(client: AIOKafkaClient, tp: Partition, isolation: int) -> int:
    leader = client.cluster.leader_for_partition(tp)
    if leader is None or leader < 0:
        raise errors.LeaderNotAvailableError(f"{tp.topic}[{tp.partition}] has no leader")
    request = OffsetRequest(NO_REPLICA, isolation, [(tp.topic, [(tp.partition, LATEST)])])
    # not on the connection of the fetches: a broker answers each connection's requests in their order
    answer: Any = await client.send(leader, request, group=ConnectionGroup.COORDINATION)
    ((_, ((_, code, *_, offset),)),) = answer.topics
    if (error := errors.for_code(code)) is not errors.NoError:
        raise error(f"{tp.topic}[{tp.partition}] does not tell its end")
    return int(offset)
