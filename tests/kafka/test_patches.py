"""The client libraries are patched when somebody is given a client's options, and not before."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import importlib, pkgutil, sys

from aiokafka.consumer import consumer, fetcher
from aiokafka.producer import sender
from kafka.consumer import fetcher as kafka_python_fetcher, group

PLACES = [
    *((fetcher, name) for name in ("MemoryRecords", "PartitionRecords", "FetchResult")),
    (consumer, "Fetcher"),
    (sender, "BACKOFF_OVERRIDE"),
    (kafka_python_fetcher, "MemoryRecords"),
    (group, "Fetcher"),
]
libraries = {id(place): dict(vars(place)) for place, _ in PLACES}


def changed():
    return {
        f"{place.__name__}.{name}"
        for place, _ in PLACES
        for name, value in vars(place).items()
        if not name.startswith("__") and libraries[id(place)].get(name) is not value
    }


import stream_app.kafka
for module in pkgutil.walk_packages(stream_app.kafka.__path__, "stream_app.kafka."):
    importlib.import_module(module.name)
assert changed() == set(), changed()

from stream_app.settings import Settings
WAY
assert changed() == {f"{place.__name__}.{name}" for place, name in PLACES}, changed()
assert sender.BACKOFF_OVERRIDE == 0.0005
"""

WAYS = {
    "aiokafka": "from stream_app.kafka.connection import aiokafka_options as options; "
    "options(Settings(), 'c')",
    "one connection": "from stream_app.kafka.connection import single_connection_options as options; "
    "options(Settings(), 'c')",
    "kafka-python": "from stream_app.kafka.connection import kafka_python_options as options; "
    "options(Settings())",
    "an app": "from stream_app.kafka.faust.app import create_faust_app; "
    "create_faust_app(Settings(), 'role', batch_topics=['likes'])",
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_libraries_are_patched_when_a_client_is_made_and_not_before(way: str) -> None:
    command = [sys.executable, "-c", SCRIPT.replace("WAY", way)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
