"""Every codec, whoever packed it, on every kind of reader; and what unpacking costs in memory."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import confluent_kafka
import lz4.frame
import pytest
import zstandard
from aiokafka import AIOKafkaProducer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from stream_app.client import Subscriber
from stream_app.kafka import clients
from stream_app.kafka.changelog import ChangelogReader
from stream_app.kafka.codecs import OversizedBatchError, UnknownCodecError, unpack
from stream_app.kafka.connection import aiokafka_options
from stream_app.kafka.once import read_once
from stream_app.kafka.reader import TopicReader
from stream_app.settings import Settings
from tests.commands.records import slate
from tests.kafka.record_batches import CODECS, packed, xerial

COMPRESSED = list(CODECS)[1:]
DATA = os.urandom(100_000) + bytes(3_000_000) + os.urandom(5)
HALVES = DATA[:7], DATA[7:]
ZSTD = zstandard.ZstdCompressor()


def streamed(data: bytes) -> bytes:
    packer = zstandard.ZstdCompressor().compressobj()
    return packer.compress(data) + packer.flush()


FORMS = {
    "gzip": (1, gzip.compress(DATA)),
    "gzip in two members": (1, b"".join(map(gzip.compress, HALVES))),
    "snappy": (2, packed("snappy", DATA)),
    "xerial": (2, xerial(DATA)),
    "xerial, little-endian versions": (2, xerial(DATA)[:8] + b"\1\0\0\0\1\0\0\0" + xerial(DATA)[16:]),
    "lz4": (3, lz4.frame.compress(DATA)),
    "lz4, blocks apart": (3, packed("lz4", DATA)),
    "lz4 with checksums": (3, lz4.frame.compress(DATA, content_checksum=True, block_checksum=True)),
    "lz4 in two frames": (3, b"".join(map(lz4.frame.compress, HALVES))),
    "zstd": (4, ZSTD.compress(DATA)),
    "zstd without its size": (4, streamed(DATA)),
    "zstd in two frames": (4, b"".join(map(ZSTD.compress, HALVES))),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_payload_unpacks_to_what_it_was_and_no_further_than_its_bound(form: str) -> None:
    codec, payload = FORMS[form]
    assert b"".join(unpack(codec, memoryview(payload), len(DATA))) == DATA
    for most in (len(DATA) - 1, 100_001, 1):
        with pytest.raises(OversizedBatchError):
            unpack(codec, memoryview(payload), most)


@pytest.mark.parametrize("codec", [0, 5, 6, 7])
def test_other_codecs_are_refused(codec: int) -> None:
    with pytest.raises(UnknownCodecError):
        unpack(codec, memoryview(DATA), len(DATA))


BOMB = """
import gzip, re, sys
sys.path.insert(0, ".")
from stream_app.kafka.codecs import OversizedBatchError, unpack
from tests.kafka.record_batches import CODECS, packed
name = sys.argv[1]
bomb = packed(name, bytes(1 << 30 if name != "snappy" else 1 << 28))
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10
open("/proc/self/clear_refs", "w").write("5")
before = int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10
try:
    unpack(CODECS[name], memoryview(bomb), 64 << 20)
except OversizedBatchError:
    print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak")
@pytest.mark.parametrize("codec", COMPRESSED)
def test_what_unpacks_to_a_gigabyte_costs_no_more_than_the_bound(codec: str) -> None:
    done = subprocess.run([sys.executable, "-c", BOMB, codec], capture_output=True, text=True, timeout=120)
    assert int(done.stdout) < 64 + 32, done.stderr


# -- on real Kafka

COUNT = 60
Read = Callable[[Settings, str], list[bytes]]


def by_topic_reader(settings: Settings, topic: str) -> list[bytes]:
    async def reading() -> list[bytes]:
        found: list[bytes] = []
        reader = TopicReader(settings, topic, lambda rs: found.extend(r.value for r in rs), label="test")
        await reader.start()
        await reader.stop()
        return found

    return asyncio.run(reading())


def by_changelog_reader(settings: Settings, topic: str) -> list[bytes]:
    async def reading() -> list[bytes]:
        found: list[bytes] = []

        async def apply(records: Any, _position: int) -> None:
            found.extend(record.value for record in records)

        reader = ChangelogReader(settings, topic, 0)
        await reader.start(0)
        await reader.read_to_end(apply)
        await reader.stop()
        return found

    return asyncio.run(reading())


def by_read_once(settings: Settings, topic: str) -> list[bytes]:
    async def reading() -> list[bytes]:
        found: list[bytes] = []

        async def apply(records: Any) -> None:
            found.extend(record.value for record in records)

        await read_once(settings, topic, apply)
        return found

    return asyncio.run(reading())


def by_read_topic(settings: Settings, topic: str) -> list[bytes]:
    return [record.value for record in clients.read_topic(settings, topic)]


READERS = [by_topic_reader, by_changelog_reader, by_read_once, by_read_topic]


def by_librdkafka(settings: Settings, topic: str, codec: str) -> None:
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": settings.kafka.broker, "compression.type": codec, "linger.ms": 50}
    )
    for number in range(COUNT):
        producer.produce(topic, value=value(number), key=b"k", partition=0)
    assert producer.flush(30) == 0


def by_aiokafka(settings: Settings, topic: str, codec: str) -> None:
    async def sending() -> None:
        kind = None if codec == "none" else codec
        options = aiokafka_options(settings, "test")
        async with AIOKafkaProducer(**options, compression_type=kind, linger_ms=50) as producer:
            sent = [await producer.send(topic, value(n), b"k", partition=0) for n in range(COUNT)]
            await asyncio.gather(*sent)

    asyncio.run(sending())


def by_the_topic(settings: Settings, topic: str, codec: str) -> None:
    """The broker packs anew what comes in another codec."""
    admin = AdminClient({"bootstrap.servers": settings.kafka.broker})
    kind = "uncompressed" if codec == "none" else codec
    entry = ConfigEntry("compression.type", kind, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource("topic", topic, incremental_configs=[entry])
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(30)
    by_librdkafka(settings, topic, "none" if codec == "gzip" else "gzip")


def value(number: int) -> bytes:
    return b'{"number": %d}' % number + b" " * 200


@pytest.mark.usefixtures("topics")
@pytest.mark.parametrize("write", [by_librdkafka, by_aiokafka, by_the_topic])
@pytest.mark.parametrize("codec", CODECS)
def test_every_reader_reads_every_codec(
    settings: Settings, write: Callable[[Settings, str, str], None], codec: str
) -> None:
    topic = settings.topic_name("likes")
    write(settings, topic, codec)
    expected = [value(number) for number in range(COUNT)]
    assert {read.__name__: read(settings, topic) == expected for read in READERS} == {
        read.__name__: True for read in READERS
    }


@pytest.fixture
def subscriber(settings: Settings, topics: list[str]) -> Iterator[Subscriber]:
    with Subscriber(settings) as subscriber:
        yield subscriber


@pytest.mark.parametrize("codec", COMPRESSED)
def test_a_subscriber_reads_every_codec(settings: Settings, subscriber: Subscriber, codec: str) -> None:
    topic = settings.topic_name("recommendations")
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": settings.kafka.broker, "compression.type": codec, "linger.ms": 50}
    )
    users = [f"u{number}" for number in range(20)]
    for user in users:
        producer.produce(topic, value=slate(user, "c1", "c2", "c3"), key=user)
    assert producer.flush(30) == 0
    found = {update.user_id for update in itertools.islice(subscriber, len(users))}
    assert found == set(users)
