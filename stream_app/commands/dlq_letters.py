"""Reading dead letters for ``stream-app dlq``: which are asked for, and which had a second chance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stream_app.errors import StreamAppError
from stream_app.events.dead_letters import our_headers, written_ms
from stream_app.events.redrive import DLQ_TOPIC, is_mark, mark_in, reason_of
from stream_app.kafka import clients
from stream_app.settings import Settings

Place = tuple[int, int]
"""Partition and offset on ``events-dlq``."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters are asked for; an empty filter lets all pass."""

    reasons: frozenset[str] = frozenset()
    topic: str | None = None
    """Full name of the topic of first arrival."""
    since_ms: int | None = None
    """Written at this time or later."""
    until_ms: int | None = None
    """Written before this time."""
    places: frozenset[Place] = frozenset()

    @property
    def everything(self) -> bool:
        """Whether nothing was asked for in particular."""
        return self == Selection()

    def has(self, letter: Any) -> bool:
        """Whether a letter (kafka-python's record; it has no types) is asked for."""
        return (
            (self.since_ms is None or written_ms(letter) >= self.since_ms)
            and (self.until_ms is None or written_ms(letter) < self.until_ms)
            and (not self.places or (letter.partition, letter.offset) in self.places)
            and (not self.reasons or reason_of(letter) in self.reasons)
            and (self.topic is None or our_headers(letter).get("topic") == self.topic.encode())
        )


def read_letters(settings: Settings, selection: Selection) -> Iterator[Any]:
    """The letters that are asked for, from the topic's beginning to the end it has now; no marks."""
    for record in clients.read_topic(settings, settings.topic_name(DLQ_TOPIC)):
        if not is_mark(record) and selection.has(record):
            yield record


def read_marks(settings: Settings) -> set[int]:
    """Names of the letters that had their second chance (see :func:`mark_of`)."""
    records = clients.read_topic(settings, settings.topic_name(DLQ_TOPIC))
    return {mark_in(record) for record in records if is_mark(record)}


def no_letter(settings: Settings, partition: int, offset: int) -> StreamAppError:
    """The error that says so."""
    return StreamAppError(
        f"{settings.topic_name(DLQ_TOPIC)} has no dead letter at partition {partition}, offset {offset}: "
        "see `dlq list`"
    )
