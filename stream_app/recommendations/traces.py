"""Spans of slates, where ``observability.tracing`` is on; one round's at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stream_app.kafka.records import Record
from stream_app.recommendations.pipeline import Change

if TYPE_CHECKING:  # OpenTelemetry is an extra
    from stream_app.observability.tracing import Context, Passage, Tracing


class SlateTraces:
    """Where the users of a round are on their way from ``interests`` to ``recommendations``."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._passages: dict[bytes, Passage] = {}
        self._contexts: dict[bytes, Context] = {}

    @contextmanager
    def round(self, records: Iterable[Record]) -> Iterator[None]:
        """While these are ranked. Whoever is not published by its end had a slate already that shows the
        same, or a partition that was lost."""
        self._passages, self._contexts = self._tracing.slates(records)
        try:
            yield
        finally:
            for passage in self._passages.values():
                passage.end()
            self._passages, self._contexts = {}, {}

    def step(self, name: str, users: Iterable[bytes]) -> None:
        """These users have done a step."""
        for user in users:
            if (passage := self._passages.get(user)) is not None:
                passage.step(name)

    def headers(self, change: Change) -> Context:
        """What goes out with a change. One that no event of the round has caused has no trace."""
        return self._contexts.get(change.user, ()) if change.timely else ()

    def published(self, changes: Sequence[Change]) -> None:
        """These stand on the topic."""
        for change in changes:
            if change.timely and (passage := self._passages.pop(change.user, None)) is not None:
                passage.step("publishing")
                passage.end()
