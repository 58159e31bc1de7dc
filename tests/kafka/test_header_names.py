"""Header names that are not UTF-8: the record and its neighbours are read, each once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord
from kafka import KafkaProducer

from stream_app.events.dead_letters import Origin, dead_letter
from stream_app.events.reasons import Reason
from stream_app.kafka import clients
from stream_app.kafka.connection import aiokafka_options
from stream_app.settings import Settings


class Raw(str):
    """A header name that a producer sends as these bytes."""

    def __new__(cls, raw: bytes) -> Raw:
        name = str.__new__(cls, "name")
        name.raw = raw
        return name

    raw: bytes

    def encode(self, *_: Any) -> bytes:
        return self.raw


def send(producer: KafkaProducer, topic: str, count: int, odd: dict[int, bytes]) -> None:
    for number in range(count):
        headers: list[tuple[str, bytes]] = [("fine", b"\xff")]
        if number in odd:
            headers.append((Raw(odd[number]), b"x"))
        producer.send(topic, b"%d" % number, b"k", headers, partition=0)


async def read(settings: Settings, topic: str, count: int) -> list[ConsumerRecord]:
    consumer = AIOKafkaConsumer(
        topic,
        **aiokafka_options(settings, "reader"),
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        isolation_level="read_committed",
    )
    await consumer.start()
    try:
        found: list[ConsumerRecord] = []
        async with asyncio.timeout(30):
            while len(found) < count:
                for records in (await consumer.getmany(timeout_ms=200, max_records=7)).values():
                    found += records
        return found
    finally:
        await consumer.stop()


@pytest.mark.usefixtures("topics")
@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("linger_ms", [0, 50])
def test_a_record_with_an_odd_header_name_is_read_and_so_are_its_neighbours(
    settings: Settings, compression: str | None, linger_ms: int
) -> None:
    topic = settings.topic_name("likes")
    odd = {0: b"h\xff", 17: b"\xff" * 300, 18: b"\xed\xa0\x80", 39: b"\x00\x80"}
    with clients.producer(settings, linger_ms=linger_ms, compression_type=compression) as producer:
        send(producer, topic, 40, odd)
    found = asyncio.run(read(settings, topic, 40))
    assert [int(record.value) for record in found] == list(range(40))
    assert [record.offset for record in found] == list(range(40))
    for number, record in enumerate(found):
        assert record.key == b"k"
        assert record.headers[0] == ("fine", b"\xff")
        wanted = [odd[number].decode(errors="backslashreplace")] if number in odd else []
        assert [name for name, _ in record.headers[1:]] == wanted


@pytest.mark.usefixtures("topics")
def test_aborted_records_stay_hidden_beside_odd_names(settings: Settings) -> None:
    topic = settings.topic_name("likes")
    with clients.producer(settings, transactional_id=f"{settings.kafka.app_id}-test") as producer:
        producer.init_transactions()
        for number, end in enumerate((producer.commit_transaction, producer.abort_transaction) * 3):
            producer.begin_transaction()
            odd = [(Raw(b"\xff"), b"x")]
            producer.send(topic, b"a%d" % number, headers=odd if number in (1, 2, 3) else [], partition=0)
            producer.send(topic, b"b%d" % number, headers=odd if number == 4 else [], partition=0)
            producer.flush()
            end()
    found = asyncio.run(read(settings, topic, 6))
    assert [record.value for record in found] == [b"a0", b"b0", b"a2", b"b2", b"a4", b"b4"]


@pytest.mark.usefixtures("topics")
def test_its_dead_letter_has_a_name_that_everybody_can_read(settings: Settings) -> None:
    likes, letters = settings.topic_name("likes"), settings.topic_name("events-dlq")
    with clients.producer(settings) as producer:
        send(producer, likes, 1, {0: b"h\xff"})
        producer.flush()
        (record,) = asyncio.run(read(settings, likes, 1))
        letter = dead_letter(record, Origin(likes, 0, 0, 1, 0, 0), Reason.BAD_TYPE, "", 1)
        producer.send(letters, letter[1], letter[0], letter[2])
    (read_back,) = clients.read_topic(settings, letters)
    assert ("h\\xff", b"x") in read_back.headers
