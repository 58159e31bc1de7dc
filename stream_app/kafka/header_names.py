"""Header names that are not UTF-8 do not stop a partition.

Kafka says that header names are UTF-8, and its broker takes any bytes. aiokafka raises on such a name,
at every fetch anew: one record of a careless producer would hold up its partition for ever. Here that
fetch is read once more, by aiokafka's slower Python code, with the bytes that are no UTF-8 escaped
(``\\xff``); all other fetches go the usual way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.record.memory_records import MemoryRecords, _MemoryRecordsPy

MAGIC_OFFSET = _MemoryRecordsPy.MAGIC_OFFSET
FIRST_WITH_HEADERS = 2


class KeptRecords(MemoryRecords):  # type: ignore[misc]  # untyped base
    """Fetched record batches that can be read once more."""

    def __init__(self, fetched: bytes) -> None:
        super().__init__(fetched)
        self.fetched = fetched


class PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]  # untyped base
    """What one fetch brought of one partition."""

    _records: Any
    next_fetch_offset: int

    def _unpack_records(self) -> Iterator[Any]:
        try:
            yield from super()._unpack_records()
        except UnicodeDecodeError:
            self._records = _EscapedRecords(self._records.fetched, self.next_fetch_offset)
            yield from super()._unpack_records()


class _EscapedRecords:
    """The batches of a fetch from a position on."""

    def __init__(self, fetched: bytes, position: int) -> None:
        self._batches = []
        slices = _MemoryRecordsPy(fetched)
        while slices.has_next():
            batch, magic = slices._next_slice, slices._next_slice[MAGIC_OFFSET]
            slices._cache_next()
            if magic < FIRST_WITH_HEADERS:
                self._batches.append(LegacyRecordBatch(batch, magic))
            elif (escaped := _EscapedBatch(batch)).next_offset > position:
                self._batches.append(escaped)
        self._batches.reverse()

    def has_next(self) -> bool:
        return bool(self._batches)

    def next_batch(self) -> Any:
        return self._batches.pop()


class _EscapedBatch(_DefaultRecordBatchPy):  # type: ignore[misc]  # untyped base
    _buffer: Any

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer = _Escaping(self._buffer)


class _Escaping(bytearray):
    """A buffer whose slices decode to text whatever they hold."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Escaping(found) if isinstance(at, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "backslashreplace") -> str:
        return super().decode(encoding, errors)


fetcher.MemoryRecords = KeptRecords
fetcher.PartitionRecords = PartitionRecords
