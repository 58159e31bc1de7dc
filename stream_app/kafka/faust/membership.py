"""Members of one consumer group that must agree on something: they join under a protocol that names it.

A broker lets nobody into a group whose members know another protocol. Who is refused so is told what the
others have, before the broker has to refuse it.
"""

from __future__ import annotations

from collections.abc import Mapping

from faust.assignor.partition_assignor import PartitionAssignor
from kafka.errors import KafkaError

from stream_app.errors import ConfigurationError
from stream_app.kafka.clients import admin_client
from stream_app.settings import Settings

PLAIN = "faust"
"""The protocol of members that agree on nothing, as those of earlier versions did."""


class AgreeingAssignor(PartitionAssignor):  # type: ignore[misc]  # untyped base
    """Faust's assignor under the protocol that the app names."""

    @property
    def name(self) -> str:
        protocol: str = self.app.protocol
        return protocol


def protocol_of(agreed: Mapping[str, str]) -> str:
    """The protocol of members that agree on this."""
    return ";".join((PLAIN, *(f"{name}={value}" for name, value in agreed.items())))


def join_as(settings: Settings, group: str, agreed: Mapping[str, str]) -> str:
    """The protocol to join a group by.

    Members of earlier versions cannot tell what they have, and are joined all the same. Raises
    ConfigurationError when the group's live members have something else, with both values.
    """
    own, live = protocol_of(agreed), _live_protocol(settings, group)
    if live in (None, own):
        return own
    if live == PLAIN:
        return PLAIN
    theirs = dict(part.split("=", 1) for part in live.split(";")[1:] if "=" in part)
    other = [
        f"{name}: there {theirs.get(name, 'none')}, here {agreed.get(name, 'none')}"
        for name in dict.fromkeys((*agreed, *theirs))
        if theirs.get(name) != agreed.get(name)
    ]
    raise ConfigurationError(
        f"workers of group {group} are running with other settings ({'; '.join(other)}): state that both "
        "write would be neither's. Give all the same, or stop the others first"
    )


def _live_protocol(settings: Settings, group: str) -> str | None:
    """What the group's members joined by; None while there are none, or it cannot be said: then the broker
    alone decides."""
    client = admin_client(settings)
    try:
        found = client.describe_groups([group])[group]
    except KafkaError as error:
        if not error.retriable:
            raise
        return None
    finally:
        client.close()
    return (found.get("protocol_data") or None) if found.get("members") else None
