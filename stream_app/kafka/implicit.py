"""Transactions whose partitions are not announced (KIP-890, transaction version 2, from Apache Kafka 4.0 on).

The broker adds partitions and group to a transaction as the first records and offsets arrive, so two of five
requests, one after the other, fall away. aiokafka speaks the earlier versions; these are its own steps with
newer requests.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import aiokafka
from aiokafka.client import CoordinationType
from aiokafka.errors import ConcurrentTransactions, NoError, ProducerFenced
from aiokafka.producer.sender import EndTxnHandler, SendProduceReqHandler
from aiokafka.producer.transaction_manager import PidAndEpoch
from aiokafka.protocol.api import RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactBytes,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

from stream_app.kafka.requests import FlexibleRequest

PRODUCER_FENCED = 90
"""What newer versions answer in place of INVALID_PRODUCER_EPOCH; aiokafka has no name for it"""
READ_AS = 8
"""The version of Produce as whose answer aiokafka reads ours"""


class _Produce_v12(Response):  # type: ignore[misc]  # noqa: N801 - untyped base; as aiokafka names them
    API_KEY = 0
    API_VERSION = 12
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("offset", Int64),
                        ("timestamp", Int64),
                        ("log_start_offset", Int64),
                        (
                            "record_errors",
                            CompactArray(
                                ("index", Int32), ("message", CompactString("utf-8")), ("tags", TaggedFields)
                            ),
                        ),
                        ("error_message", CompactString("utf-8")),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("throttle_time_ms", Int32),
        ("tags", TaggedFields),
    )


class _ProduceRequest_v12(RequestStruct):  # type: ignore[misc]  # noqa: N801 - as above
    FLEXIBLE_VERSION = True
    API_KEY = 0
    API_VERSION = 12
    RESPONSE_TYPE = _Produce_v12
    SCHEMA = Schema(
        ("transactional_id", CompactString("utf-8")),
        ("required_acks", Int16),
        ("timeout", Int32),
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(("partition", Int32), ("records", CompactBytes), ("tags", TaggedFields)),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _End_v5(Response):  # type: ignore[misc]  # noqa: N801 - as above
    API_KEY = 26
    API_VERSION = 5
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("tags", TaggedFields),
    )


class _EndRequest_v5(RequestStruct):  # type: ignore[misc]  # noqa: N801 - as above
    FLEXIBLE_VERSION = True
    API_KEY = 26
    API_VERSION = 5
    RESPONSE_TYPE = _End_v5
    SCHEMA = Schema(
        ("transactional_id", CompactString("utf-8")),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("transaction_result", Boolean),
        ("tags", TaggedFields),
    )


class _ProduceRequest(FlexibleRequest[_ProduceRequest_v12]):
    API_KEY = 0
    required_acks = -1


class _EndRequest(FlexibleRequest[_EndRequest_v5]):
    API_KEY = 26


class _Records(SendProduceReqHandler):  # type: ignore[misc]  # untyped base
    def create_request(self) -> _ProduceRequest:
        topics: dict[str, list[Any]] = {}
        for tp, batch in self._batches.items():
            topics.setdefault(tp.topic, []).append((tp.partition, bytes(batch.get_data_buffer()), {}))
        return _ProduceRequest(
            self._sender._txn_manager.transactional_id,
            _ProduceRequest.required_acks,
            self._sender._request_timeout_ms,
            [(topic, partitions, {}) for topic, partitions in topics.items()],
        )

    def _can_retry(self, error: Any, batch: Any) -> bool:
        # the transaction before may still be on its way to its partitions
        return isinstance(error, ConcurrentTransactions) or super()._can_retry(error, batch)

    def handle_response(self, response: Any) -> None:
        topics = [(topic, [one[:7] for one in partitions]) for topic, partitions, _ in response.topics]
        super().handle_response(SimpleNamespace(API_VERSION=READ_AS, topics=topics))


class _End(EndTxnHandler):  # type: ignore[misc]  # untyped base
    def create_request(self) -> _EndRequest:
        state = self._sender._txn_manager
        return _EndRequest(
            state.transactional_id, state.producer_id, state.producer_epoch, self._commit_result
        )

    def handle_response(self, response: Any) -> float | None:
        if response.error_code == PRODUCER_FENCED:
            raise ProducerFenced
        if response.error_code == NoError.errno:
            state = self._sender._txn_manager
            state._pid_and_epoch = PidAndEpoch(response.producer_id, response.producer_epoch)
            state._sequence_numbers.clear()  # each epoch begins at 0
        backoff: float | None = super().handle_response(response)
        return backoff


class ImplicitTransactions:
    """A producer's way to send transactions unannounced.

    What differs from announced ones, and why it is safe:

    - *Nothing is announced.* Whether a producer may write is looked at where its records and offsets arrive:
      before the broker takes them it asks the transaction's coordinator to add the partition for this
      producer id and epoch. A partition is part of a transaction exactly if records of it may be there.
    - *Each transaction has an epoch of its own.* Its end, commit or abort, raises the epoch, and the answer
      tells the next one (of a new producer id once the epochs are used up). A record or marker that comes
      late is of an older epoch and is refused; before, it became part of the next transaction. Sequence
      numbers begin anew with an epoch. No end is sent before all else is answered.
    - *The answer to the end matters*: without it the next epoch is not known. Where it is lost the producer
      is not used again, as with announced ones (``coordination.py``: nothing is sent over a new connection),
      and whoever follows fences its id. An end that is repeated on the same connection gets the same answer,
      since the coordinator knows the epoch before the present one.
    - *Refusals* are those of announced transactions under newer names. What is not known to pass by
      (``CONCURRENT_TRANSACTIONS``: the one before is still on its way to its partitions) fails the
      transaction, and so the producer.
    """

    def __init__(self, producer: aiokafka.AIOKafkaProducer) -> None:
        self.on = False
        """Whether the transaction that begins now is one; it must not change within a transaction."""
        self._sender = sender = producer._sender
        self._next, self._produce, self._finish = (
            sender._maybe_do_transactional_request,
            sender._send_produce_req,
            sender._do_txn_commit,
        )
        sender._maybe_do_transactional_request = self._next_request
        sender._send_produce_req = self._send_records
        sender._do_txn_commit = self._end

    def _next_request(self) -> Any:
        if self.on:
            state = self._sender._txn_manager
            for tp in list(state.partitions_to_add()):
                state.partition_added(tp)
            if (group := state.consumer_group_to_add()) is not None:
                state.consumer_group_added(group)
        return self._next()

    async def _send_records(self, node: Any, batches: Any) -> None:
        if not self.on:
            await self._produce(node, batches)
            return
        await _Records(self._sender, batches).do(node)
        self._sender._in_flight.remove(node)
        for tp in batches:
            self._sender._muted_partitions.remove(tp)

    async def _end(self, commit: bool) -> None:
        if not self.on:
            await self._finish(commit)
            return
        sender, state = self._sender, self._sender._txn_manager
        await sender._message_accumulator.flush_for_commit()
        if state.is_empty_transaction():
            state.complete_transaction()
            return
        node = await sender._find_coordinator(CoordinationType.TRANSACTION, state.transactional_id)
        await _End(sender, commit).do(node)
