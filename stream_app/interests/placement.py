"""Where users live: partition p of the interests table has the users whose ids murmur2 puts there.

Producers place their records as they like: librdkafka by CRC-32, some by another key or by none, some on a
topic with another number of partitions. What stands elsewhere than its user lives is *routed*: its copy on
``events-routed`` stands in the user's partition, written in the transaction that commits the original's
offset, and says where the original first arrived, which is its identity.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from stream_app.events.dead_letters import MAX_RECORD_BYTES, Origin, routed
from stream_app.events.named import users_in
from stream_app.kafka.partitions import partitions_of
from stream_app.kafka.records import Record
from stream_app.kafka.transactions import Output
from stream_app.settings import Settings
from stream_app.topics import ROUTED_TOPIC

ROOM = 4096
"""Bytes of a copy that its own headers may take."""


class Placement:
    """Says who lives where, and makes the copies."""

    def __init__(self, settings: Settings) -> None:
        self._partitions = settings.kafka.partitions
        self._max_id = settings.events.max_id_bytes
        self._topic = settings.topic_name(ROUTED_TOPIC)

    def places(self, users: Sequence[bytes], known: Container[bytes] = ()) -> dict[bytes, int]:
        """Each user's partition. ``known`` users are left out, and cost nothing."""
        unknown = list(dict.fromkeys(user for user in users if user not in known))
        return dict(zip(unknown, partitions_of(unknown, self._partitions).tolist(), strict=True))

    def owner(self, record: Record) -> bytes | None:
        """Whose a record is that is no event: its fate belongs into that user's partition, where it is known
        whether the user was erased. None where it does not say, or a copy would be too large."""
        user = next(iter(users_in(record)), None)
        if user is None or not 0 < len(user) <= self._max_id or b"\x00" in user:
            return None
        size = len(user) + len(record.value or b"") + ROOM
        return user if size <= MAX_RECORD_BYTES else None

    def copy(self, record: Record, origin: Origin, user: bytes, partition: int, now_ms: int) -> Output:
        """The record for its user's partition."""
        key, value, headers = routed(record, origin, user, now_ms)
        return Output(self._topic, partition, key, value, tuple(headers))
