"""What a value that is no JSON of ours looks like: a hint for whoever reads the dead letter.

A guess from a few bytes, which never shows any of them.
"""

from __future__ import annotations

import re

_MAGIC = (
    (b"\x1f\x8b", "gzip: let the producer compress batches (compression.type) instead of values"),
    (b"\x28\xb5\x2f\xfd", "zstd: let the producer compress batches (compression.type) instead of values"),
    (b"\x04\x22\x4d\x18", "lz4: let the producer compress batches (compression.type) instead of values"),
    (b"\xff\xfe", "UTF-16: JSON is UTF-8"),
    (b"\xfe\xff", "UTF-16: JSON is UTF-8"),
    (b"{\x00", "UTF-16: JSON is UTF-8"),
    (b"\x00{", "UTF-16: JSON is UTF-8"),
    (b"Obj\x01", "an Avro file: values are JSON"),
    (b"\xc3\x01", "Avro: values are JSON"),
    (b"\xac\xed\x00\x05", "a serialised Java object: values are JSON"),
)
_TEXT_OF_JSON = re.compile(rb'\s*"(?:[^"\\]|\\[^u])*\{')
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_ENVELOPE = re.compile(rb'"(?:payload|after)"\s*:\s*\{')
REGISTRY = 5
"""Bytes of a Schema Registry's framing: 0, and the schema's id."""


def hint(value: bytes) -> str:
    """What the value looks like, in a few words; empty when nothing comes to mind."""
    for magic, looks in _MAGIC:
        if value.startswith(magic):
            return looks
    if value[:1] == b"\x00" and len(value) > REGISTRY:
        if value[REGISTRY : REGISTRY + 1] == b"{":
            return "a Schema Registry's magic byte and id before JSON: use a plain JSON serialiser"
        return "a Schema Registry's magic byte and id, then Avro or Protobuf: values are JSON"
    if _BINARY.search(value, 0, 64):
        return "binary, perhaps Avro or Protobuf: values are JSON"
    if value[1:2] == b"\x00":
        return "UTF-16: JSON is UTF-8"
    if _TEXT_OF_JSON.match(value, 0, 256):
        return "a JSON string that holds JSON: it was encoded twice"
    if value.lstrip()[:1] == b"[":
        return "an array: each event is a record of its own"
    if _ENVELOPE.search(value, 0, 65_536):
        return "an envelope of Kafka Connect or Debezium: unwrap it, values are the event alone"
    return ""
