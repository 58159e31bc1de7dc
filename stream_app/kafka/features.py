"""What the brokers of a cluster have agreed on.

A feature is finalised once every broker of the cluster can do it, and an operator may take it back
(``kafka-features.sh``). Brokers tell with their ``ApiVersions`` from version 3 on (KIP-584).
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.api import Request, RequestStruct, Response, ResponseHeader_v0
from aiokafka.protocol.types import (
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

TRANSACTION_VERSION = "transaction.version"
UNANNOUNCED = 2
"""Transaction version from which on partitions need not be announced (KIP-890)"""
NEEDED = {0: 12, 26: 5, 28: 5}
"""Versions of Produce, EndTxn and TxnOffsetCommit that transactions without announcements take"""
FINALIZED = 2
"""Tag of the finalised features"""
_FEATURES = CompactArray(
    ("name", CompactString("utf-8")), ("most", Int16), ("least", Int16), ("tags", TaggedFields)
)


class _Features_v3(Response):  # type: ignore[misc]  # noqa: N801 - untyped base; as aiokafka names them
    API_KEY = 18
    API_VERSION = 3
    SCHEMA = Schema(
        ("error_code", Int16),
        (
            "api_keys",
            CompactArray(("api_key", Int16), ("least", Int16), ("most", Int16), ("tags", TaggedFields)),
        ),
        ("throttle_time_ms", Int32),
        ("tags", TaggedFields),
    )


class _FeaturesRequest_v3(RequestStruct):  # type: ignore[misc]  # noqa: N801 - as above
    FLEXIBLE_VERSION = True
    API_KEY = 18
    API_VERSION = 3
    RESPONSE_TYPE = _Features_v3
    SCHEMA = Schema(
        ("software", CompactString("utf-8")), ("version", CompactString("utf-8")), ("tags", TaggedFields)
    )

    def parse_response_header(self, read_buffer: BytesIO | bytes) -> ResponseHeader_v0:
        """This answer alone has the old header: who asks may not know what the broker can."""
        return ResponseHeader_v0.decode(read_buffer)


class _FeaturesRequest(Request[_FeaturesRequest_v3]):  # type: ignore[misc]  # untyped base
    API_KEY = 18

    def build(self, request_struct_class: type[_FeaturesRequest_v3]) -> _FeaturesRequest_v3:
        return request_struct_class("stream-app", "1", {})


async def unannounced(client: AIOKafkaClient, coordinator: int) -> bool:
    """Whether the partitions of a transaction need not be announced, as a coordinator says. Raises a
    KafkaError."""
    try:
        answer: Any = await client.send(coordinator, _FeaturesRequest(), group=ConnectionGroup.COORDINATION)
    except (IncompatibleBrokerVersion, NotImplementedError):  # aiokafka's words for too old
        return False
    versions = {api: most for api, _, most, _ in answer.api_keys}
    finalized = _FEATURES.decode(BytesIO(answer.tags.get(FINALIZED, b"\x01")))  # by default an empty array
    agreed = any(name == TRANSACTION_VERSION and most >= UNANNOUNCED for name, most, _, _ in finalized)
    return agreed and all(versions.get(api, -1) >= version for api, version in NEEDED.items())
