"""Batches that cannot be read, in fetches made by hand: with both libraries each costs only itself."""

from __future__ import annotations

import asyncio
import logging
import struct
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.consumer import fetcher as aiokafka_fetcher
from aiokafka.structs import TopicPartition
from kafka.consumer import fetcher as kafka_python_fetcher
from kafka.consumer import group

from stream_app.kafka import batches, fetched, patches, polled
from stream_app.kafka.unreadable import UnreadableRange
from stream_app.observability import metrics
from tests.kafka import record_batches as made

patches.apply()

TP = TopicPartition("likes", 0)
Log = list[tuple[int, bytes]]
"""Batches as they stand on a broker: last offset, bytes."""

Outcome = list[tuple[int, Any]]
"""(offset, value) of records, and (first, (last, records, reason)) of ranges."""


class Assignment:
    """aiokafka's, of one partition."""

    active = True

    def __init__(self, highwater: int) -> None:
        self.state = SimpleState(highwater)

    def state_value(self, _tp: Any) -> SimpleState:
        return self.state


class SimpleState:
    paused = False

    def __init__(self, highwater: int) -> None:
        self._position, self.highwater = 0, highwater

    @property
    def position(self) -> int:
        return self._position

    def consumed_to(self, position: int) -> None:
        self._position = position


def by_aiokafka(
    log: Log, most: int = 1 << 20, highwater: int = 1000, aborted: Any = (), takes: list[int] | None = None
) -> Outcome:
    """Fetch again and again from where reading stands, as a broker would answer, until nothing is left."""
    assignment, outcome = Assignment(highwater), []
    for _ in range(1000):
        position = assignment.state.position
        rest = from_position(log, position)
        if not rest:
            return outcome
        records = aiokafka_fetcher.PartitionRecords(
            TP, aiokafka_fetcher.MemoryRecords(rest), list(aborted), position, None, None, most, 1
        )
        result = aiokafka_fetcher.FetchResult(TP, assignment=assignment, partition_records=records, backoff=0)
        while result.has_more():
            taken = result.getall(50)
            if takes is not None:
                takes.append(sum(len(r.value or b"") for r in taken))
            for r in taken:
                if isinstance(r, UnreadableRange):
                    assert len(taken) == 1, "a range comes alone"
                    assert taken.end == r.damage.last + 1
                    outcome.append((r.damage.first, (r.damage.last, r.damage.records, r.damage.reason)))
                else:
                    outcome.append((r.offset, r.value))
    raise AssertionError("reading goes in circles")


def by_kafka_python(
    log: Log, most: int = 1 << 20, highwater: int = 1000, aborted: Any = (), takes: list[int] | None = None
) -> Outcome:
    """Likewise; it passes over ranges, and only says so."""
    outcome: Outcome = []
    position, told = 0, Told()
    logger = logging.getLogger("stream_app.kafka.unreadable")
    logger.addHandler(told)
    try:
        for _ in range(1000):
            rest = from_position(log, position)
            if not rest:
                return sorted(outcome + told.ranges, key=lambda entry: entry[0])
            parsed = group.Fetcher.PartitionRecords(
                position,
                TP,
                kafka_python_fetcher.MemoryRecords(rest),
                check_crcs=most,
                isolation_level=1,
                aborted_transactions=[SimpleNamespace(producer_id=p, first_offset=o) for p, o in aborted],
            )
            parsed.highwater = highwater
            while parsed:
                taken = parsed.take(50)
                if takes is not None:
                    takes.append(sum(len(r.value or b"") for r in taken))
                outcome += [(r.offset, r.value) for r in taken]
            position = parsed.next_fetch_offset
    finally:
        logger.removeHandler(told)
    raise AssertionError("reading goes in circles")


class Told(logging.Handler):
    """What the log says of ranges."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges: Outcome = []

    def emit(self, line: logging.LogRecord) -> None:
        _topic, _partition, first, last, reason, _detail = line.args  # type: ignore[misc]
        self.ranges.append((first, (last, None, reason)))  # type: ignore[arg-type]


def from_position(log: Log, position: int) -> bytes:
    """What a broker answers: the batches that end at the position or after it."""
    return b"".join(raw for last, raw in log if last >= position)


READERS = [pytest.param(by_aiokafka, id="aiokafka"), pytest.param(by_kafka_python, id="kafka-python")]
by_both = pytest.mark.parametrize("read", READERS)
Read = Callable[..., Outcome]

VALUES = [b"a", b"b", b"c", b"d", b"e"]
BEFORE, AFTER = (4, made.sound(0, VALUES)), (14, made.sound(10, VALUES, "gzip"))
NEIGHBOURS = list(enumerate(VALUES))
FOLLOWING = [(10 + n, value) for n, value in NEIGHBOURS]


def same(outcome: Outcome, expected: Outcome) -> bool:
    """kafka-python does not hand on how many records a range had."""
    return [_bare(entry) for entry in outcome] == [_bare(entry) for entry in expected]


def _bare(entry: Any) -> Any:
    return (entry[0], (entry[1][0], entry[1][2])) if isinstance(entry[1], tuple) else entry


@by_both
@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "xerial", "lz4", "zstd"])
def test_every_codec_is_read(read: Read, codec: str) -> None:
    values = [b"%d " % n * 300 for n in range(120)]
    assert read([(119, made.sound(0, values, codec))]) == list(enumerate(values))


GARBAGE = {
    **{f"garbled {name}": made.garbled(made.sound(5, VALUES * 9, name)) for name in list(made.CODECS)[1:]},
    **{f"codec {n}": made.of_codec(n)(made.sound(5, VALUES)) for n in (5, 6, 7)},
    "no gzip": made.batch(5, b"", 5, codec=1),
    "not compressed": made.batch(5, b"\xff" * 40, 5),
    "a length of 2^63": made.batch(5, made.varint(60) + b"\x00\x00\x00" + made.varint((1 << 62) - 1), 5),
    "headers without end": made.batch(
        5, made.varint(60) + b"\x00\x00\x00\x01\x01" + made.varint(1 << 40) + b"\x00" * 50, 5
    ),
}


@by_both
@pytest.mark.parametrize("name", GARBAGE)
def test_a_batch_with_a_sound_header_is_one_range(read: Read, name: str) -> None:
    bad = GARBAGE[name]
    count = struct.unpack_from(">i", bad, 23)[0] + 1
    after = (9 + count, made.sound(5 + count, VALUES))
    expected = [
        *NEIGHBOURS,
        (5, (4 + count, count, "unreadable_batch")),
        *((5 + count + n, value) for n, value in NEIGHBOURS),
    ]
    assert same(read([BEFORE, (4 + count, bad), after]), expected)


@by_both
@pytest.mark.parametrize("change", [made.flipped, lambda raw: raw[:16] + b"\x07" + raw[17:]])
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_batch_that_is_not_to_be_believed_ends_where_the_next_begins(
    read: Read, change: Callable[[bytes], bytes], codec: str
) -> None:
    bad = change(made.sound(5, VALUES, codec))
    expected = [*NEIGHBOURS, (5, (9, 5, "unreadable_batch")), *FOLLOWING]
    assert same(read([BEFORE, (9, bad), AFTER]), expected)
    huge = bad[:23] + struct.pack(">i", 2_000_000_000) + bad[27:]  # it says that it had as many offsets
    assert same(read([BEFORE, (9, huge), AFTER]), expected)


@by_both
def test_nor_does_the_last_one_reach_beyond_the_end(read: Read) -> None:
    bad = made.flipped(made.sound(5, VALUES))
    bad = bad[:23] + struct.pack(">i", 2_000_000_000) + bad[27:]
    assert same(read([BEFORE, (9, bad)], highwater=10), [*NEIGHBOURS, (5, (9, 5, "unreadable_batch"))])


@by_both
def test_what_a_batch_holds_before_its_damage_is_read(read: Read) -> None:
    plain = b"".join(made.record(n, b"k", value) for n, value in enumerate(VALUES))
    bad = made.batch(5, plain[:-20] + b"\xff" * 20, 5)
    expected = [*NEIGHBOURS, (5, b"a"), (6, b"b"), (7, (9, 3, "unreadable_batch")), *FOLLOWING]
    assert same(read([BEFORE, (9, bad), AFTER]), expected)


@by_both
@pytest.mark.parametrize("length", [-1, 0, 13, 20, 1 << 30])
def test_an_impossible_length_does_not_hold_up_what_comes_before(read: Read, length: int) -> None:
    bad = made.sound(5, VALUES)
    bad = bad[:8] + struct.pack(">i", length) + bad[12:]
    one_by_one = [(offset, (offset, 1, "unreadable_batch")) for offset in range(5, 10)]
    assert same(read([BEFORE, (9, bad), AFTER]), [*NEIGHBOURS, *one_by_one, *FOLLOWING])


@by_both
@pytest.mark.parametrize("codec", list(made.CODECS)[1:])
def test_a_batch_that_unpacks_to_too_much_is_one_range(read: Read, codec: str) -> None:
    plain = made.record(0, b"k", bytes(3 << 20))
    bomb = made.batch(5, made.packed(codec, plain), 5, codec=made.CODECS[codec], records=1)
    expected = [*NEIGHBOURS, (5, (9, 1, "oversized_batch")), *FOLLOWING]
    assert same(read([BEFORE, (9, bomb), AFTER]), expected)
    assert read([(9, bomb)], 4 << 20) == [(5, bytes(3 << 20)), (6, (9, 1, "oversized_batch"))][:1]


@by_both
def test_many_batches_within_the_bound_are_not_unpacked_at_once(read: Read) -> None:
    """Hundreds of them fit into one fetch: what is taken at a time is bounded, too."""
    size = 3 << 20
    payload = made.packed("zstd", made.record(0, None, bytes(size)))
    data = [(n, made.batch(n, payload, 1, codec=4)) for n in range(40)]
    takes: list[int] = []
    assert [offset for offset, _ in read(data, 4 << 20, takes=takes)] == list(range(40))
    assert max(takes) <= batches.TAKE_BYTES + size


@by_both
@pytest.mark.parametrize("odd", [[], [(b"\xff", b"")]], ids=["names in order", "an odd name"])
def test_headers_without_number_are_not_read(read: Read, odd: list[made.Header]) -> None:
    """Two bytes each in a batch, sixty-four in memory."""
    empty = made.record(0, None, b"")[:-1]
    body = empty[1:] + made.varint(3_000_000) + bytes(6_000_000)
    plain = made.record(0, b"k", b"a", odd) + made.varint(len(body)) + body
    bomb = made.batch(5, made.packed("gzip", plain), 5, codec=1, records=2)
    expected = [*NEIGHBOURS, (5, b"a"), (6, (9, 2, "oversized_batch")), *FOLLOWING]
    assert same(read([BEFORE, (9, bomb), AFTER], 64 << 20), expected)


@by_both
def test_many_headers_are_not_taken_at_once(read: Read) -> None:
    headers = [(b"", b"")] * 20_000
    plain = b"".join(made.record(n, None, b"%d" % n, headers) for n in range(60))
    takes: list[int] = []
    found = read([(59, made.batch(0, made.packed("lz4", plain), 60, codec=3))], 64 << 20, takes=takes)
    assert found == [(n, b"%d" % n) for n in range(60)]
    assert len(takes) >= 4


@by_both
def test_aborted_batches_are_neither_read_nor_ranges(read: Read) -> None:
    garbled = made.garbled(made.sound(5, VALUES * 9, "gzip"))
    garbled = made.batch(5, garbled[61:], 5, codec=1, attributes=0x10, producer=7)
    key = struct.pack(">hh", 0, 0)
    marker = made.batch(10, made.record(0, key, b"\x00" * 6), 1, attributes=0x30, producer=7)
    data = [BEFORE, (9, garbled), (10, marker), (15, made.sound(11, VALUES))]
    following = [(11 + n, value) for n, value in NEIGHBOURS]
    assert read(data, aborted=[(7, 5)]) == [*NEIGHBOURS, *following]
    committed = [*NEIGHBOURS, (5, (9, 5, "unreadable_batch")), *following]
    assert same(read(data), committed)


@by_both
def test_header_names_are_escaped_in_every_codec(read: Read) -> None:
    for codec in made.CODECS:
        plain = made.record(0, b"k", b"a", [(b"h\xff", b"x")]) + made.record(1, b"k", b"b")
        data = made.batch(0, made.packed(codec, plain), 2, codec=made.CODECS[codec])
        assert read([(1, data)]) == [(0, b"a"), (1, b"b")]


@by_both
@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "xerial", "lz4"])
def test_records_of_before_kafka_0_11_are_read_too(read: Read, magic: int, codec: str) -> None:
    if (magic, codec) == (0, "lz4"):
        pytest.skip("its checksum was wrong, and no client writes it any more")
    inner = b"".join(legacy(n, magic, 0, b"k", value) for n, value in enumerate(VALUES))
    data = (
        inner
        if codec == "none"
        else legacy(4, magic, made.CODECS.get(codec, 2), None, made.packed(codec, inner))
    )
    assert read([(4, data)]) == NEIGHBOURS
    if codec != "none":
        bomb = legacy(0, magic, 0, None, bytes(3 << 20))
        bad = legacy(4, magic, made.CODECS.get(codec, 2), None, made.packed(codec, bomb))
        assert _bare(read([(4, bad)])[0]) == (0, (4, "oversized_batch"))


def legacy(offset: int, magic: int, codec: int, key: bytes | None, value: bytes) -> bytes:
    """A message of version 0 or 1."""
    body = struct.pack(">bb", magic, codec) + (struct.pack(">q", made.TIME_MS) if magic else b"")
    body += struct.pack(">i", -1) if key is None else struct.pack(">i", len(key)) + key
    body += struct.pack(">i", len(value)) + value
    body = struct.pack(">I", zlib.crc32(body)) + body
    return struct.pack(">qi", offset, len(body)) + body


def test_a_batch_that_was_damaged_on_its_way_is_fetched_again() -> None:
    """Once it is whole, nothing is lost."""
    whole = [BEFORE, (9, made.sound(5, VALUES, "lz4"))]
    damaged = [BEFORE, (9, made.flipped(made.sound(5, VALUES, "lz4")))]
    assignment, found = Assignment(10), []
    for log in (damaged, damaged, whole):
        position = assignment.state.position
        records = aiokafka_fetcher.PartitionRecords(
            TP,
            aiokafka_fetcher.MemoryRecords(from_position(log, position)),
            [],
            position,
            None,
            None,
            True,
            1,
        )
        result = aiokafka_fetcher.FetchResult(TP, assignment=assignment, partition_records=records, backoff=0)
        while result.has_more():
            found += [(r.offset, r.value) for r in result.getall(50)]
    assert found == [*NEIGHBOURS, *((5 + n, value) for n, value in NEIGHBOURS)]
    assert fetched.FETCHES == 3


def test_ranges_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    def counted() -> float:
        return metrics.UNREADABLE.labels("likes", "unreadable_batch")._value.get()

    before = counted()
    with caplog.at_level(logging.WARNING):
        by_aiokafka([BEFORE, (9, made.of_codec(7)(made.sound(5, VALUES))), AFTER])
    assert counted() == before + 5
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "likes[0]: offsets 5 to 9 cannot be read: unreadable_batch (UnknownCodecError: codec 7)"


def test_both_libraries_use_what_is_ours() -> None:

    assert aiokafka_fetcher.PartitionRecords is fetched.PartitionRecords
    assert aiokafka_fetcher.FetchResult is fetched.FetchResult
    assert group.Fetcher.PartitionRecords is polled._PartitionRecords
    assert asyncio.iscoroutinefunction(aiokafka_fetcher.Fetcher._proc_fetch_request)
