"""Who writes in transactions of the ``interests`` group, and where to: for whoever has to fence them out."""

from __future__ import annotations

from collections.abc import Iterable

from stream_app.kafka.records import Partition
from stream_app.settings import Settings
from stream_app.topics import retry_topics


def written_topics(settings: Settings) -> list[str]:
    """Topics that interests workers write to, for their partitions of the table and as routers."""
    names = ("interests", "content-stats", "erasure-receipts", "events-routed", "events-dlq", "erasures")
    return [*map(settings.topic_name, names), *retry_topics(settings)]


def earlier_owners(settings: Settings, inputs: Iterable[Partition]) -> tuple[str, ...]:
    """Transactional ids by which workers of earlier versions, which make no claims, write for inputs."""
    app, events = settings.kafka.app_id, {settings.topic_name(a.topic) for a in settings.events.actions}
    tables = {f"{app}-interests-{tp.partition}" for tp in inputs}
    routers = {f"{app}-router-{tp.topic}-{tp.partition}" for tp in inputs if tp.topic in events}
    return *sorted(tables), *sorted(routers)
