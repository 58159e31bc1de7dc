"""Who writes in transactions for a partition, by which id, and where to: for whoever has to fence them out.

A partition of an event topic is read by the table's partition of that number or by a router, whose
transactional ids differ. So whoever takes it over from the other kind fences that one out first: nothing of
it is left open, and what it still sends is refused.
"""

from __future__ import annotations

from typing import NamedTuple

from stream_app.kafka.records import Partition
from stream_app.kafka.transactions import PartitionTransactions
from stream_app.settings import Settings
from stream_app.topics import retry_topics


class Owner(NamedTuple):
    """A transactional id, and everything that its transactions write to."""

    transactional_id: str
    writes: list[str | Partition]


def table_owner(settings: Settings, partition: int) -> Owner:
    """Who has this partition of the interests table."""
    name = settings.topic_name
    own = [name(topic) for topic in ("interests", "content-stats", "erasure-receipts")]
    own += retry_topics(settings)
    everywhere = [name(topic) for topic in ("events-routed", "events-dlq", "erasures")]
    return Owner(
        f"{settings.kafka.app_id}-interests-{partition}",
        [*(Partition(topic, partition) for topic in own), *everywhere],
    )


def router_owner(settings: Settings, topic: str, partition: int) -> Owner:
    """Who routes this partition of an event topic (its full name)."""
    name = settings.topic_name
    statistics = Partition(name("content-stats"), partition % settings.kafka.partitions)
    return Owner(
        f"{settings.kafka.app_id}-router-{topic}-{partition}",
        [statistics, name("events-routed"), name("events-dlq")],
    )


async def fence_out(settings: Settings, owner: Owner) -> None:
    """End what this owner has open; what it still sends is refused from now on. Raises TransactionError."""
    transactions = PartitionTransactions(settings, owner.transactional_id, settings.group("interests"))
    try:
        await transactions.fence(owner.writes)
    finally:
        await transactions.close()
