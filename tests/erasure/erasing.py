"""A small world in which users are erased, and what can be found of them afterwards."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from kafka import TopicPartition

from stream_app.commands import erase
from stream_app.hashing import key64
from stream_app.interests.receipts import Receipt, receipt_key
from stream_app.kafka import clients
from stream_app.settings import Settings
from stream_app.topics import declare

VICTIM = "zoe-who-wants-to-go"
NEIGHBOUR = "ana-who-stays"
CONTENTS = 6
D = 16


def erased(settings: Settings, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Run ``stream-app erase --json``: its status and the lines it printed."""
    parser = argparse.ArgumentParser()
    erase.add_arguments(parser)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = erase.run(parser.parse_args([*arguments, "--json"]), settings)
    return status, [json.loads(line) for line in printed.getvalue().splitlines()]


def receipts(settings: Settings) -> dict[int, Receipt]:
    """The newest receipts, by key64 of the user."""
    newest = {r.key: r.value for r in clients.read_topic(settings, settings.topic_name("erasure-receipts"))}
    return {int(k, 16): msgspec.json.decode(v, type=Receipt) for k, v in newest.items() if v is not None}


def receipt_of(settings: Settings, user: str) -> Receipt | None:
    """The newest receipt of a user."""
    return receipts(settings).get(key64(user))


def topics_naming(settings: Settings, user: str) -> Counter[str]:
    """Records of each topic that have the user's id anywhere: key, value or headers, committed or not."""
    wanted = user.encode()
    found: Counter[str] = Counter()
    for topic in declare(settings):
        for r in clients.read_topic(settings, topic.name, isolation_level="read_uncommitted"):
            parts: Iterable[bytes | None] = (r.key, r.value, *(v for _, v in r.headers or ()))
            found[topic.name.removeprefix(settings.kafka.topic_prefix)] += any(
                wanted in (p or b"") for p in parts
            )
    return +found


def files_naming(directory: Path, user: str) -> list[str]:
    """Files below a directory that have the user's id, or its digits as RocksDB's log writes them."""
    raw = user.encode()
    forms = (raw, raw.hex().encode(), raw.hex().upper().encode())
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert files
    return [path.name for path in files if any(form in path.read_bytes() for form in forms)]


def letters(settings: Settings) -> list[tuple[int, bytes | None, bytes | None, dict[str, bytes]]]:
    """Partition, key, value and headers of every dead letter, partition by partition in order."""
    found = clients.read_topic(settings, settings.topic_name("events-dlq"))
    by_partition = sorted((r.partition, r.offset, r.key, r.value, dict(r.headers or ())) for r in found)
    return [(p, key, value, headers) for p, _, key, value, headers in by_partition]


def beginnings(settings: Settings, topic: str) -> list[int]:
    """First offsets of a topic's partitions."""
    with contextlib.closing(clients.consumer(settings)) as client:
        name = settings.topic_name(topic)
        found = client.beginning_offsets([TopicPartition(name, p) for p in client.partitions_for_topic(name)])
    return [offset for _, offset in sorted(found.items())]


def key_of(user: str) -> bytes:
    """Key of a user's receipt."""
    return receipt_key(key64(user))
