"""Every topic on one screen: name, key, value, partitions, cleanup, retention, who uses it.

``partitioned`` topics share one partition count with the ``interests`` table, so that partition p
of each is handled by the same worker. :mod:`stream_app.kafka.admin` creates and checks them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from stream_app.settings import Settings

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
FOREVER = -1


RETRY_TOPIC, ROUTED_TOPIC = "events-retry", "events-routed"
_RETRIES = re.compile(rf"{RETRY_TOPIC}(?:-([0-9]+))?$")


def is_retry_topic(name: str) -> bool:
    """Whether a topic, prefix or not, holds copies of events that are to be tried again."""
    return _RETRIES.search(name) is not None


def try_of(name: str) -> int:
    """Which try the events of a retry topic wait for, from 1; 0 on the one of those that are due at once."""
    found = _RETRIES.search(name)
    return int(found[1] or 0) if found else 0


def retry_topics(settings: Settings) -> list[str]:
    """Full names: of what is due at once (letters that are redriven), then a topic for each try. All records
    of one wait equally long, so that none waits for another."""
    tries = range(1, len(settings.events.retry_delays_s) + 1)
    return [settings.topic_name(RETRY_TOPIC), *(settings.topic_name(f"{RETRY_TOPIC}-{n}") for n in tries)]


def is_copy_topic(name: str) -> bool:
    """Whether a topic, prefix or not, holds copies of events, whose headers say where each first arrived."""
    return name.endswith(ROUTED_TOPIC) or is_retry_topic(name)


def copy_topics(settings: Settings) -> list[str]:
    """Their full names."""
    return [*retry_topics(settings), settings.topic_name(ROUTED_TOPIC)]


@dataclass(frozen=True)
class Topic:
    """One topic as it must exist on the broker."""

    name: str
    key: str
    value: str
    partitions: int
    cleanup: str
    retention_ms: int
    partitioned: bool = False
    """Must have the same partition count as the ``interests`` table."""
    tombstones_ms: int = 0
    """Compacted topics: how long a tombstone is kept for readers who have not seen it."""
    gone_after_ms: int = 0
    """Users' records: when the broker is to rid its log of what was deleted; 0: when it likes."""
    roles: tuple[str, ...] = ()
    """Roles that read or write it. A worker needs no right on any other topic."""
    in_sync: int = 0
    """State, that is, what stands nowhere else: a record must stand on so many replicas before it counts
    as written. 0: no state, and as the broker likes."""
    held_ms: int = 0
    """Records wait here for so long before they are read: with a shorter retention they would be lost."""
    appended: bool = False
    """Timestamps are the broker's clock also where the topic is compacted."""

    @property
    def keeps_state(self) -> bool:
        """Whether something would be lost for good with what stands here."""
        return self.in_sync > 0

    @property
    def config(self) -> dict[str, str]:
        """Broker-side configuration entries."""
        entries = {"cleanup.policy": self.cleanup, "retention.ms": str(self.retention_ms)}
        if self.tombstones_ms:
            entries["delete.retention.ms"] = str(self.tombstones_ms)
        if self.gone_after_ms:
            # a broker cleans closed segments only: without a bound the open one may stay for weeks
            bound = "segment.ms" if self.cleanup == "delete" else "max.compaction.lag.ms"
            entries[bound] = str(self.gone_after_ms)
        if self.cleanup == "delete" or self.appended:
            # a recorded log may carry old CreateTime timestamps: retention counts from arrival. And the
            # answers to what a worker produces tell it the broker's time (kafka/clock.py).
            entries["message.timestamp.type"] = "LogAppendTime"
        if self.keeps_state:
            entries["min.insync.replicas"] = str(self.in_sync)
        return entries


INTERESTS, CONTENT, RANKER, TRAINER, SERVE = "interests", "content", "ranker", "trainer", "serve"


def declare(settings: Settings, role: str | None = None) -> tuple[Topic, ...]:
    """The topics of this configuration, in the order of the data flow: all, or those that a role uses."""
    p = settings.kafka.partitions
    few = settings.kafka.shared_partitions
    week = settings.kafka.event_retention_days * DAY_MS
    kept = max(1, int(settings.kafka.delete_retention_h * HOUR_MS))
    soon = max(1, int(settings.kafka.compaction_lag_h * HOUR_MS))
    wait = int(max(settings.events.retry_delays_s, default=0.0) * 1000)
    safe = max(1, settings.kafka.replication_factor - 1)  # one broker may be away, and writing goes on
    name = settings.topic_name
    # titles for the inspection page
    read_contents = (CONTENT, RANKER) if settings.inspect.enabled else (CONTENT,)
    ranked = (INTERESTS, RANKER, TRAINER)
    shown = (RANKER, TRAINER)
    topics = (
        *(
            Topic(name(a.topic), "user_id", "event (JSON)", p, "delete", week, True, roles=(INTERESTS,))
            for a in settings.events.actions
        ),
        *(
            Topic(retries, "user_id", "original event; headers", p, "delete", week, True, 0, soon, (INTERESTS,), safe, wait)
            for retries in retry_topics(settings)
        ),
        Topic(name("events-routed"), "user_id", "original event; headers", p, "delete", week, True, 0, soon, (INTERESTS,), safe, wait),
        Topic(name("events-dlq"), "original key", "original bytes; headers", few, "delete", week, False, 0, soon, (INTERESTS, CONTENT), safe),
        Topic(name("erasures"), "user_id", "erasure (JSON)", p, "delete", week, True, 0, soon, (INTERESTS,), safe),
        Topic(name("impressions"), "user_id", "impression (JSON)", p, "delete", week, True, roles=shown),
        Topic(name("content"), "content_id", "content (JSON); null deletes", few, "compact", FOREVER, False, kept, 0, read_contents, safe),
        Topic(name("content-vectors"), "content_id, model", "vector record", few, "compact", FOREVER, False, kept, 0, (*ranked, CONTENT, SERVE), safe),
        Topic(name("interests"), "user_id", "interest record", p, "compact", FOREVER, True, kept, soon, ranked, safe),
        Topic(name("content-stats"), "content_id", "statistics record", p, "compact", FOREVER, True, kept, 0, (*ranked, SERVE), safe, appended=True),
        Topic(name("erasure-receipts"), "hash of user_id", "receipt (JSON)", p, "compact", FOREVER, True, kept, soon, (INTERESTS,), safe),
        Topic(name("models"), "ranker or online", "checkpoint (safetensors); headers", 1, "compact", FOREVER, False, kept, 0, shown, safe),
        Topic(name("co-engagement"), "content_id", "neighbours record", few, "compact", FOREVER, False, kept, 0, shown, safe),
        Topic(name("recommendations"), "user_id", "slate (JSON)", few, "compact,delete", 4 * week, False, kept, soon, (RANKER, SERVE)),
    )
    return tuple(topic for topic in topics if role is None or role in topic.roles)
