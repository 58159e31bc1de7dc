"""Two deployments on one cluster are told apart by ``kafka.app_id``: with one in common they would share
consumer groups and transactional ids, and throw each other out for ever."""

from __future__ import annotations

import contextlib
import struct
import time
from typing import Any

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors

from stream_app.errors import ConfigurationError
from stream_app.kafka.clients import admin_client, naming_the_broker
from stream_app.settings import Settings
from stream_app.topics import declare

PATIENCE_S = 3.0
POLL_S = 0.2


def refuse_others(settings: Settings, group: str) -> None:
    """Raise ConfigurationError when a member of our consumer group reads none of our topics: it belongs to
    a deployment with another ``kafka.topic_prefix``. Raises BrokerUnavailableError, AccessError."""
    ours = {topic.name for topic in declare(settings)}
    for topics in _subscriptions(settings, group):
        if topics and ours.isdisjoint(topics):
            raise ConfigurationError(
                f"consumer group {group} has members of another deployment, which read {min(topics)}: each "
                f"deployment on a cluster needs a kafka.app_id of its own, beside its kafka.topic_prefix; "
                f"set another than {settings.kafka.app_id!r} here or there"
            )


def _subscriptions(settings: Settings, group: str) -> list[set[str]]:
    """The topics that each member reads. Brokers do not say while the group makes a new assignment: then
    none, after some patience."""
    deadline = time.monotonic() + PATIENCE_S
    with contextlib.closing(admin_client(settings)) as admin, naming_the_broker(settings):
        members: list[Any] = []
        while time.monotonic() < deadline:
            with contextlib.suppress(kafka_errors.CoordinatorNotAvailableError):  # a broker's first group
                found = admin._manager.run(_described, admin, group)
                members = found.members
                if "Rebalance" not in found.group_state:
                    break
            time.sleep(POLL_S)
        return [_topics(bytes(member.member_metadata)) for member in members]


async def _described(admin: KafkaAdminClient, group: str) -> Any:
    """As ``describe_groups``, which takes subscriptions of Faust's members apart in vain: they lack fields
    of the version that they name."""
    coordinator = (await admin._find_coordinator_ids([group]))[group]
    answer = await admin._manager.send(admin._describe_groups_request([group]), node_id=coordinator)
    (found,) = answer.groups
    error = kafka_errors.for_code(found.error_code)
    if error not in (kafka_errors.NoError, kafka_errors.GroupIdNotFoundError):
        raise error(group)
    return found


def _topics(subscription: bytes) -> set[str]:
    """They come after the version, whichever it is."""
    topics: set[str] = set()
    if not subscription:
        return topics
    (count,), place = struct.unpack_from(">i", subscription, 2), 6
    for _ in range(count):
        (length,) = struct.unpack_from(">h", subscription, place)
        topics.add(subscription[place + 2 : place + 2 + length].decode())
        place += 2 + length
    return topics
