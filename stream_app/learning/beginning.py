"""Counts that a trainer starts with: what ``content-stats`` says, added up over the user partitions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.content.index import ContentIndex
from stream_app.errors import RecordFormatError
from stream_app.events.times import LATEST_MS, newest_believed
from stream_app.hashing import action_code
from stream_app.interests import statistics_record
from stream_app.interests.statistics_record import RESERVED, Statistics
from stream_app.learning.activity import HALF_LIVES_H, WEIGHTED
from stream_app.learning.counts import EngagementCounts
from stream_app.observability import metrics
from stream_app.settings import Settings


class ContentCounts:
    """The newest record of each content and partition, until they are counted."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._weights = {action_code(action.name): action.weight for action in settings.events.actions}
        self._records: dict[tuple[bytes, int], bytes] = {}

    def take(self, partition: int, content_id: bytes | None, value: bytes | None) -> None:
        """Take note of one record; a null value withdraws the one before it."""
        if content_id is None or content_id.startswith(RESERVED):
            return
        if value is None:
            self._records.pop((content_id, partition), None)
        else:
            self._records[content_id, partition] = value

    def into(self, counts: EngagementCounts, index: ContentIndex) -> int:
        """Add all that was noted of the contents in ``index`` to ``counts``, and forget it. Returns stream
        time, ms; 0 without any. Records that cannot be read are counted and skipped."""
        stream_time, latest = 0, newest_believed(self._settings)
        for (content_id, _), value in self._records.items():
            row = index.rows.get(content_id)
            try:
                statistics = statistics_record.decode(value)
            except RecordFormatError:
                metrics.TRAINER_REJECTED.labels("content-stats").inc()
                continue
            if not (0 < statistics.t_ref <= LATEST_MS and np.isfinite(statistics.counts).all()):
                metrics.TRAINER_REJECTED.labels("content-stats").inc()
                continue
            t_ref = min(statistics.t_ref, latest)
            stream_time = max(stream_time, t_ref)
            if row is not None:
                counts.add(row, t_ref, *self._sums(statistics))
        self._records.clear()
        return stream_time

    def _sums(self, statistics: Statistics) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What is counted of one content at HALF_LIVES_H, and the weighted sums; 0 where the writer had
        other half-lives. An action that is not configured any more weighs nothing and is not counted."""
        weights = np.array([self._weights.get(code, np.nan) for code in statistics.actions.tolist()])
        near = np.isclose(statistics.half_lives_h, np.array(HALF_LIVES_H)[:, None], rtol=1e-3)  # [H, h]
        columns = np.where(near.any(axis=1), near.argmax(axis=1), -1)
        found = np.append(statistics.counts, np.zeros((len(weights), 1), np.float32), axis=1)[:, columns]
        engaged = found[weights >= 0].sum(axis=0)
        weighted = np.nan_to_num(weights) @ found[:, list(WEIGHTED)]
        return engaged.astype(np.float32), weighted.astype(np.float32)
