"""Whether one encoder's vectors cover the catalogue: those of another may stand there alone.

For each partition of ``content`` a content worker keeps a *mark* among the vectors, in its transactions:
key ``00 encoded 00 CODE 00 PARTITION``, value JSON (:class:`Mark`). A mark says that what the worker's
consumer group has committed of that partition has been encoded; without one (the topic was made anew, the
encoder was retired, an earlier version ran) nothing is known of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from stream_app.content import vectors
from stream_app.content.vectors import split_key
from stream_app.errors import RecordFormatError
from stream_app.hashing import model_code

_MARK = re.compile(rb"\0encoded\0([0-9a-f]{8})\0([0-9]{1,9})")


class Mark(msgspec.Struct, frozen=True, gc=False):
    """How far an encoder has got with a partition of ``content``."""

    model: str
    partitions: int
    """How many ``content`` has."""
    at: int = 0
    """ms, wall clock: when all that stood there had been encoded; 0: not yet."""


def mark_key(code: int, partition: int) -> bytes:
    """Key of the mark of the encoder with this code."""
    return b"\0encoded\0%08x\0%d" % (code, partition)


def split_mark(key: bytes) -> tuple[int, int] | None:
    """The encoder's code and the partition; None where the key is no mark's."""
    found = _MARK.fullmatch(key)
    return None if found is None else (int(found[1], 16), int(found[2]))


class Coverage:
    """What stands on ``content-vectors`` under one encoder, and under others alone."""

    def __init__(self, model: str) -> None:
        """Nothing is known yet."""
        self.marks: dict[int, Mark] = {}
        """Partition of ``content`` → this encoder's mark"""
        self._code = model_code(model)
        self._mine: set[bytes] = set()
        self._others: dict[bytes, dict[int, int]] = {}  # content → code → when it was encoded, ms
        self._plain: dict[bytes, tuple[int, int]] = {}  # the same of records with an earlier version's key
        self._lacking: dict[bytes, int] = {}  # contents that others alone have → when they were encoded last

    def apply(self, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Apply (key, value) records in their order; those that cannot be read say nothing."""
        for key, value in records:
            if key is None:
                continue
            if (place := split_key(key)) is None:
                self._apply_mark(key, value)
            elif place.former is None:
                self._apply_content(place.content_id, place.code, value)

    @property
    def missing(self) -> int:
        """Contents that other encoders have a record of and this one has not, as far as it may come yet."""
        done = self._done
        return sum(at > done for at in self._lacking.values())

    @property
    def complete(self) -> bool:
        """Whether what is not here will not come: deleted, or of no use to this encoder."""
        done = self._done
        return done > 0 and self.missing == 0

    def covers(self, content_id: bytes) -> bool:
        """Whether this encoder has a record of the content."""
        return content_id in self._mine or self._plain.get(content_id, (None,))[0] == self._code

    def trusts(self, partition: int) -> bool:
        """Whether what the encoder's group has committed of a partition of ``content`` has been encoded."""
        if partition in self.marks:
            return True
        some = self._mine or any(code == self._code for code, _ in self._plain.values())
        return bool(some and not self._lacking)

    @property
    def _done(self) -> int:
        """ms: all that was sent before had been encoded by then; 0 when it has not."""
        if not self.marks or len(self.marks) < max(mark.partitions for mark in self.marks.values()):
            return 0
        return min(mark.at for mark in self.marks.values())

    def _apply_mark(self, key: bytes, value: bytes | None) -> None:
        place = split_mark(key)
        if place is None or place[0] != self._code:
            return
        if value is None:
            self.marks.pop(place[1], None)
            return
        try:
            self.marks[place[1]] = msgspec.json.decode(value, type=Mark)
        except msgspec.MsgspecError:
            self.marks.pop(place[1], None)

    def _apply_content(self, content: bytes, code: int | None, value: bytes | None) -> None:
        if value is None:
            if code is None:
                self._plain.pop(content, None)
            elif code == self._code:
                self._mine.discard(content)
            elif (others := self._others.get(content)) is not None:
                others.pop(code, None)
                if not others:
                    del self._others[content]
        elif code == self._code:
            self._mine.add(content)
        else:
            try:
                record = vectors.decode(value)
            except RecordFormatError:
                return
            if code is None:
                self._plain[content] = record.code, record.encoded_at
            else:
                self._others.setdefault(content, {})[code] = record.encoded_at
        self._judge(content)

    def _judge(self, content: bytes) -> None:
        times = [*self._others.get(content, {}).values()]
        if content in self._plain:
            times.append(self._plain[content][1])
        if times and not self.covers(content):
            self._lacking[content] = max(times)
        else:
            self._lacking.pop(content, None)
