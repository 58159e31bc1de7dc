"""The content index as the state path uses it: it changes between batches, never during one."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from stream_app.content.coverage import Coverage
from stream_app.content.index import ContentIndex
from stream_app.interests.update import Vectors
from stream_app.kafka.records import Record

MOST_PENDING = 8_000
"""Records that may wait for the batch in hand: some 8 MB of vectors."""
WAIT_S = 0.01


class IndexedContents:
    """Lets the reader of ``content-vectors`` and a batch in a thread share one index."""

    def __init__(self, index: ContentIndex) -> None:
        self.index = index
        self.coverage = Coverage(index.model)
        """Which contents are still to come under the index's encoder; as current as the index"""
        self.vectors = Vectors(index.vectors, index.row_of_key, index.versions, index.row_of_version)
        self._pending: deque[tuple[bytes | None, bytes | None]] = deque()
        self._lock = threading.Lock()

    def receive(self, records: Sequence[Record]) -> None:
        """Take records of ``content-vectors``: at once, or when the batch in hand is done."""
        self._pending.extend((record.key, record.value) for record in records)
        if self._lock.acquire(blocking=False):
            try:
                self._apply_pending()
            finally:
                self._lock.release()

    async def take(self, records: Sequence[Record]) -> None:
        """:meth:`receive` for a reader: returns once no more than MOST_PENDING records wait."""
        self.receive(records)
        while len(self._pending) > MOST_PENDING:
            await asyncio.sleep(WAIT_S)
            self.receive(())

    @contextmanager
    def still(self) -> Iterator[ContentIndex]:
        """The index, current, and unchanged until the block ends."""
        with self._lock:
            self._apply_pending()
            yield self.index
        # what arrived meanwhile is applied with the next batch or the next record

    def rows(self, contents: Sequence[bytes]) -> NDArray[np.int64]:
        """Index rows of these content ids, -1 where unknown."""
        found = map(self.index.rows.get, contents, repeat(-1))
        return np.fromiter(found, np.int64, len(contents))

    def _apply_pending(self) -> None:
        if self._pending:
            taken = list(self._pending)
            self._pending.clear()
            self.index.apply(taken)
            self.coverage.apply(taken)
