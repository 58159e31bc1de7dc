"""Slates onto the ``recommendations`` topic: with the input's offset or not at all, and without repeats."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from stream_app.kafka.fenced import FencedPartitions
from stream_app.observability import metrics
from stream_app.recommendations.ledger import SlateLedger
from stream_app.recommendations.pipeline import Change
from stream_app.recommendations.slate import content_keys, encode, fingerprint, milliseconds
from stream_app.settings import Settings

NO_OFFSETS: Mapping[int, int] = MappingProxyType({})


class Traces(Protocol):
    """Of what is published (:class:`stream_app.recommendations.traces.SlateTraces`)."""

    def headers(self, change: Change) -> Sequence[tuple[str, bytes]]:
        """What goes out with a change"""


class SlatePublisher:
    """Publishes slates and withdraws those of users who have gone, exactly once.

    Each partition of ``interests`` has transactions of its own: the slates of its users and the position
    that its input has been ranked up to stand together or not at all, and a ranker that lost the
    partition is refused by the broker. Slates that did not change are left out.
    """

    def __init__(
        self,
        settings: Settings,
        partitions: FencedPartitions,
        ledger: SlateLedger,
        committed: Callable[[Sequence[Change]], None] = lambda _: None,
        traces: Traces | None = None,
    ) -> None:
        """``committed`` is told what stands on the topic now."""
        self._committed = committed
        self._traces = traces
        self._topic = settings.topic_name("recommendations")
        self._skip_unchanged = settings.recommendations.skip_unchanged
        self._partitions = partitions
        self._ledger = ledger

    async def publish(self, changes: Sequence[Change], ends: Mapping[int, int] = NO_OFFSETS) -> int:
        """Return once all that is news is committed, each partition's with its input position in ``ends``;
        how many changes that were.

        Changes for a partition that is lost, or that gets lost over them, are dropped: whoever owns it next
        reads from the committed position on.
        """
        news: dict[int, list[Change]] = {partition: [] for partition in ends}
        for change in changes:
            if self._unchanged(change):
                metrics.SLATES.labels("unchanged").inc()
                continue
            news.setdefault(change.partition, []).append(change)
        await asyncio.gather(*(self._commit(p, those, ends.get(p)) for p, those in news.items()))
        return sum(map(len, news.values()))

    def _unchanged(self, change: Change) -> bool:
        # with the setting off each event gets an answer; where there was no event, there is nothing to answer
        if change.slate is None or (change.timely and not self._skip_unchanged):
            return False
        return self._ledger.unchanged(change.user, change.partition, fingerprint(change.slate))

    async def _commit(self, number: int, changes: Sequence[Change], end: int | None) -> None:
        partition = self._partitions[number]
        if partition is None:
            return
        traces = self._traces
        outputs = [
            partition.output(
                self._topic,
                c.user,
                None if c.slate is None else encode(c.slate),
                () if traces is None else traces.headers(c),
            )
            for c in changes
        ]
        if await partition.commit(outputs, end):
            self._note(changes)
            self._committed(changes)

    def _note(self, changes: Sequence[Change]) -> None:
        now, withdrawn = time.time(), 0
        for change in changes:
            slate = change.slate
            if slate is None:
                self._ledger.withdraw(change.user, change.partition)
                withdrawn += 1
                continue
            self._ledger.note(change.user, change.partition, fingerprint(slate), content_keys(slate))
            if slate.caused_by is not None and change.timely:
                received = milliseconds(slate.caused_by.received_at) / 1000
                metrics.FRESHNESS_SECONDS.observe(max(now - received, 0.0))
        metrics.SLATES.labels("withdrawn").inc(withdrawn)
        metrics.SLATES.labels("published").inc(len(changes) - withdrawn)
