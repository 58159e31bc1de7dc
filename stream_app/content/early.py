"""What other topics say of contents that the index does not know yet: topics have no common order."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from stream_app.content.index import ContentIndex

Held = TypeVar("Held")


class Early(Generic[Held]):
    """Holds one thing each of as many contents as the index has rows; those longest unheard of go first."""

    def __init__(self, index: ContentIndex) -> None:
        self._index = index
        self._held: OrderedDict[bytes, Held] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, content_id: bytes) -> Held | None:
        """What is held of that content."""
        return self._held.get(content_id)

    def hold(self, content_id: bytes, held: Held) -> bytes | None:
        """Hold this of that content, in place of what was held before. Returns the content that was given
        up for it, None where there was room."""
        self._held[content_id] = held
        self._held.move_to_end(content_id)
        if len(self._held) > len(self._index.keys):
            return self._held.popitem(last=False)[0]
        return None

    def drop(self, content_id: bytes) -> None:
        """Hold nothing of that content."""
        self._held.pop(content_id, None)

    def arrived(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, Held]]:
        """Row and what was held of the contents that stand in these rows of the index now; held no more."""
        if not self._held:
            return
        for row in rows.tolist():
            content_id = self._index.ids[row]
            if content_id is not None and (held := self._held.pop(content_id, None)) is not None:
                yield row, held
