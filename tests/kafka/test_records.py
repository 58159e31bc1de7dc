"""Our own types of what stands on Kafka, as the libraries see them."""

from __future__ import annotations

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.util import commit_structure_validate
from faust.types import TP

from stream_app.kafka.records import Partition, RecordBatch, arrived, emptied
from stream_app.kafka.transactions import RECORD_BYTES, Output
from stream_app.kafka.unreadable import Damage, UnreadableRange

PARTITION = Partition("likes", 3)


def test_a_partition_is_both_libraries() -> None:
    assert PARTITION == TP("likes", 3) == TopicPartition("likes", 3)
    assert {TP("likes", 3): 1}[PARTITION] == {TopicPartition("likes", 3): 1}[PARTITION] == 1
    assert {PARTITION: 1}[TP("likes", 3)] == 1
    assert list(commit_structure_validate({PARTITION: 7})) == [PARTITION]  # which asks for its own type
    assert not hasattr(PARTITION, "__dict__")


def test_a_record_that_arrived_is_a_consumers() -> None:
    record = arrived("likes", 3, 7, 1_000, b"ana", b"{}")
    assert isinstance(record, ConsumerRecord)
    assert (record.topic, record.partition, record.offset, record.timestamp) == ("likes", 3, 7, 1_000)
    assert (record.key, record.value, record.headers, record.timestamp_type) == (b"ana", b"{}", (), 0)
    assert RecordBatch("likes", 3, 7, [record]).end == 8


def test_what_is_left_of_an_emptied_record_is_where_it_was() -> None:
    empty = emptied(arrived("likes", 3, 7, 1_000, b"ana", b"{}"))
    assert (empty.offset, empty.timestamp) == (7, 1_000)
    assert (empty.key, empty.value, empty.headers) == (None, None, ())
    unreadable = UnreadableRange.of("likes", 3, Damage(5, 7, 3, 1_000, "unreadable_batch", "why"))
    assert emptied(unreadable) == unreadable


def test_a_header_may_have_no_value() -> None:
    assert Output("likes", 3, b"k", b"v", [("name", None)]).size == 2 + 4 + 10 + RECORD_BYTES
