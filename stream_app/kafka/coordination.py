"""A producer's connections to its coordinators, and what became of a transactional id's last transaction.

A broker that starts again may declare a transaction complete without a marker on its partitions: the
coordinator is loaded before the partitions have a leader, and takes them for deleted ("Couldn't find leader
endpoint ... these partitions are likely deleted already and hence can be skipped", Apache Kafka 4.3). The
records then stay open, whether they were committed or aborted, until the same producer's next transaction on
these partitions ends, and share its fate. So

- no transaction begins on a new connection before the last one is known to be on all partitions;
- within a transaction nothing is sent over a new connection, which may be one to a broker that started anew:
  the transaction fails instead;
- a new owner gives what is left open the end that the coordinator decided on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import aiokafka
from aiokafka import errors
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.producer.sender import AddOffsetsToTxnHandler
from aiokafka.protocol.api import RequestStruct, Response
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.protocol.types import (
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

from stream_app.kafka.features import unannounced
from stream_app.kafka.requests import FlexibleRequest

LOOK_S = 0.02
"""Until a coordinator that is completing a transaction, or loading, is asked again."""

COMMITTED = "CompleteCommit"
COMPLETE = (COMMITTED, "CompleteAbort")
COMPLETING = ("PrepareCommit", "PrepareAbort")
NOT_FOUND = 105
"""TRANSACTIONAL_ID_NOT_FOUND, which aiokafka has no name for"""
CHANGED = (errors.ConcurrentTransactions, errors.CoordinatorLoadInProgressError, errors.InvalidProducerEpoch)
LATER = (
    errors.CoordinatorLoadInProgressError,
    errors.CoordinatorNotAvailableError,
    errors.NotCoordinatorError,
)


class Last(NamedTuple):
    """A transactional id's last transaction."""

    state: str = ""
    """As Kafka names it; empty where there is none, or where that cannot be known."""
    timeout_ms: int = 0
    """Of the producer that uses the id."""
    producer_id: int = -1
    epoch: int = -1


class _Transactions_v0(Response):  # type: ignore[misc]  # noqa: N801 - untyped base; as aiokafka names them
    """Kafka's DescribeTransactions response (KIP-664, Apache Kafka 3.0)."""

    API_KEY = 65
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "transactions",
            CompactArray(
                ("error_code", Int16),
                ("transactional_id", CompactString("utf-8")),
                ("state", CompactString("utf-8")),
                ("timeout_ms", Int32),
                ("start_ms", Int64),
                ("producer_id", Int64),
                ("producer_epoch", Int16),
                (
                    "topics",
                    CompactArray(
                        ("topic", CompactString("utf-8")),
                        ("partitions", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _TransactionsRequest_v0(RequestStruct):  # type: ignore[misc]  # noqa: N801 - as above
    FLEXIBLE_VERSION = True
    API_KEY = 65
    API_VERSION = 0
    RESPONSE_TYPE = _Transactions_v0
    SCHEMA = Schema(("transactional_ids", CompactArray(CompactString("utf-8"))), ("tags", TaggedFields))


class _TransactionsRequest(FlexibleRequest[_TransactionsRequest_v0]):
    API_KEY = 65


class Coordination:
    """Of one producer with the coordinators of its transactional id and of its group."""

    def __init__(self, producer: aiokafka.AIOKafkaProducer, transactional_id: str, group: str) -> None:
        self._producer, self._id, self._group = producer, transactional_id, group
        self._connect = producer.client._get_conn
        producer.client._get_conn = self._connection
        self._held = self._renewed = False
        self.unannounced = False
        """Whether the brokers take transactions that are not announced, as they said when we connected"""

    async def renewed(self) -> bool:
        """Connect to both coordinators where need be; whether that was so since the last call."""
        sender = self._producer._sender
        for kind, key in ((CoordinationType.TRANSACTION, self._id), (CoordinationType.GROUP, self._group)):
            node = await sender._find_coordinator(kind, key)
            if not await self._producer.client.ready(node, group=ConnectionGroup.COORDINATION):
                sender._coordinator_dead(kind)
                await sender._find_coordinator(kind, key)  # which tries until it is connected
        if renewed := self._renewed:
            node = await sender._find_coordinator(CoordinationType.TRANSACTION, self._id)
            self.unannounced = await unannounced(self._producer.client, node)
            self._renewed = False
        return renewed

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within it a lost connection fails the producer's transaction, and stays lost."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    async def last(self) -> Last:
        """What became of the id's last transaction, once it is not completing; nothing where a broker older
        than 3.0 does not tell. Raises a KafkaError."""
        while True:
            try:
                found = await self._described()
            except (errors.IncompatibleBrokerVersion, NotImplementedError):  # aiokafka's words for too old
                return Last()
            except (errors.NodeNotReadyError, errors.KafkaConnectionError):
                if self._held:
                    raise
            else:
                error = errors.for_code(found["error_code"])
                if found["error_code"] == NOT_FOUND:
                    return Last()
                if error is errors.NoError and found["state"] not in COMPLETING:
                    owner = found["producer_id"], found["producer_epoch"]
                    return Last(found["state"], found["timeout_ms"], *owner)
                if error is not errors.NoError and error not in LATER:
                    raise error(f"the coordinator does not describe {self._id}")
            await asyncio.sleep(LOOK_S)

    async def take_over(self, timeout_ms: int) -> bool:
        """Become the id's owner; False when an open transaction is being aborted first. Raises a KafkaError.

        No owner is named that is expected, though that would tell whether anything has happened since one
        looked: where each transaction has an epoch of its own the broker takes whoever names the epoch before
        the last for the present owner, who asks once more, and does not fence that one.
        """
        sender, state = self._producer._sender, self._producer._txn_manager
        node = await sender._find_coordinator(CoordinationType.TRANSACTION, self._id)
        request = InitProducerIdRequest(self._id, timeout_ms)
        answer: Any = await self._producer.client.send(node, request, group=ConnectionGroup.COORDINATION)
        error = errors.for_code(answer.error_code)
        if error is errors.NoError:
            state.set_pid_and_epoch(answer.producer_id, answer.producer_epoch)
            return True
        if error in (errors.CoordinatorNotAvailableError, errors.NotCoordinatorError):
            sender._coordinator_dead(CoordinationType.TRANSACTION)
        elif error not in CHANGED:
            raise error(f"nobody may become the owner of {self._id}")
        await asyncio.sleep(LOOK_S)
        return False

    async def _described(self) -> dict[str, Any]:
        sender, client = self._producer._sender, self._producer.client
        node = await sender._find_coordinator(CoordinationType.TRANSACTION, self._id)
        answer: Any = await client.send(
            node, _TransactionsRequest([self._id]), group=ConnectionGroup.COORDINATION
        )
        found: dict[str, Any]
        (found,) = answer.to_object()["transactions"]
        if found["error_code"] == errors.NotCoordinatorError.errno:
            sender._coordinator_dead(CoordinationType.TRANSACTION)
        return found

    async def add_group(self) -> None:
        """Let the transaction span the group's offsets without writing any. Raises a KafkaError."""
        sender = self._producer._sender
        node = await sender._find_coordinator(CoordinationType.TRANSACTION, self._id)
        while not await AddOffsetsToTxnHandler(sender, self._group).do(node):
            pass  # it has waited

    async def _connection(
        self, node_id: Any, *, group: ConnectionGroup = ConnectionGroup.DEFAULT, no_hint: bool = False
    ) -> Any:
        if group is ConnectionGroup.COORDINATION:
            known = self._producer.client._conns.get((node_id, group))
            if known is None or not known.connected():
                if self._held:
                    self._fail(errors.KafkaConnectionError("a coordinator was lost in a transaction"))
                    return None
                self._renewed = True
        return await self._connect(node_id, group=group, no_hint=no_hint)

    def _fail(self, error: errors.KafkaError) -> None:
        state = self._producer._txn_manager
        ended = state.wait_for_transaction_end()
        if ended is not None and not ended.done():
            state.fatal_error(error)
            ended.exception()  # looked at: the step that waits may be another one
            waiting = self._producer._message_accumulator
            waiting.fail_all(error)
            waiting._batches.clear()  # or the sender would take them, and stumble over batches that are done
