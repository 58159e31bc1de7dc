"""Slates onto the ``recommendations`` topic: with the input's offset or not at all, and without repeats."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from stream_app.kafka.fenced import FencedPartitions
from stream_app.observability import metrics
from stream_app.recommendations.ledger import WITHDRAWN, SlateLedger
from stream_app.recommendations.pipeline import Change
from stream_app.recommendations.slate import content_keys, cut, encode, fingerprint, milliseconds
from stream_app.settings import Settings

log = logging.getLogger(__name__)

HEADER_BYTES = 1_024
"""Of a slate's record: the trace's context, framing, at most."""

ITEM_BYTES = 512
"""Of an item or a reason beside its content's id, at most."""

ESCAPED = 6
"""Bytes of a byte in JSON, at most."""

_News = tuple[Change, int]
"""A change with the fingerprint of its slate."""

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
        self._room = settings.kafka.max_record_bytes - HEADER_BYTES - settings.events.max_id_bytes
        largest = (1 + settings.ranking.reasons) * (ITEM_BYTES + ESCAPED * settings.events.max_id_bytes)
        self._always_fit = self._room // largest
        self._told = False

    async def publish(self, changes: Sequence[Change], ends: Mapping[int, int] = NO_OFFSETS) -> int:
        """Return once all that is news is committed, each partition's with its input position in ``ends``;
        how many changes that were.

        Changes for a partition that is lost, or that gets lost over them, are dropped: whoever owns it next
        reads from the committed position on.
        """
        news: dict[int, list[_News]] = {partition: [] for partition in ends}
        for change in map(self._fitting, changes):
            mark = WITHDRAWN if change.slate is None else fingerprint(change.slate.items)
            if not self._unchanged(change, mark):
                news.setdefault(change.partition, []).append((change, mark))
        count = sum(map(len, news.values()))
        metrics.SLATES.labels("unchanged").inc(len(changes) - count)
        await asyncio.gather(*(self._commit(p, those, ends.get(p)) for p, those in news.items()))
        return count

    def _fitting(self, change: Change) -> Change:
        """A change that the broker takes."""
        slate = change.slate
        if slate is None or len(slate.items) <= self._always_fit or len(encode(slate)) <= self._room:
            return change
        metrics.SLATES_CUT.inc()
        if not self._told:
            self._told = True
            log.warning(
                "slates of more than kafka.max_record_bytes are cut; lower ranking.slate_size or reasons"
            )
        return dataclasses.replace(change, slate=cut(slate, self._room))

    def _unchanged(self, change: Change, mark: int) -> bool:
        # with the setting off each event gets an answer; where there was no event, there is nothing to answer
        if change.slate is None or (change.timely and not self._skip_unchanged):
            return False
        return self._ledger.unchanged(change.user, change.partition, mark)

    async def _commit(self, number: int, news: Sequence[_News], end: int | None) -> None:
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
            for c, _ in news
        ]
        if await partition.commit(outputs, end):
            self._note(news)
            self._committed([change for change, _ in news])

    def _note(self, news: Sequence[_News]) -> None:
        now, withdrawn = time.time(), 0
        for change, mark in news:
            slate = change.slate
            if slate is None:
                self._ledger.withdraw(change.user, change.partition)
                withdrawn += 1
                continue
            self._ledger.note(change.user, change.partition, mark, content_keys(slate))
            if slate.caused_by is not None and change.timely:
                received = milliseconds(slate.caused_by.received_at) / 1000
                metrics.FRESHNESS_SECONDS.observe(max(now - received, 0.0))
        metrics.SLATES.labels("withdrawn").inc(withdrawn)
        metrics.SLATES.labels("published").inc(len(news) - withdrawn)
