"""Follows a chaos run from outside: reads every topic into memory as it grows, whatever happens to Kafka.

Start it before the first event is sent; it needs no worker. Whatever it has read may be compacted or
deleted on the broker afterwards. Let ``min.compaction.lag.ms`` be some seconds, so that a record is
read before it is gone, and let it read an event topic to its end (``catch_up``) before that is deleted.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    KafkaError,
    NotCoordinatorError,
)

from stream_app.chaos.archived import Archived, Kept, Sample, Spot
from stream_app.chaos.background import Background
from stream_app.errors import StreamAppError
from stream_app.kafka import clients
from stream_app.kafka.marks import decode_mark
from stream_app.settings import Settings

log = logging.getLogger(__name__)

POLL_MS = 50
LOOK_S = 0.2
"""Between two looks at the committed offsets."""
RETRY_S = 0.5
REQUEST_TIMEOUT_S = 8.0
"""A request that takes longer is given up and tried again: the broker may be frozen."""


class Archive(Background):
    """Reads from ``start`` to ``stop``. The topics may come later than the start."""

    def __init__(self, settings: Settings) -> None:
        """``settings`` name the broker itself, without a proxy whose connections are cut."""
        super().__init__()
        kafka = msgspec.structs.replace(settings.kafka, request_timeout_s=REQUEST_TIMEOUT_S)
        self._settings = msgspec.structs.replace(settings, kafka=kafka)
        self._group = settings.group("interests")
        self.archived = Archived(settings)
        """What was read. Stop before you look at it; ``unsettled`` may be asked at any time."""
        self._ids: dict[str, Any] = {}  # each topic's id on the broker: another one is another life
        self._lives: dict[str, int] = {}
        self._partitions: list[TopicPartition] = []
        self._positions: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._looks = self._ends_seen = self._reached = 0  # numbers of looks
        self._progress = threading.Condition()

    # -- any thread

    def catch_up(self, timeout_s: float = 60.0) -> None:
        """Return once all that stands on the topics now has been read. Raises StreamAppError."""
        with self._progress:
            begun = self._looks + 1  # the one in hand may have begun before this call
            self._progress.wait_for(lambda: self._reached >= begun or self._error is not None, timeout_s)
            reached = self._reached >= begun
        self.check()
        if not reached:
            places = {tp: (self._positions.get(tp, 0), end) for tp, end in self._ends.items()}
            behind = [
                f"{tp.topic}[{tp.partition}] {at} of {end}" for tp, (at, end) in places.items() if at < end
            ]
            raise StreamAppError(
                f"the archive did not read to the end in {timeout_s:.0f} s: {', '.join(behind[:5])}"
            )

    def unsettled(self, *, slates: bool = True) -> str | None:
        """What the product still owes as far as has been read; None when nothing."""
        with self._progress:
            return self.archived.unsettled(slates=slates)

    # -- the thread

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                with (
                    contextlib.closing(clients.consumer(self._settings)) as consumer,
                    contextlib.closing(clients.admin_client(self._settings)) as admin,
                ):
                    self._partitions = []
                    self._follow(consumer, admin)
            except (KafkaError, StreamAppError, OSError) as error:
                log.info("the broker does not answer the archive: %r", error)
                self._ending.wait(RETRY_S)
            except Exception as error:  # noqa: BLE001 - whoever waits is told
                with self._progress:
                    self._error = error
                    self._progress.notify_all()
                return

    def _follow(self, consumer: KafkaConsumer, admin: KafkaAdminClient) -> None:
        looked = 0.0
        while not self._ending.is_set():
            if time.monotonic() - looked >= LOOK_S:
                self._look(consumer, admin)
                looked = time.monotonic()
            if not self._partitions:
                self._ending.wait(LOOK_S)
                continue
            for tp, records in consumer.poll(timeout_ms=POLL_MS).items():
                if any(r.offset < self._positions.get(tp, 0) for r in records):
                    self._assign(consumer, admin)  # the topic may have begun another life
                with self._progress:
                    self._take(tp, records)
            self._note_reached(consumer)

    def _look(self, consumer: KafkaConsumer, admin: KafkaAdminClient) -> None:
        """Which topics there are; the offsets committed; then, after these, the topics' ends."""
        with self._progress:
            self._looks += 1
        if not self._assign(consumer, admin):
            return
        try:
            committed = admin.list_group_offsets(self._group)[self._group]
        except (CoordinatorNotAvailableError, NotCoordinatorError, CoordinatorLoadInProgressError):
            return  # it is being set up, or comes back: the next look tells
        ends = admin.list_partition_offsets(dict.fromkeys(self._partitions, OffsetSpec.LATEST))
        now = {tp: int(end.offset) for tp, end in ends.items()}
        if self._reached == self._ends_seen:
            # one goal after the other: a newer end, with a newer open transaction before it, would
            # be out of reach for as long as anything is written
            self._ends, self._ends_seen = now, self._looks
        sample = Sample(
            {
                Spot(tp.topic, self._lives[tp.topic], tp.partition): int(mark.offset)
                for tp, mark in committed.items()
                # the offset of an earlier life may be told for a moment after its end
                if tp.topic in self._lives
                and mark.offset >= 0
                and decode_mark(mark.metadata).topic_id in ("", UUID(str(self._ids[tp.topic])).hex)
            },
            {(tp.topic, tp.partition): end for tp, end in now.items()},
        )
        with self._progress:
            samples = self.archived.samples
            if not samples or samples[-1].committed != sample.committed:
                samples.append(sample)

    def _assign(self, consumer: KafkaConsumer, admin: KafkaAdminClient) -> bool:
        """Follow the partitions that there are now, new lives from their start; whether all topics exist."""
        there = [
            t for t in admin.describe_topics(self.archived.topics) if not t["error_code"] and t["partitions"]
        ]
        partitions: list[TopicPartition] = []
        begun: list[TopicPartition] = []
        for topic in there:
            name = topic["name"]
            mine = [TopicPartition(name, p["partition_index"]) for p in topic["partitions"]]
            partitions += mine
            if self._ids.get(name) != topic["topic_id"]:
                self._ids[name] = topic["topic_id"]
                self._lives[name] = self._lives.get(name, -1) + 1
                # also of partitions that are gone: should the topic grow again, they begin anew
                former = [tp for tp in self._positions if tp.topic == name]
                self._positions.update(dict.fromkeys([*mine, *former], 0))
                begun += mine
        fresh = set(partitions) - set(self._partitions)
        if begun or set(partitions) != set(self._partitions):
            self._partitions = partitions
            self._ends = {tp: end for tp, end in self._ends.items() if tp in partitions and tp not in begun}
            consumer.assign(partitions)
            for tp in {*begun, *fresh}:
                consumer.seek(tp, self._positions.get(tp, 0))
        return len(there) == len(self.archived.topics)

    def _take(self, tp: TopicPartition, records: Sequence[Any]) -> None:
        spot = Spot(tp.topic, self._lives[tp.topic], tp.partition)
        position = self._positions.get(tp, 0)
        for record in records:
            if record.offset >= position:
                position = record.offset + 1
                kept = Kept(
                    record.offset, record.timestamp, record.key, record.value, tuple(record.headers or ())
                )
                self.archived.take(spot, kept)
        self._positions[tp] = position

    def _note_reached(self, consumer: KafkaConsumer) -> None:
        if self._reached == self._ends_seen:
            return
        behind = [tp for tp, end in self._ends.items() if self._positions.get(tp, 0) < end]
        for tp in behind:
            # markers of transactions take offsets that no record shows: the position tells
            self._positions[tp] = max(self._positions.get(tp, 0), consumer.position(tp) or 0)
        if any(self._positions[tp] < self._ends[tp] for tp in behind):
            return
        with self._progress:
            self._reached = self._ends_seen
            self._progress.notify_all()
