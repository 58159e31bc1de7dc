"""Offsets of a transaction, committed as a member of the group: aiokafka names neither generation nor member.

A group coordinator refuses them once the group has moved on (``TxnOffsetCommit`` version 3, KIP-447, Apache
Kafka 2.5): whoever has lost its partitions without having noticed cannot commit, even if nobody has fenced
its transactional id.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from aiokafka.errors import ConcurrentTransactions, for_code
from aiokafka.producer.sender import TxnOffsetCommitHandler
from aiokafka.protocol.api import RequestStruct, Response
from aiokafka.protocol.types import (
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

from stream_app.kafka.errors import OUT_OF_DATE
from stream_app.kafka.marks import Membership
from stream_app.kafka.requests import FlexibleRequest

NO_LEADER_EPOCH = -1


class _MemberOffsets_v3(Response):  # type: ignore[misc]  # noqa: N801 - untyped base; as aiokafka names them
    API_KEY = 28
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(("partition", Int32), ("error_code", Int16), ("tags", TaggedFields)),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _MemberOffsetsRequest_v3(RequestStruct):  # type: ignore[misc]  # noqa: N801 - as above
    FLEXIBLE_VERSION = True
    API_KEY = 28
    API_VERSION = 3
    RESPONSE_TYPE = _MemberOffsets_v3
    SCHEMA = Schema(
        ("transactional_id", CompactString("utf-8")),
        ("group_id", CompactString("utf-8")),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("generation_id", Int32),
        ("member_id", CompactString("utf-8")),
        ("group_instance_id", CompactString("utf-8")),
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("offset", Int64),
                        ("leader_epoch", Int32),
                        ("metadata", CompactString("utf-8")),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _MemberOffsetsRequest(FlexibleRequest[_MemberOffsetsRequest_v3]):
    API_KEY = 28


class _MemberOffsets_v5(_MemberOffsets_v3):  # noqa: N801 - as above
    API_VERSION = 5


class _MemberOffsetsRequest_v5(_MemberOffsetsRequest_v3):  # noqa: N801 - as above
    """With it the group need not be part of the transaction yet, see ``implicit.py``."""

    API_VERSION = 5
    RESPONSE_TYPE = _MemberOffsets_v5


class _AddingRequest(FlexibleRequest[_MemberOffsetsRequest_v5]):
    API_KEY = 28


class MemberOffsetsHandler(TxnOffsetCommitHandler):  # type: ignore[misc]  # untyped base
    """Sends a transaction's offsets in a member's name, and handles the answer as aiokafka does."""

    def __init__(self, sender: Any, offsets: Any, group_id: str, member: Membership, *, adding: bool) -> None:
        """``adding``: the group is not part of the transaction yet."""
        super().__init__(sender, offsets, group_id)
        self._member = member
        self._request = _AddingRequest if adding else _MemberOffsetsRequest

    def create_request(self) -> _MemberOffsetsRequest | _AddingRequest:
        """The request, as a member."""
        state = self._sender._txn_manager
        topics: dict[str, list[Any]] = {}
        for tp, mark in sorted(self._offsets.items()):
            partitions = topics.setdefault(tp.topic, [])
            partitions.append((tp.partition, mark.offset, NO_LEADER_EPOCH, mark.metadata, {}))
        return self._request(
            state.transactional_id,
            self._group_id,
            state.producer_id,
            state.producer_epoch,
            *self._member,
            None,
            [(topic, partitions, {}) for topic, partitions in topics.items()],
        )

    def handle_response(self, answer: Any) -> float | None:
        """As aiokafka does; a member that is out of date cannot go on with its transaction."""
        errors = [
            (topic, [(partition, code) for partition, code, _ in partitions])
            for topic, partitions, _ in answer.topics
        ]
        for error in (for_code(code) for _, partitions in errors for _, code in partitions):
            if issubclass(error, OUT_OF_DATE):
                self._sender._txn_manager.error_transaction(error())
                return None
            if error is ConcurrentTransactions:  # the one before is still on its way to its partitions
                wait: float = self._default_backoff
                return wait
        backoff: float | None = super().handle_response(SimpleNamespace(errors=errors))
        return backoff
