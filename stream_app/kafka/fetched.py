"""Where fetched records begin: told by the fetch itself, in the step of the loop that takes them.

What has been taken from aiokafka may still be dropped on its way to a stream (the flow has stopped, the
call was given up, a seek came in between), and nobody is told. So a batch must not be called the next one
because of where reading *should* have been: these records carry where it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from aiokafka.consumer import fetcher
from aiokafka.structs import ConsumerRecord


class FetchedRecords(list[ConsumerRecord]):
    """Consecutive records of one partition, none missing between them.

    ``start`` is the end of the records taken before them if they follow without a hole, otherwise the
    position that was sought.
    """

    __slots__ = ("start",)

    def __init__(self, start: int, records: Iterable[ConsumerRecord]) -> None:
        super().__init__(records)
        self.start = start

    @property
    def end(self) -> int:
        """The position after the last record."""
        return int(self[-1].offset) + 1


class FetchResult(fetcher.FetchResult):  # type: ignore[misc]  # untyped base
    """What one fetch brought of one partition, handed out as FetchedRecords."""

    _taken: ClassVar[WeakKeyDictionary[Any, tuple[int, int]]] = WeakKeyDictionary()
    """By aiokafka's state of an assigned partition: end of the records taken last, and the position
    reached, which transaction markers may put further on."""

    def getall(self, max_records: int | None = None) -> list[ConsumerRecord]:
        """Take records; empty when there are none, or when they are no longer where reading goes on."""
        if not self._assignment.active:
            return list(super().getall(max_records))
        state = self._assignment.state_value(self._topic_partition)
        position = state._position
        records = super().getall(max_records)
        if position is None or state._position == position:
            return []
        end, reached = self._taken.get(state, (position, position))
        start = end if reached == position else position
        taken = FetchedRecords(start, records)
        self._taken[state] = (taken.end if taken else start), state._position
        return taken


fetcher.FetchResult = FetchResult
