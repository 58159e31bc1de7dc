"""What is asked about contents and not users: which are like this one, and which are engaged with now."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_app.content.index import ContentIndex
from stream_app.content.model import model_id
from stream_app.kafka.records import Record
from stream_app.ranking.largest import largest
from stream_app.ranking.popularity import ContentStatistics
from stream_app.ranking.texts import SameTexts
from stream_app.settings import Settings


class Scored(msgspec.Struct, frozen=True):
    """A content and its score."""

    content_id: str
    score: float


class Similar(msgspec.Struct, frozen=True):
    """The contents nearest to one, nearest first; scores are cosines of their vectors. What says the same
    under several ids comes once, and not as similar to itself; nothing is similar to a content without text.
    """

    content_id: str
    items: list[Scored]


class Trending(msgspec.Struct, frozen=True):
    """The contents engaged with most, most first; scores are weighted engagements, decayed by
    `ranking.popularity_half_life_h`. Of what says the same under several ids, the one engaged with most."""

    items: list[Scored]


class BusyError(Exception):
    """As many searches wait as may."""


class Catalogue:
    """The content index and its statistics. Everything but one matrix product runs on the event loop.

    N contents, D dimensions.
    """

    def __init__(self, settings: Settings) -> None:
        self._index = ContentIndex(settings, model_id(settings))
        self._statistics = ContentStatistics(settings, self._index)
        self._texts = SameTexts(self._index)
        self._half_life = self._statistics.nearest_half_life(settings.ranking.popularity_half_life_h)
        self._most = settings.serving.queue
        self._searching = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="similar")

    def learn(self, records: Sequence[Record]) -> None:
        """Apply records of ``content-vectors``."""
        self._index.apply((record.key, record.value) for record in records)
        self._settle()

    def count(self, records: Sequence[Record]) -> None:
        """Apply records of ``content-stats``."""
        self._statistics.apply((record.key, record.value) for record in records)
        self._settle()

    def _settle(self) -> None:
        self._index.evict(self._statistics.stream_time)
        changed = self._index.drain_changes()
        self._statistics.adopt(changed)
        self._texts.adopt(changed)

    async def similar(self, content_id: str, limit: int) -> Similar | None:
        """None when the content is not known. Raises BusyError."""
        index = self._index
        row = index.rows.get(content_id.encode())
        if row is None:
            return None
        if not self._texts.numbers[row]:
            return Similar(content_id, [])
        if self._searching >= self._most:
            raise BusyError
        self._searching += 1
        try:
            vector = index.vectors[row].copy()
            among = self._others(row)
            loop = asyncio.get_running_loop()
            # the index may change while the thread looks: rows come back, and are judged as they are then
            rows = await loop.run_in_executor(
                self._thread, _nearest, index.vectors[: index.high], vector, index.keys[among], among, limit
            )
        finally:
            self._searching -= 1
        rows = rows[index.live[rows]]
        scores: NDArray[np.float32] = index.vectors[rows] @ vector
        found = [
            Scored(text, round(score, 6))
            for near, score in sorted(
                zip(rows.tolist(), scores.tolist(), strict=True), key=lambda one: -one[1]
            )
            if (text := self._name(near)) and text != content_id
        ]
        return Similar(content_id, found)

    def trending(self, limit: int) -> Trending:
        """Contents with engagement above zero, as of stream time."""
        engaged = self._statistics.engagement(self._half_life, self._statistics.stream_time)
        high = self._index.high
        engaged[~self._index.live[:high]] = 0.0
        engaged[self._texts.spare(engaged > 0, engaged)] = 0.0
        rows = largest(engaged, self._index.keys[:high], limit)
        return Trending(
            [
                Scored(self._name(row), round(float(engaged[row]), 6))
                for row in rows.tolist()
                if engaged[row] > 0
            ]
        )

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _others(self, row: int) -> NDArray[np.int64]:
        """Rows that may be similar to this one: each text once, and not the row's own."""
        index, high = self._index, self._index.high
        others = index.live[:high] & (self._texts.numbers[:high] != 0)
        others &= self._texts.numbers[:high] != self._texts.numbers[row]
        others[self._texts.spare(others, np.zeros(high, np.float32))] = False
        return np.flatnonzero(others)

    def _name(self, row: int) -> str:
        return (self._index.ids[row] or b"").decode(errors="replace")


def _nearest(
    vectors: NDArray[np.float32],
    vector: NDArray[np.float32],
    keys: NDArray[np.uint64],
    among: NDArray[np.int64],
    limit: int,
) -> NDArray[np.int64]:
    """Those of the rows ``among`` [n] of vectors [N, D] that have the largest products with ``vector`` [D],
    largest first; ``keys`` [n] are theirs."""
    return among[largest((vectors @ vector)[among], keys, limit)]
