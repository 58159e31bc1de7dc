"""A dead letter's second chance: what is produced again, what is refused, and the mark that it leaves.

Pure: reading and producing are the command's. A redriven letter stays where it is; a *mark* on the
same partition, written in the same transaction as the copy, says that it has had its chance. Marks
come after their letters, so retention never removes one before its letter. They name a letter by its
record's first arrival and how many chances it had had, not by its offset: a letter that was written
twice, or moved, has its chance once.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from stream_app.events.dead_letters import (
    PREFIX,
    Origin,
    origin_in,
    our_headers,
    redriven,
)
from stream_app.events.named import users_in
from stream_app.hashing import key64
from stream_app.kafka.partitions import partition_of
from stream_app.kafka.records import Record
from stream_app.kafka.transactions import Output
from stream_app.settings import Settings
from stream_app.topics import RETRY_TOPIC

CONTENT_TOPIC = "content"
DLQ_TOPIC = "events-dlq"
UNKNOWN = "unknown"

ContentKey = tuple[int, int]
"""Partition of ``content``, key64 of the key."""


class Refusal(StrEnum):
    """Why a dead letter gets no second chance. The value is the code that ``dlq redrive`` counts."""

    meaning: str

    def __new__(cls, code: str, meaning: str) -> Refusal:
        """A member: its value is ``code``, ``meaning`` says it in one line."""
        refusal = str.__new__(cls, code)
        refusal._value_ = code
        refusal.meaning = meaning
        return refusal

    NO_ORIGIN = "no_origin", "Its headers do not say where the record first arrived."
    FOREIGN = (
        "foreign",
        "The record first arrived on a topic that is neither `content` nor one of `events.actions`.",
    )
    NO_PARTITION = (
        "no_partition",
        "A content whose partition on `content` does not exist any more. An event goes where its user lives.",
    )
    NO_VALUE = "no_value", "There is nothing to try again: the value is null or empty, or was erased."
    NO_KEY = "no_key", "A content without a key: nothing says which record it would replace."
    TRUNCATED = "truncated", "The record did not fit into its dead letter: key or value were cut."
    TOO_OFTEN = "too_often", "The record has had `events.max_redrives` second chances."
    SUPERSEDED = "superseded", "A newer record of this key stands on `content`, and would be undone."


def is_mark(record: Record) -> bool:
    """Whether a record of ``events-dlq`` is no letter but the mark of a redrive."""
    return any(name == f"{PREFIX}redriven" for name, _ in record.headers)


def mark_in(record: Record) -> int:
    """Which letter a mark is of, to be compared with :func:`mark_of`."""
    return key64(our_headers(record).get("redriven", b""))


def mark_of(letter: Record) -> int | None:
    """64-bit name of a letter among marks; None when its headers do not say where it came from."""
    origin = origin_in(letter)
    return None if origin is None else key64(_mark(origin))


def reason_of(letter: Record) -> str:
    """Reason code of a dead letter; ``unknown`` when it does not say."""
    reason = our_headers(letter).get("reason", b"").decode(errors="replace")
    return reason if reason.isascii() and reason.replace("_", "").isalnum() else UNKNOWN


class SecondChances:
    """Decides on letters. ``partitions``: how many ``events-retry`` and ``content`` have on the broker."""

    def __init__(self, settings: Settings, partitions: Mapping[str, int]) -> None:
        self._events = {settings.topic_name(action.topic) for action in settings.events.actions}
        self._content = settings.topic_name(CONTENT_TOPIC)
        self._retry = settings.topic_name(RETRY_TOPIC)
        self._letters = settings.topic_name(DLQ_TOPIC)
        self._partitions = partitions
        self._most = settings.events.max_redrives

    def content_key(self, letter: Record) -> ContentKey | None:
        """Partition of first arrival and key64 of the key of a letter that would go back to ``content``;
        None for every other."""
        origin = origin_in(letter)
        if origin is None or origin.topic != self._content or letter.key is None:
            return None
        return origin.partition, key64(letter.key)

    def refusal(self, letter: Record, newest_offset: int) -> Refusal | None:
        """Why this letter gets none; None when it does.

        ``newest_offset``: of the newest record on ``content`` with its key, in the partition where it
        first arrived; -1 when there is none, or the letter is no content.
        """
        origin = origin_in(letter)
        if origin is None:
            return Refusal.NO_ORIGIN
        if origin.topic not in self._events and origin.topic != self._content:
            return Refusal.FOREIGN
        if origin.topic == self._content and origin.partition >= self._partitions[self._content]:
            return Refusal.NO_PARTITION
        if {b"key", b"value"} & set(our_headers(letter).get("truncated", b"").split(b",")):
            return Refusal.TRUNCATED
        if not letter.value:
            return Refusal.NO_VALUE
        if origin.redrives >= self._most:
            return Refusal.TOO_OFTEN
        if origin.topic == self._content:
            if letter.key is None:
                return Refusal.NO_KEY
            if newest_offset > origin.offset:
                return Refusal.SUPERSEDED
        return None

    def outputs(self, letter: Record, now_ms: int) -> tuple[Output, Output]:
        """The copy to be tried and the mark of a letter that is not refused: for one transaction."""
        origin = origin_in(letter)
        if origin is None:
            raise ValueError("a letter without origin is refused")
        key, value, headers = redriven(letter, origin, reason_of(letter), now_ms)
        mark = [(f"{PREFIX}redriven", _mark(origin)), (f"{PREFIX}time", str(now_ms).encode())]
        return (
            Output(*self._target(letter, origin), key, value, headers),
            Output(self._letters, letter.partition, None, None, mark),
        )

    def _target(self, letter: Record, origin: Origin) -> tuple[str, int]:
        """Topic and partition of the copy: a content's of before, for an event those where its user lives."""
        if origin.topic == self._content:
            return self._content, origin.partition
        partitions = self._partitions[self._retry]
        user = next(iter(users_in(letter)), None)
        return self._retry, partition_of(user, partitions) if user else origin.partition % partitions


def _mark(origin: Origin) -> bytes:
    place = (origin.topic, origin.partition, origin.offset, origin.timestamp, origin.redrives)
    return "/".join(map(str, place)).encode()
