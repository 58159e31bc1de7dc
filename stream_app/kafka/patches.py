"""What is changed in the client libraries: all of it, here.

Importing a module changes nothing. ``connection.py`` and ``faust/connection.py`` apply this before they give
anybody the options of a client or of an app, so that none is made without.
``tests/kafka/test_faust_contract.py`` and ``tests/kafka/test_unreadable.py`` pin what is relied on.
"""

from __future__ import annotations

from aiokafka.consumer import consumer, fetcher
from aiokafka.producer import sender
from kafka.consumer import fetcher as kafka_python_fetcher
from kafka.consumer import group

from stream_app.kafka import fetched, polled

BACKOFF_S = 0.0005
"""aiokafka waits so long before a transaction's first request when the previous one is still completing on
the broker. Its own 20 ms would bound a partition to 40 batches a second."""


def apply() -> None:
    """Before the first client is made; may be called again."""
    fetcher.MemoryRecords = fetched.FetchedBatches
    fetcher.PartitionRecords = fetched.PartitionRecords
    fetcher.FetchResult = fetched.FetchResult
    consumer.Fetcher = fetched.Fetcher
    kafka_python_fetcher.MemoryRecords = polled.FetchedBatches
    group.Fetcher = polled.Fetcher
    sender.BACKOFF_OVERRIDE = BACKOFF_S
