"""Creating, checking and deleting the topics that :mod:`stream_app.topics` declares."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kafka import KafkaAdminClient, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, OffsetSpec

from stream_app.errors import AccessError, ConfigurationError, TopicMismatchError
from stream_app.kafka.clients import admin_client, naming_the_broker
from stream_app.kafka.topic_state import CREATE, TopicState
from stream_app.settings import Settings
from stream_app.topics import Topic, declare, retry_topics, try_of

log = logging.getLogger(__name__)

CREATE_TIMEOUT_S = 15.0
DELETE_TIMEOUT_S = 15.0
POLL_S = 0.02
FRAMING_BYTES = 128
"""Of a record batch with one record, at most."""

NOT_YET = (
    kafka_errors.UnknownTopicOrPartitionError,
    kafka_errors.LeaderNotAvailableError,
    kafka_errors.NotLeaderForPartitionError,
)
"""What is answered for a partition that is just being created."""


def create_topics(settings: Settings, role: str | None = None) -> list[str]:
    """Create the declared topics (of a role) that are missing; their names. Returns once each has its
    leaders."""
    with _admin(settings) as admin:
        declared = {t.name: t for t in declare(settings, role)}
        existing = _listed(admin, list(declared))
        missing = {name: topic for name, topic in declared.items() if name not in existing}
        if not missing:
            return []
        wanted = {
            name: {
                "num_partitions": topic.partitions,
                "replication_factor": settings.kafka.replication_factor,
                "configs": topic.config,
            }
            for name, topic in missing.items()
        }
        answers = admin.create_topics(wanted, raise_errors=False)["topics"]
        for name, code in ((t["name"], t["error_code"]) for t in answers):
            # another worker that starts at the same time may be faster: the topic is there either way
            if code not in (kafka_errors.NoError.errno, kafka_errors.TopicAlreadyExistsError.errno):
                raise _refusal(settings, name, kafka_errors.for_code(code))
        _wait_until_served(admin, missing.values())
        return list(missing)


def _refusal(settings: Settings, topic: str, answer: type[Exception]) -> Exception:
    """What to raise when a broker does not create a topic."""
    what = f"topic {topic} cannot be created at {settings.kafka.broker} ({answer.__name__})"
    if issubclass(answer, kafka_errors.RetriableError):
        return answer(what)
    if issubclass(answer, kafka_errors.AuthorizationError):
        return AccessError(
            f"{what}: it does not exist, or is hidden from us. Grant DESCRIBE on it by an ACL, and the right "
            "to create topics, or have `stream-app topics --create` run by somebody who has them"
        )
    if answer is kafka_errors.InvalidReplicationFactorError:
        factor = settings.kafka.replication_factor
        return ConfigurationError(
            f"{what}: kafka.replication_factor = {factor} is more than there are brokers; set it lower, or "
            "start more"
        )
    return ConfigurationError(f"{what}: the broker's log says why; create it as `stream-app topics` lists it")


def _wait_until_served(admin: KafkaAdminClient, topics: Iterable[Topic]) -> None:
    """Return once every partition's leader answers for it.

    Metadata lists a partition a moment before its leader has it, and a transaction that ends in between
    may stand still for as long as brokers wait for each other (seen with Apache Kafka 4.3).
    """
    deadline = time.monotonic() + CREATE_TIMEOUT_S
    asked = {TopicPartition(t.name, p): OffsetSpec.EARLIEST for t in topics for p in range(t.partitions)}
    while True:
        try:
            admin.list_partition_offsets(asked)
        except NOT_YET:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
        else:
            return


def topic_states(settings: Settings, role: str | None = None) -> list[TopicState]:
    """Each declared topic (of a role) with what the broker has of it, in declaration order."""
    declared = declare(settings, role)
    with _admin(settings) as admin:
        names = _listed(admin, [t.name for t in declared])
        found = {t["name"]: t["partitions"] for t in admin.describe_topics(names)} if names else {}
        configs = _configs(admin, names)
    return [
        TopicState(t, len(partitions), configs.get(t.name, {}), _replicas(partitions))
        for t in declared
        for partitions in [found.get(t.name, [])]
    ]


def _replicas(partitions: list[dict[str, Any]]) -> int:
    return min((len(partition["replica_nodes"]) for partition in partitions), default=0)


def alter_topics(settings: Settings, *, dry_run: bool = False) -> list[str]:
    """Give the topics their declared configuration where it matters that they have another; what was
    changed, one line each. With ``dry_run`` the broker is only asked whether it would.

    Nothing but the entries that differ is touched. Raises AccessError, ConfigurationError.
    """
    changes = {state.topic.name: state.differences for state in topic_states(settings) if state.differences}
    resources = [
        ConfigResource(ConfigResourceType.TOPIC, name, {each.key: each.wanted for each in differences})
        for name, differences in changes.items()
    ]
    if resources:
        with _admin(settings) as admin:
            answers = admin.alter_configs(resources, validate_only=dry_run, raise_on_unknown=False)["topic"]
        for name, answer in answers.items():
            if answer != "OK":
                raise AccessError(
                    f"the broker at {settings.kafka.broker} does not alter topic {name} ({answer}): grant "
                    "ALTER_CONFIGS on it by an ACL, or connect as somebody who has it"
                )
    return [
        f"{name}: {each.key} {each.found} → {each.wanted}"
        for name, differences in changes.items()
        for each in differences
    ]


def check_topics(settings: Settings) -> list[str]:
    """Problems of the topics, each with what to do; an empty list when all is well.

    Raises TopicMismatchError when topics that share the interests table's partitions differ in number.
    """
    states = topic_states(settings)
    check_partitions(settings, states)
    missing = [state.missing for state in states if state.missing]
    return missing + [line for state in states for line in (*state.refusals, *state.warnings)]


def check_partitions(settings: Settings, states: list[TopicState]) -> None:
    """Raise TopicMismatchError, naming both topics, unless all partitioned topics of ours have one count.

    Partition p of each belongs to the same worker; with different counts a user's record and what is
    kept beside it would be in different hands. Topics of events may differ: they are routed then.
    """
    events = {settings.topic_name(action.topic) for action in settings.events.actions}
    shared = [s for s in states if s.topic.partitioned and s.partitions and s.topic.name not in events]
    table = settings.topic_name("interests")
    reference = next((s for s in shared if s.topic.name == table), shared[0] if shared else None)
    for state in shared:
        if reference and state.partitions != reference.partitions:
            raise TopicMismatchError(
                f"{state.topic.name} has {state.partitions} partitions and {reference.topic.name} has "
                f"{reference.partitions}, but they must have the same number: delete and create "
                f"{state.topic.name} again"
            )
    if reference and reference.partitions != settings.kafka.partitions:
        raise TopicMismatchError(
            f"{reference.topic.name} has {reference.partitions} partitions, but kafka.partitions = "
            f"{settings.kafka.partitions}: set kafka.partitions = {reference.partitions}"
        )


def ensure_topics(settings: Settings, role: str | None = None) -> None:
    """For a worker's start: create what is missing of the topics that its role uses, refuse those that
    cannot work together or would lose data, and warn of what else is not as declared.

    Raises TopicMismatchError, or BrokerUnavailableError.
    """
    create_topics(settings, role)
    states = topic_states(settings, role)
    check_partitions(settings, states)
    check_sizes(settings, states)
    if refusals := [line for state in states for line in state.refusals]:
        raise TopicMismatchError("; ".join(refusals))
    for state in states:
        for line in state.warnings:
            log.warning("topic %s", line)
    if unread := [state.topic.name for state in states if not state.config]:
        log.warning(
            "the configuration of %s may not be read, and is taken for as declared: grant DESCRIBE_CONFIGS "
            "by an ACL to have it checked",
            ", ".join(unread),
        )


def left_over_retries(settings: Settings) -> list[str]:
    """Retry topics that the broker has of tries beyond ``events.retry_delays_s``: after a change of it,
    events may still wait there. Raises BrokerUnavailableError."""
    declared = retry_topics(settings)
    with _admin(settings) as admin:
        return [
            name
            for name in sorted(admin.list_topics())
            if name.startswith(declared[0]) and try_of(name) and name not in declared
        ]


def check_sizes(settings: Settings, states: Iterable[TopicState]) -> None:
    """Raise TopicMismatchError where a topic that we write takes less than ``kafka.max_record_bytes``."""
    theirs = {*(action.topic for action in settings.events.actions), "erasures", "impressions", "content"}
    inputs = {settings.topic_name(topic) for topic in theirs}
    least = settings.kafka.max_record_bytes + FRAMING_BYTES
    for state in states:
        limit = int(state.config.get("max.message.bytes") or least)
        if limit < least and state.topic.name not in inputs:
            raise TopicMismatchError(
                f"{state.topic.name}: max.message.bytes is {limit}, but records of up to "
                f"{settings.kafka.max_record_bytes} bytes are written: raise it to {least}, or set "
                f"kafka.max_record_bytes = {max(0, limit - FRAMING_BYTES)}"
            )


def delete_topics(settings: Settings) -> list[str]:
    """Delete the declared topics with everything in them; the names of those that existed.

    Returns once the broker no longer lists them, so that they can be created again.
    """
    with _admin(settings) as admin:
        declared = [t.name for t in declare(settings)]
        names = _listed(admin, declared)
        if names:
            admin.delete_topics(names)
        deadline = time.monotonic() + DELETE_TIMEOUT_S
        while _listed(admin, declared):
            if time.monotonic() > deadline:
                raise kafka_errors.KafkaTimeoutError(f"topics still listed after {DELETE_TIMEOUT_S:.0f} s")
            time.sleep(POLL_S)
        return names


def topic_id(settings: Settings, name: str) -> str:
    """The broker's id of a topic: another one once the topic was deleted and created again.

    Empty when the broker is older than 2.8 and has none. Raises TopicMismatchError when the topic
    does not exist, BrokerUnavailableError.
    """
    with _admin(settings) as admin:
        (found,) = admin.describe_topics([name])
    if found["error_code"] == kafka_errors.UnknownTopicOrPartitionError.errno:
        raise TopicMismatchError(f"topic {name} does not exist: {CREATE}")
    return str(found.get("topic_id") or "")


def retention_ms(settings: Settings, name: str) -> int:
    """How long the broker keeps a declared topic's records, ms; -1: for ever. Where it may not be asked, as
    declared. Raises BrokerUnavailableError."""
    with _admin(settings) as admin:
        found = _configs(admin, [name]).get(name, {}).get("retention.ms")
    declared = next(topic.retention_ms for topic in declare(settings) if topic.name == name)
    return declared if found is None else int(found)


def committed_offset(settings: Settings, group: str, topic: str, partition: int) -> int:
    """A consumer group's committed offset; 0 when there is none. Raises BrokerUnavailableError."""
    where = TopicPartition(topic, partition)
    with _admin(settings) as admin:
        found = admin.list_group_offsets({group: [where]})[group].get(where)
    return max(0, found.offset) if found is not None else 0


def group_members(settings: Settings, group: str) -> int:
    """How many consumers are in a group; 0 when there is none. Raises BrokerUnavailableError."""
    with _admin(settings) as admin:
        listed = any(found["group_id"] == group for found in admin.list_groups())
        return len(admin.describe_groups([group])[group]["members"]) if listed else 0


def delete_group(settings: Settings, group: str) -> None:
    """Delete a consumer group with its offsets, if there is one. Raises ConfigurationError when it has
    members by now, BrokerUnavailableError."""
    with _admin(settings) as admin:
        if not any(found["group_id"] == group for found in admin.list_groups()):
            return
        if (answer := admin.delete_groups([group])[group]) != "OK":
            raise ConfigurationError(
                f"the consumer group {group} cannot be deleted ({answer}); is it in use?"
            )


def delete_records(settings: Settings, before: Mapping[tuple[str, int], int]) -> None:
    """Delete what stands before these offsets of (topic, partition); what is gone already stays gone.

    Raises BrokerUnavailableError, or kafka-python's KafkaError when the broker refuses.
    """
    with _admin(settings) as admin:
        admin.delete_records({TopicPartition(*where): offset for where, offset in before.items()})


@contextlib.contextmanager
def _admin(settings: Settings) -> Iterator[KafkaAdminClient]:
    with contextlib.closing(admin_client(settings)) as admin, naming_the_broker(settings):
        yield admin


def _listed(admin: KafkaAdminClient, names: list[str]) -> list[str]:
    """Those of the names that the broker has, in the same order."""
    existing = set(admin.list_topics())
    return [name for name in names if name in existing]


def _configs(admin: KafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    """Per topic, the values of all its configuration entries."""
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found = admin.describe_configs(resources, config_filter="all").get("topic", {}) if resources else {}
    return {name: {key: entry["value"] for key, entry in entries.items()} for name, entries in found.items()}
