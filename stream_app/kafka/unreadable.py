"""A range of offsets that nobody can read: what stands in its place among the records of a fetch.

Its batch is damaged, compressed in a way that is unknown, or unpacks to more than ``kafka.batch_max_bytes``.
Who owns the partition dead-letters the range; who only follows the topic goes on after it; who rebuilds
state from it stops, because state without it would be wrong.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from aiokafka.structs import ConsumerRecord

from stream_app.kafka.codecs import OversizedBatchError
from stream_app.observability import metrics

log = logging.getLogger(__name__)

UNREADABLE = "unreadable_batch"
OVERSIZED = "oversized_batch"
MAX_DETAIL = 160


@dataclass(frozen=True, slots=True)
class Damage:
    """Consecutive offsets that cannot be read, and why."""

    first: int
    last: int
    records: int
    """How many there were as their batch says; as many as offsets where it is not to be believed."""
    timestamp: int
    """ms, the newest Kafka timestamp among them as their batch says; 0 likewise"""
    reason: str
    detail: str

    def tell(self, topic: str, partition: int) -> None:
        """Count it, and say so in the log."""
        metrics.UNREADABLE.labels(topic, self.reason).inc(self.records)
        log.warning(
            "%s[%d]: offsets %d to %d cannot be read: %s (%s)",
            *(topic, partition, self.first, self.last, self.reason, self.detail),
        )


@dataclass
class UnreadableRange(ConsumerRecord):  # type: ignore[misc]  # untyped base
    """Stands for the records of a range, without key and value; ``offset`` is the range's last."""

    damage: Damage

    @classmethod
    def of(cls, topic: str, partition: int, damage: Damage) -> UnreadableRange:
        """The range's place among the records of its partition."""
        return cls(
            topic, partition, damage.last, damage.timestamp, 0, None, None, None, -1, -1, (), damage=damage
        )


def readable(fetched: list[ConsumerRecord]) -> list[ConsumerRecord]:
    """What a fetch has to say to who follows a topic: a range comes alone, and is passed over."""
    return [] if fetched and isinstance(fetched[0], UnreadableRange) else fetched


def cause_of(error: Exception) -> tuple[str, str]:
    """Reason code and detail of what reading a batch raised."""
    code = OVERSIZED if isinstance(error, OversizedBatchError) else UNREADABLE
    return code, f"{type(error).__name__}: {error}"[:MAX_DETAIL]
