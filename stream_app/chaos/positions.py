"""Where the run stands: ends of the event topics and the offsets that the interests group has committed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from uuid import UUID

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import KafkaError

from stream_app.chaos.background import Background
from stream_app.chaos.world import World
from stream_app.errors import BrokerUnavailableError
from stream_app.kafka import clients
from stream_app.kafka.marks import decode_mark

LOOK_S = 0.25
RETRY_S = 0.5

Target = Mapping[tuple[TopicPartition, int], int]
"""Offsets to be reached, by partition and the topic's life."""


class Positions(Background):
    """Looks now and then; a broker that is away only makes it wait."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        settings = world.direct
        self._group = settings.group("interests")
        self._topics = [settings.topic_name(action.topic) for action in settings.events.actions]
        self._ends: dict[tuple[TopicPartition, int], int] = {}
        self._committed: dict[tuple[TopicPartition, int], int] = {}
        self._looked = 0.0

    def target(self, since: float) -> Target | None:
        """The ends as they were at some moment after ``since`` (monotonic); None if not looked yet."""
        return dict(self._ends) if self._looked > since else None

    def reached(self, target: Target, topic: str | None = None) -> bool:
        """Whether every offset of ``target`` (or of one topic, full name) is committed. What a topic
        held that has been deleted since no longer counts."""
        return all(
            self._committed.get(place, 0) >= offset or self._world.lives.get(place[0].topic, 0) != place[1]
            for place, offset in target.items()
            if topic is None or place[0].topic == topic
        )

    def _run(self) -> None:
        while not self._ending.is_set():
            with (
                contextlib.suppress(KafkaError, BrokerUnavailableError, OSError),
                contextlib.closing(clients.admin_client(self._world.direct)) as admin,
            ):
                while not self._ending.wait(LOOK_S):
                    self._look(admin)
            self._ending.wait(RETRY_S)

    def _look(self, admin: KafkaAdminClient) -> None:
        begun, lives = time.monotonic(), dict(self._world.lives)
        # one that is being created again has neither an id nor partitions
        topics = [one for one in admin.describe_topics(self._topics) if not one["error_code"]]
        ids = {topic["name"]: UUID(str(topic["topic_id"])).hex for topic in topics}
        inputs = [
            TopicPartition(topic["name"], partition["partition_index"])
            for topic in topics
            for partition in topic["partitions"]
        ]
        ends = admin.list_partition_offsets(dict.fromkeys(inputs, OffsetSpec.LATEST))
        committed = admin.list_group_offsets({self._group: inputs})[self._group]
        if lives != self._world.lives:
            return  # a topic was created again meanwhile: which life was seen is not known
        life = {tp: (tp, lives.get(tp.topic, 0)) for tp in inputs}
        self._ends = {life[tp]: found.offset for tp, found in ends.items()}
        # what was once committed was done, also when the group has been deleted since
        self._committed |= {
            life[tp]: max(self._committed.get(life[tp], 0), found.offset)
            for tp, found in committed.items()
            # the offset of an earlier life may be told for a moment after its end
            if decode_mark(found.metadata or "").topic_id in ("", ids[tp.topic])
        }
        self._looked = begun
