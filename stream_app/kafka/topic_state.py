"""A topic as the broker has it, beside its declaration: what would lose data, and what is only different.

Topics are often there before us, made by an administrator or by the broker itself, and event topics are
the platform's own. So a difference counts by what it does: a worker refuses what would lose data, warns of
what it can live with, and says nothing of what changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from stream_app.topics import DAY_MS, FOREVER, Topic

CREATE = "create it with `stream-app topics --create`"
ALTER = "`stream-app topics --alter` mends it"


@dataclass(frozen=True)
class Difference:
    """An entry of a topic's configuration that is not as declared."""

    key: str
    found: str
    wanted: str
    does: str
    """What comes of it."""
    loses: bool = False
    """Whether that is a loss of data."""


@dataclass(frozen=True)
class TopicState:
    """A declared topic and what the broker has of it."""

    topic: Topic
    partitions: int
    """0 when the topic does not exist."""
    config: dict[str, str]
    """The broker's values of all entries; empty when the topic does not exist, or they may not be read."""
    replicas: int = 0
    """Of each partition; 0 when the topic does not exist."""

    @property
    def differences(self) -> list[Difference]:
        """What matters of the configuration and is not as declared."""
        if not self.config:
            return []
        found = [(key, self.config.get(key), wanted) for key, wanted in self.topic.config.items()]
        judged = (self._judged(key, value, wanted) for key, value, wanted in found if value is not None)
        return [difference for difference in judged if difference is not None]

    @property
    def missing(self) -> str | None:
        """What to do when the topic does not exist."""
        return None if self.partitions else f"{self.topic.name}: missing; {CREATE}"

    @property
    def refusals(self) -> list[str]:
        """What a worker cannot work with, one line each, with what to do."""
        return [self._line(difference) for difference in self.differences if difference.loses]

    @property
    def warnings(self) -> list[str]:
        """What a worker can live with, one line each, with what to do."""
        lines = [self._line(difference) for difference in self.differences if not difference.loses]
        name, topic = self.topic.name, self.topic
        if self.partitions not in (0, topic.partitions) and not topic.partitioned:
            lines.append(
                f"{name}: has {self.partitions} partitions, configured are {topic.partitions}; "
                "delete and create it again, or set kafka.shared_partitions"
            )
        if 0 < self.replicas <= topic.in_sync > 1:
            lines.append(
                f"{name}: has {self.replicas} replicas, fewer than kafka.replication_factor asks for: it is "
                "lost with fewer disks; reassign its partitions with Kafka's own tools"
            )
        return lines

    def _line(self, difference: Difference) -> str:
        return (
            f"{self.topic.name}: {difference.key} is {difference.found}, declared is {difference.wanted}: "
            f"{difference.does}; {ALTER}"
        )

    def _judged(self, key: str, found: str, wanted: str) -> Difference | None:
        if key == "cleanup.policy":
            return self._cleanup(_policies(found), _policies(wanted))
        if key == "message.timestamp.type":
            does = "what producers date back is deleted that much earlier"
            return None if found == wanted else Difference(key, found, wanted, does)
        if key == "min.insync.replicas":
            return self._in_sync(int(found), min(int(wanted), max(1, self.replicas - 1)))
        if key == "retention.ms":
            return self._retention(int(found), int(wanted))
        if key == "delete.retention.ms":
            does = "who reads the topic later than that misses what was deleted"
            return Difference(key, found, wanted, does) if int(found) < int(wanted) else None
        does = "what was deleted stays in the broker's log for longer"  # segment.ms, max.compaction.lag.ms
        return Difference(key, found, wanted, does) if int(found) > int(wanted) else None

    def _cleanup(self, found: set[str], wanted: set[str]) -> Difference | None:
        if found == wanted:
            return None
        does, loses = "what is replaced or expired stays, and the topic grows", False
        if wanted == {"delete"} and "compact" in found:
            does, loses = "of each key the broker would keep the last record only, and lose the others", True
        elif wanted == {"compact"} and "delete" in found and (bound := self._bound()):
            does, loses = f"the broker would delete {bound}, which stands nowhere else", True
        elif "delete" in found - wanted:
            does = "nothing is deleted as long as retention.ms and retention.bytes are -1"
        return Difference("cleanup.policy", ",".join(sorted(found)), ",".join(sorted(wanted)), does, loses)

    def _bound(self) -> str:
        """What the broker deletes, by age and size; empty when nothing."""
        age, size = (int(self.config.get(f"retention.{unit}", FOREVER)) for unit in ("ms", "bytes"))
        if age != FOREVER:
            return f"what is older than {age / DAY_MS:.3g} days"
        return f"what exceeds {size:,} bytes a partition" if size != FOREVER else ""

    def _retention(self, found: int, wanted: int) -> Difference | None:
        if wanted == FOREVER:
            return None  # compacted: without effect, or judged by the policy
        if found != FOREVER and found < wanted:
            loses = found < self.topic.held_ms
            does = (
                "what waits there would be deleted before it is due"
                if loses
                else "what is older is deleted sooner"
            )
            return Difference("retention.ms", str(found), str(wanted), does, loses)
        if found != wanted and self.topic.gone_after_ms:  # others' topics may keep their records for longer
            does = "users' records stay for longer"
            return Difference("retention.ms", str(found), str(wanted), does)
        return None

    def _in_sync(self, found: int, wanted: int) -> Difference | None:
        if found < wanted:
            does = "a record counts as written that is lost with one broker"
        elif found > self.replicas:
            does = f"nothing can be written, since there are {self.replicas} replicas"
        else:
            return None
        return Difference("min.insync.replicas", str(found), str(wanted), does)


def _policies(text: str) -> set[str]:
    return {policy for part in text.split(",") if (policy := part.strip())}
