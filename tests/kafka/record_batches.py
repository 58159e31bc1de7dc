"""Record batches made by hand, byte by byte: sound ones, and what no producer should send."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import cramjam
import lz4.frame
import zstandard
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c, encode_varint

from stream_app.kafka.connection import aiokafka_options
from stream_app.settings import Settings

HEADER = struct.Struct(">qiibIhiqqqhii")
CRC_AT, ATTRIBUTES_AT, COUNT_AT = 17, 21, 57
TIME_MS = 1_750_000_000_000
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}

Header = tuple[bytes, bytes]


def packed(codec: str, plain: bytes) -> bytes:
    """As a producer packs it."""
    return {
        "none": bytes,
        "gzip": gzip.compress,
        "snappy": lambda data: bytes(cramjam.snappy.compress_raw(data)),
        "xerial": xerial,
        "lz4": lambda data: lz4.frame.compress(data, block_linked=False, store_size=False),
        "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    }[codec](plain)


def xerial(data: bytes, block: int = 32_768) -> bytes:
    """Snappy in the framing of Kafka's Java clients."""
    framed = [b"\x82SNAPPY\x00", struct.pack(">ii", 1, 1)]
    for at in range(0, len(data), block):
        part = bytes(cramjam.snappy.compress_raw(data[at : at + block]))
        framed += [struct.pack(">i", len(part)), part]
    return b"".join(framed)


def varint(number: int) -> bytes:
    out = bytearray()
    encode_varint(number, out.append)
    return bytes(out)


def record(delta: int, key: bytes | None, value: bytes | None, headers: Sequence[Header] = ()) -> bytes:
    """One record of a batch."""

    def sized(part: bytes | None) -> bytes:
        return varint(-1) if part is None else varint(len(part)) + part

    body = b"\x00" + varint(0) + varint(delta) + sized(key) + sized(value) + varint(len(headers))
    body += b"".join(sized(name) + sized(text) for name, text in headers)
    return varint(len(body)) + body


def batch(
    base: int,
    payload: bytes,
    count: int,
    *,
    codec: int = 0,
    magic: int = 2,
    records: int | None = None,
    attributes: int = 0,
    producer: int = -1,
) -> bytes:
    """A batch of ``count`` offsets with a checksum that fits, whatever its ``payload`` is."""
    stamped = (TIME_MS, TIME_MS, producer, 0 if producer >= 0 else -1, -1)
    said = count if records is None else records
    length = HEADER.size - 12 + len(payload)
    head = HEADER.pack(base, length, 0, magic, 0, codec | attributes, count - 1, *stamped, said)
    return with_checksum(head + payload)


def with_checksum(raw: bytes) -> bytes:
    crc = calc_crc32c(raw[ATTRIBUTES_AT:])
    return raw[:CRC_AT] + struct.pack(">I", crc) + raw[ATTRIBUTES_AT:]


def sound(base: int, values: Sequence[bytes], codec: str = "none") -> bytes:
    """A batch that everybody reads."""
    plain = b"".join(record(n, b"k", value) for n, value in enumerate(values))
    return batch(base, packed(codec, plain), len(values), codec=CODECS.get(codec, 2))


async def send(settings: Settings, topic: str, raw: bytes) -> None:
    """Produce a batch to partition 0 as it is."""
    async with AIOKafkaProducer(**aiokafka_options(settings, "raw")) as producer:
        await producer.partitions_for(topic)
        node = producer.client.cluster.leader_for_partition(TopicPartition(topic, 0))
        answer = await producer.client.send(node, ProduceRequest(None, -1, 60_000, [(topic, [(0, raw)])]))
        ((_, ((_, error, *_),)),) = answer.topics
        assert error == 0


def on_disk(directory: Path, topic: str, partition: int) -> Path:
    """The file of a partition's first records, of a broker that keeps its data in ``directory``."""
    return directory / "records" / f"{topic}-{partition}" / f"{0:020}.log"


def change(file: Path, base: int, edit: Callable[[bytes], bytes]) -> None:
    """Change the batch that begins at offset ``base`` on the broker's disk; it keeps its length."""
    data = file.read_bytes()
    at = 0
    while at < len(data):
        offset, length = struct.unpack_from(">qi", data, at)
        end = at + 12 + length
        if offset == base:
            edited = edit(data[at:end])
            assert len(edited) == end - at
            with file.open("r+b") as opened:
                opened.seek(at)
                opened.write(edited)
            return
        at = end
    raise AssertionError(f"no batch begins at {base}")


def garbled(raw: bytes) -> bytes:
    """Its compressed payload is rubbish, under a checksum that fits."""
    return with_checksum(raw[: HEADER.size] + b"\xa5" * (len(raw) - HEADER.size))


def flipped(raw: bytes) -> bytes:
    """One bit is not what it was."""
    return raw[:-1] + bytes([raw[-1] ^ 1])


def of_codec(number: int) -> Callable[[bytes], bytes]:
    """Its codec is another one."""

    def edit(raw: bytes) -> bytes:
        (attributes,) = struct.unpack_from(">h", raw, ATTRIBUTES_AT)
        said = struct.pack(">h", attributes & ~7 | number)
        return with_checksum(raw[:ATTRIBUTES_AT] + said + raw[ATTRIBUTES_AT + 2 :])

    return edit
