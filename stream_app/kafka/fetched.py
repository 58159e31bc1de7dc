"""What aiokafka fetches: batches that cannot be read become ranges, and records say where they begin.

What has been taken from aiokafka may still be dropped on its way to a stream (the flow has stopped, the
call was given up, a seek came in between), and nobody is told. So a batch must not be called the next one
because of where reading *should* have been: these records carry where it was.

``patches.py`` puts these classes in the place of aiokafka's; aborted transactions and markers stay its part.
``tests/kafka/test_faust_contract.py`` and ``tests/kafka/test_unreadable.py`` pin what is relied on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.legacy_records import LegacyRecordBatch, _LegacyRecordBatchPy
from aiokafka.structs import ConsumerRecord

from stream_app.kafka.batches import (
    LARGE_BYTES,
    MAX_BYTES,
    MAX_HEADERS,
    RECORDS_AT,
    V2,
    Batches,
    BrokenFrameError,
    ChecksumError,
    check_headers,
    codec_of,
    plain,
)
from stream_app.kafka.header_names import Escaping
from stream_app.kafka.unreadable import Damage, UnreadableRange

IDLE_WAIT_MS = 500
"""How long the broker holds a fetch of all partitions; Kafka's own clients' default."""

FETCHES = 3
"""So often a batch is fetched whose checksum does not fit: it may have been damaged on its way."""


class FetchedBatches(Batches):
    """Batches for aiokafka: its compiled code reads them, uncompressed."""

    _escaped: int | None = None

    def batch(self, raw: memoryview, magic: int) -> Any:
        if magic < V2:
            return _Legacy(raw, magic, self) if codec_of(raw) else LegacyRecordBatch(raw, magic)
        if self._escaped == self._start:
            return _Escaped(plain(raw, self) if codec_of(raw) else raw)
        return _Read(raw, self) if codec_of(raw) or len(raw) >= LARGE_BYTES else DefaultRecordBatch(raw)

    def escape(self) -> bool:
        """Read the same batch once more, with its header names escaped; False where that was done."""
        if self._escaped == self._start:
            return False
        self._escaped = self._start
        self.back()
        return True


class _Read:
    """A compressed or large batch: its header, and its records once they are asked for."""

    def __init__(self, raw: memoryview, batches: Batches) -> None:
        self._raw, self._batches = raw, batches
        self._header = DefaultRecordBatch(raw)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._header, name)

    def __iter__(self) -> Iterator[Any]:
        raw = plain(self._raw, self._batches) if codec_of(self._raw) else self._raw
        return _few_headers(raw) if len(raw) >= LARGE_BYTES else iter(DefaultRecordBatch(raw))


def _few_headers(raw: bytes | memoryview) -> Iterator[Any]:
    """Records of a large batch, each looked at before aiokafka makes its headers."""
    records, at = iter(DefaultRecordBatch(raw)), RECORDS_AT
    while True:
        at = check_headers(raw, at)
        if (record := next(records, None)) is None:
            return
        yield record


class _Escaped(_DefaultRecordBatchPy):  # type: ignore[misc]  # untyped base
    """A batch without compression that aiokafka's Python code reads."""

    _buffer: Any
    _pos: int

    def validate_crc(self) -> bool:
        return True  # it was, before it was unpacked

    def _maybe_uncompress(self) -> None:
        self._buffer = Escaping(self._buffer)

    def _read_msg(self) -> Any:
        if len(self._buffer) >= LARGE_BYTES:
            check_headers(self._buffer, self._pos)
        return super()._read_msg()


class _Legacy(_LegacyRecordBatchPy):  # type: ignore[misc]  # untyped base
    """A compressed message of before Kafka 0.11, with others in it."""

    def __init__(self, raw: memoryview, magic: int, batches: Batches) -> None:
        super().__init__(raw, magic)
        self._batches = batches

    def _decompress(self, key_offset: int) -> bytes:
        _key, value = self._read_key_value(key_offset)
        return b"".join(self._batches.unpacked(self._compression_type, memoryview(value or b"")))


class PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]  # untyped base
    """What one fetch brought of one partition, take by take.

    A take ends where :class:`Batches` says so, and before a range that cannot be read, which is a take of
    its own.
    """

    _damaged: ClassVar[WeakKeyDictionary[Any, tuple[int, int]]] = WeakKeyDictionary()
    """By aiokafka's state of an assigned partition: where a fetch was damaged last, and how often."""

    _records: FetchedBatches
    next_fetch_offset: int

    def __init__(
        self,
        tp: Any,
        records: FetchedBatches,
        aborted_transactions: Any,
        fetch_offset: int,
        key_deserializer: Any,
        value_deserializer: Any,
        check_crcs: int,
        isolation_level: int,
    ) -> None:
        """``check_crcs`` is ``kafka.batch_max_bytes``; checksums are checked in any case."""
        self.state: Any = None
        """aiokafka's state of the partition."""
        self._pending: Damage | None = None
        self._paused = False
        records.most = MAX_BYTES if isinstance(check_crcs, bool) else check_crcs
        super().__init__(
            *(tp, records, aborted_transactions, fetch_offset, key_deserializer, value_deserializer),
            *(False, isolation_level),
        )

    def __iter__(self) -> Iterator[Any]:
        headers = 0
        for record in self._records_iterator:
            yield record
            headers += len(record.headers)
            if headers > MAX_HEADERS:
                self._paused = True
                return

    def renew(self) -> bool:
        """Begin another take; whether there is anything for it."""
        if self._paused:
            self._paused = False
            return True
        if not self._records.renew() and self._pending is None:
            return False
        self._records_iterator = self._unpack_records()
        return True

    def _unpack_records(self) -> Iterator[Any]:
        begin = self.next_fetch_offset
        while self._pending is None:
            try:
                yield from super()._unpack_records()
                return
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  # whatever a producer sent: its neighbours go on
                if isinstance(error, UnicodeDecodeError) and self._records.escape():
                    continue
                if isinstance(error, ChecksumError | BrokenFrameError) and self._again():
                    return
                highwater = None if self.state is None else self.state.highwater
                self._pending = self._records.damage(error, self.next_fetch_offset, highwater)
        if self.next_fetch_offset > begin:
            return
        damage, self._pending = self._pending, None
        damage.tell(self._tp.topic, self._tp.partition)
        self.next_fetch_offset = damage.last + 1
        yield UnreadableRange.of(self._tp.topic, self._tp.partition, damage)

    def _again(self) -> bool:
        """Whether to fetch the batch at hand once more."""
        if self.state is None:
            return False
        at, times = self._damaged.get(self.state, (-1, 0))
        times = times + 1 if at == self.next_fetch_offset else 1
        self._damaged[self.state] = self.next_fetch_offset, times
        if times >= FETCHES:
            return False
        self._records = FetchedBatches(b"")
        return True


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

    _partition_records: PartitionRecords | None

    def __init__(
        self, tp: Any, *, assignment: Any, partition_records: PartitionRecords, backoff: float
    ) -> None:
        super().__init__(tp, assignment=assignment, partition_records=partition_records, backoff=backoff)
        partition_records.state = assignment.state_value(tp)

    def getall(self, max_records: int | None = None) -> list[ConsumerRecord]:
        """Take records; empty when there are none, or when they are no longer where reading goes on."""
        if not self._assignment.active:
            return list(super().getall(max_records))
        state = self._assignment.state_value(self._topic_partition)
        position, fetched = state._position, self._partition_records
        records = super().getall(max_records)
        if position is None or state._position == position:
            return []
        while fetched is not None and self._partition_records is None and fetched.renew():
            self._partition_records = fetched
            if records:
                break
            records = super().getall(max_records)
        end, reached = self._taken.get(state, (position, position))
        start = end if reached == position else position
        taken = FetchedRecords(start, records)
        self._taken[state] = (taken.end if taken else start), state._position
        return taken


class Fetcher(fetcher.Fetcher):  # type: ignore[misc]  # untyped base
    """Lets the broker hold fetches for long where that delays nothing.

    A fetch is answered as soon as any of its partitions has something. What it does not ask for has to wait
    for its end: partitions whose records have not been taken yet. Only such a fetch is kept short, by
    ``fetch_max_wait_ms``.
    """

    _fetch_min_bytes: int
    gather_ms = 0
    """Where nobody waits for what comes: after a fetch that has brought something the next one is held for so
    long, and brings whatever has come by then. Asked for one by one, records cost a fetch each."""

    def __init__(self, *args: Any, fetch_max_wait_ms: int = IDLE_WAIT_MS, **kwargs: Any) -> None:
        super().__init__(*args, fetch_max_wait_ms=fetch_max_wait_ms, **kwargs)
        self._short_wait_ms, self._long_wait_ms = fetch_max_wait_ms, max(fetch_max_wait_ms, IDLE_WAIT_MS)
        self._least_bytes, self._brought = self._fetch_min_bytes, False

    def _get_actions_per_node(self, assignment: Any) -> Any:
        if self.gather_ms and self._brought:
            self._fetch_max_wait_ms, self._fetch_min_bytes = self.gather_ms, self._max_partition_fetch_bytes
        else:
            self._fetch_max_wait_ms = self._short_wait_ms if self._records else self._long_wait_ms
            self._fetch_min_bytes = self._least_bytes
        return super()._get_actions_per_node(assignment)

    async def _proc_fetch_request(self, assignment: Any, node_id: Any, request: Any) -> Any:
        self._brought = await super()._proc_fetch_request(assignment, node_id, request)
        return self._brought
