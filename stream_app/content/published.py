"""What stands on ``content-vectors``, as a content worker needs it: what each content was before.

A content that comes again without ``created_at`` keeps its time; one that is deleted loses the records of
all encoders; and a vector that is replaced is known, so that it can be kept for undoing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from stream_app.content import vectors
from stream_app.content.coverage import Coverage
from stream_app.content.vectors import ContentVector, split_key
from stream_app.errors import RecordFormatError
from stream_app.settings import Settings

MODELS = 2
"""Encoders side by side whose vectors are kept in memory, for ``content.capacity`` contents each; of what is
beyond, no former vector is published: no index has it either."""


@dataclass(slots=True)
class Standing:
    """One content, as far as records tell."""

    created_at: int
    """ms"""
    known: bool
    keys: dict[bytes, int] = field(default_factory=dict)
    """Keys of its records → their encoders' codes"""
    former: dict[bytes, int] | None = None
    """Keys of its former vectors → when they became that, ms"""


class PublishedContents:
    """All contents, and the vectors of the newest."""

    def __init__(self, settings: Settings, model: str) -> None:
        """Nothing is known yet."""
        self.coverage = Coverage(model)
        """Which contents ``model`` has vectors of"""
        self._standing: dict[bytes, Standing] = {}
        self._most = MODELS * settings.content.capacity
        self._values: OrderedDict[bytes, bytes] = OrderedDict()

    def apply(self, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Apply (key, value) records in their order; those that cannot be read say nothing."""
        for key, value in records:
            self.coverage.apply([(key, value)])
            place = None if key is None else split_key(key)
            if key is None or place is None:
                continue
            if value is None:
                self._remove(place.content_id, key)
                continue
            try:
                record = vectors.decode(value)
            except RecordFormatError:
                continue
            one = self._dated(place.content_id, record)
            if place.former is not None:
                one.former = (one.former or {}) | {key: record.encoded_at}
            else:
                one.keys[key] = record.code
                self._values[key] = value
                self._values.move_to_end(key)
                if len(self._values) > self._most:
                    self._values.popitem(last=False)

    def get(self, content_id: bytes) -> Standing | None:
        """What is known of a content; of one that was deleted, as long as a former vector stands."""
        return self._standing.get(content_id)

    def record(self, key: bytes) -> ContentVector | None:
        """The record with that key, where it is kept."""
        value = self._values.get(key)
        return None if value is None else vectors.decode(value)

    def outdated(self, before_ms: int) -> Iterator[bytes]:
        """Keys of former vectors that became that before then."""
        for one in self._standing.values():
            for key, gone_at in (one.former or {}).items():
                if gone_at < before_ms:
                    yield key

    def _dated(self, content_id: bytes, record: ContentVector) -> Standing:
        one = self._standing.get(content_id)
        if one is None:
            one = self._standing[content_id] = Standing(record.created_at, record.known)
        elif record.known:
            one.created_at, one.known = record.created_at, True
        elif not one.known:
            one.created_at = min(one.created_at, record.created_at)
        return one

    def _remove(self, content_id: bytes, key: bytes) -> None:
        one = self._standing.get(content_id)
        if one is None:
            return
        one.keys.pop(key, None)
        self._values.pop(key, None)
        if one.former is not None and one.former.pop(key, None) is not None and not one.former:
            one.former = None
        if not one.keys and one.former is None:
            del self._standing[content_id]
