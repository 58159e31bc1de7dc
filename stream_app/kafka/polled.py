"""What kafka-python fetches: all codecs, within their bound; what cannot be read is passed over.

Commands, ``client.Subscriber`` and the pages read with kafka-python. They own no partition, so a batch that
cannot be read is counted, said in the log, and left behind. ``patches.py`` puts these classes in the place of
the library's; ``tests/kafka/test_unreadable.py`` pins the internals that are relied on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from kafka.consumer import fetcher
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.legacy_records import LegacyRecordBatch

from stream_app.kafka.batches import LARGE_BYTES, MAX_BYTES, TAKE_BYTES, V2, Batches, check_headers
from stream_app.kafka.header_names import Escaping

HEADER_BYTES = 64
"""What a header takes in memory beside its text."""


class FetchedBatches(Batches):
    """Batches for kafka-python."""

    def batch(self, raw: memoryview, magic: int) -> Any:
        return _Batch(raw, self) if magic == V2 else _Legacy(raw, magic, self)


class _Batch(DefaultRecordBatch):  # type: ignore[misc]  # untyped base
    """A batch that is unpacked within its bound, and whose header names may be any bytes."""

    _buffer: bytearray
    _pos: int
    _decompressed: bool

    def __init__(self, raw: memoryview, batches: Batches) -> None:
        super().__init__(raw)
        self._batches = batches

    def _maybe_uncompress(self) -> None:
        if not self._decompressed and self.compression_type:
            payload = memoryview(self._buffer)[self._pos :]
            self._buffer = bytearray().join(self._batches.unpacked(self.compression_type, payload))
            self._pos = 0
        self._decompressed = True

    def _read_msg(self) -> Any:
        if len(self._buffer) >= LARGE_BYTES:
            check_headers(self._buffer, self._pos)
        try:
            return super()._read_msg()
        except UnicodeDecodeError:
            self._buffer = Escaping(self._buffer)
            return super()._read_msg()


class _Legacy(LegacyRecordBatch):  # type: ignore[misc]  # untyped base
    """A message of before Kafka 0.11; a compressed one has others in it."""

    def __init__(self, raw: memoryview, magic: int, batches: Batches) -> None:
        super().__init__(raw, magic)
        self._batches = batches

    def _decompress(self, key_offset: int) -> bytes:
        _key, value = self._read_key_value(key_offset)
        return b"".join(self._batches.unpacked(self.compression_type, memoryview(value or b"")))


class _PartitionRecords(fetcher.Fetcher.PartitionRecords):  # type: ignore[misc]  # untyped base
    """What one fetch brought of one partition."""

    next_fetch_offset: int
    highwater: int | None = None
    full = False
    """Whether the last take has as many bytes as one may."""

    def __init__(
        self, fetch_offset: int, tp: Any, records: FetchedBatches, *, check_crcs: int, **options: Any
    ) -> None:
        """``check_crcs`` is ``kafka.batch_max_bytes``; checksums are checked in any case."""
        records.most = MAX_BYTES if isinstance(check_crcs, bool) else check_crcs
        super().__init__(fetch_offset, tp, records, check_crcs=False, **options)

    def take(self, n: int | None = None) -> list[Any]:
        """At most ``n`` records, and no more once they have the bytes of one take."""
        taken, size = [], 0
        if self.record_iterator is not None:
            for record in itertools.islice(self.record_iterator, n):
                taken.append(record)
                size += max(record.serialized_key_size, 0) + max(record.serialized_value_size, 0)
                size += len(record.headers) * HEADER_BYTES
                if size >= TAKE_BYTES:
                    break
        self.full = size >= TAKE_BYTES
        return taken

    def _unpack_records(self, tp: Any, records: FetchedBatches, *deserializers: Any) -> Iterator[Any]:
        while True:
            try:
                yield from super()._unpack_records(tp, records, *deserializers)
                return
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  # whatever a producer sent: its neighbours go on
                if (damage := records.damage(error, self.next_fetch_offset, self.highwater)) is not None:
                    damage.tell(tp.topic, tp.partition)
                    self.next_fetch_offset = damage.last + 1


class Fetcher(fetcher.Fetcher):  # type: ignore[misc]  # untyped base
    """Hands on no more at a time than one take has."""

    PartitionRecords = _PartitionRecords

    def _parse_fetched_data(self, completed_fetch: Any) -> Any:
        parsed = super()._parse_fetched_data(completed_fetch)
        if parsed is not None:
            parsed.highwater = completed_fetch.partition_data.high_watermark
        return parsed

    def _append(self, drained: Any, part: _PartitionRecords, max_records: int, update_offsets: bool) -> int:
        count: int = super()._append(drained, part, max_records, update_offsets)
        return max_records if part.full else count
