"""Erasure of users: what one batch of requests causes. Like a batch of events, in one transaction.

A request takes away the user's record: a tombstone on ``interests``, on which a ranker withdraws the
slate too. In its place stands a receipt, whose fence keeps late events and retries of the time
before from bringing it back. Copies of events on ``events-retry`` and ``events-dlq`` go next, see
:mod:`stream_app.interests.sweep`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from stream_app.events.dead_letters import dead_letter, origin_of
from stream_app.events.faults import DECODING_ERRORS, UnfitError, check_id, check_readable, explain
from stream_app.events.mending import read_mended
from stream_app.events.reasons import Reason
from stream_app.events.schema import ID, Milliseconds, Moment
from stream_app.events.times import EARLIEST_MS, LATEST_MS, unit
from stream_app.hashing import key64
from stream_app.interests.placement import Placement
from stream_app.interests.receipts import Fences, Receipt, Removed, receipt_key
from stream_app.interests.record import decode
from stream_app.interests.store import PartitionStore
from stream_app.kafka.records import Record
from stream_app.kafka.transactions import RECORD_BYTES, Output
from stream_app.settings import Settings

TOPIC = "erasures"


class Erasure(msgspec.Struct, gc=False):
    """A request to erase one user.

    Unknown fields are ignored, and null counts as missing. The record's key should be `user_id` in UTF-8: it
    saves a detour, and nothing else is read from it."""

    user_id: Annotated[
        str, Meta(description="Who; should also be the record's key.", min_length=1, extra_json_schema=ID)
    ]
    requested_at: Annotated[
        Moment | Milliseconds | None,
        Meta(
            description="When: RFC 3339 with an offset, or Unix milliseconds. Events of up to this time are "
            "refused from now on. Missing: the Kafka timestamp, or now if that lies in the future."
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class Request:
    """An acceptable request."""

    user: bytes
    requested_ms: int
    offset: int


@dataclass(slots=True)
class Erased:
    """What a batch of requests causes."""

    receipts: dict[bytes, Receipt] = field(default_factory=dict)
    """By user id."""
    routed: int = 0
    """Requests that were handed on to their users' partitions."""
    outputs: list[Output] = field(default_factory=list)
    rejected: list[Reason] = field(default_factory=list)
    """Why requests become dead letters; to be counted when these are committed."""


class ErasurePreparation:
    """Turns batches of requests into outputs, for all partitions of a worker."""

    def __init__(self, settings: Settings) -> None:
        self._read = msgspec.json.Decoder(Erasure).decode
        self._max_bytes = settings.events.max_bytes
        self._max_id = settings.events.max_id_bytes
        self._max_future_ms = int(settings.events.max_future_s * 1000)
        self._topic = settings.topic_name(TOPIC)
        self._table = settings.topic_name("interests")
        self._room = settings.kafka.max_record_bytes - RECORD_BYTES
        self._letters = settings.topic_name("events-dlq")
        self._letter_partitions = settings.kafka.shared_partitions
        self._receipts = ReceiptWriter(settings)
        self._placement = Placement(settings)

    def prepare(
        self,
        partition: int,
        store: PartitionStore,
        fences: Fences,
        records: Sequence[Record],
        now_ms: int,
    ) -> Erased:
        """What has to be produced with the requests' offset; changes nothing.

        ``store`` holds everything that is committed. The same user asked for twice is erased once, and
        a receipt that is there already is carried on. Raises StateDamagedError.
        """
        done = Erased()
        latest: dict[bytes, Request] = {}
        for record in records:
            try:
                request = self.request(record, now_ms)
            except UnfitError as fault:
                done.outputs.append(self._letter(partition, record, fault, now_ms))
                done.rejected.append(fault.reason)
                continue
            place = self._placement.places([request.user])[request.user]
            if place != partition:
                done.outputs.append(self._elsewhere(request, place))
                done.routed += 1
                continue
            earlier = latest.pop(request.user, None)
            if earlier is not None and earlier.requested_ms > request.requested_ms:
                request = Request(request.user, earlier.requested_ms, request.offset)
            latest[request.user] = request
        for request, value in zip(latest.values(), store.get(list(latest)), strict=True):
            receipt = self._receipt(request, value, fences.receipts.get(key64(request.user)), now_ms)
            done.receipts[request.user] = receipt
            # also for a user without a record: whatever else may be left of him goes with it
            done.outputs.append(Output(self._table, partition, request.user, None))
            done.outputs.append(self._receipts.output(partition, key64(request.user), receipt))
        return done

    def request(self, record: Record, now_ms: int) -> Request:
        """The request that a record holds. Raises UnfitError."""
        value = record.value
        if not value:
            check_readable(record)
            raise UnfitError(Reason.EMPTY, "the value is null or has no bytes")
        if len(value) > self._max_bytes:
            raise UnfitError(Reason.OVERSIZED, f"{len(value)} bytes, at most {self._max_bytes} are taken")
        try:
            try:
                erasure = self._read(value)
            except DECODING_ERRORS as error:
                erasure = read_mended(self._read, value, error, ("user_id",))
            value.decode()
            user = erasure.user_id.encode()
        except DECODING_ERRORS as error:
            raise UnfitError(*explain(error, "requested_at", value)) from None
        check_id("user_id", erasure.user_id, self._max_id)
        # no fence stands in the future: it would lock the user out until then
        arrived = min(record.timestamp, now_ms)
        time = erasure.requested_at
        if isinstance(time, datetime):
            time = round(time.timestamp() * 1000)
        elif time is None:
            time = arrived
        if time > min(arrived + self._max_future_ms, LATEST_MS):
            raise UnfitError(
                Reason.TIMESTAMP_IN_FUTURE,
                f"requested_at is {time - arrived} ms after the Kafka timestamp, or after now{unit(time)}",
            )
        if time < EARLIEST_MS:  # a fence in 1970 would keep nothing out
            raise UnfitError(
                Reason.TOO_OLD,
                f"requested_at is before the year 2000; numbers are Unix milliseconds{unit(time)}",
            )
        return Request(user, time, record.offset)

    def _receipt(
        self, request: Request, value: bytes | None, earlier: Receipt | None, now_ms: int
    ) -> Receipt:
        removed = Removed() if earlier is None else msgspec.structs.replace(earlier.removed)
        # Everything that was recorded goes, also what is newer than the request: the fence says where
        # exactly the user's new record begins.
        fence = request.requested_ms if earlier is None else max(earlier.fence, request.requested_ms)
        if value is not None:
            record = decode(value)
            removed.records += 1
            removed.interactions += int(record.header["total"])
            fence = max(fence, min(record.t_ref, now_ms + self._max_future_ms))
        return Receipt(
            requested_at=request.requested_ms,
            request_offset=request.offset,
            erased_at=now_ms,
            fence=fence,
            removed=removed,
        )

    def _elsewhere(self, request: Request, partition: int) -> Output:
        """The request for the partition where its user lives; it keeps its time."""
        value = {"user_id": request.user.decode(), "requested_at": request.requested_ms}
        return Output(self._topic, partition, request.user, msgspec.json.encode(value))

    def _letter(self, partition: int, record: Record, fault: UnfitError, now_ms: int) -> Output:
        origin = origin_of(record, self._topic, partition)
        key, value, headers = dead_letter(record, origin, fault.reason, fault.detail, now_ms, self._room)
        return Output(
            self._letters, (partition + record.offset) % self._letter_partitions, key, value, tuple(headers)
        )


class ReceiptWriter:
    """Makes the records of ``erasure-receipts``."""

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.topic_name("erasure-receipts")
        self._remains = tuple(settings.topic_name(action.topic) for action in settings.events.actions)

    def output(self, partition: int, user: int, receipt: Receipt | None) -> Output:
        """A receipt's record; with None its tombstone. ``user`` is the key64."""
        value = None
        if receipt is not None:
            value = msgspec.json.encode(msgspec.structs.replace(receipt, remains=self._remains))
        return Output(self._topic, partition, receipt_key(user), value)
