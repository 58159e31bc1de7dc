"""Our own Kafka clients outside the workers: producers, consumers, and reading a topic to its end.

All of them give up after a bound with BrokerUnavailableError, which names the address, or at once with
AccessError when they are not let in. Topics are given by their full names (``settings.topic_name``).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import ConsumerRecord
from kafka.partitioner import murmur2

from stream_app.errors import AccessError, BrokerUnavailableError, TopicMismatchError
from stream_app.kafka import diagnosis
from stream_app.kafka.connection import kafka_python_options
from stream_app.settings import Settings

CONNECT_TIMEOUT_MS = 5_000
POLL_MS = 200

UNREACHABLE = (
    kafka_errors.KafkaTimeoutError,
    kafka_errors.KafkaConnectionError,
    kafka_errors.RequestTimedOutError,
)


@contextlib.contextmanager
def naming_the_broker(settings: Settings) -> Iterator[None]:
    """What kafka-python raises when nobody answers, or we are not let in, becomes BrokerUnavailableError
    or AccessError, with the address."""
    try:
        yield
    except UNREACHABLE as error:
        raise diagnosis.cause(settings, error) from error
    except kafka_errors.RetriableError as error:  # it starts, or its partitions move
        raise BrokerUnavailableError(
            f"the broker at {settings.kafka.broker} cannot do this now ({type(error).__name__}): try again"
        ) from error
    except kafka_errors.SaslAuthenticationFailedError as error:
        raise AccessError(diagnosis.wrong_password(settings.kafka)) from error
    except kafka_errors.AuthorizationError as error:
        raise AccessError(
            f"the broker at {settings.kafka.broker} does not allow us this ({type(error).__name__}): grant "
            "the right by an ACL, or connect as somebody who has it"
        ) from error


def admin_client(settings: Settings) -> KafkaAdminClient:
    """A connected admin client; the caller closes it."""
    with naming_the_broker(settings):
        return KafkaAdminClient(**(kafka_python_options(settings) | _bounds()))


def producer(settings: Settings, **options: Any) -> KafkaProducer:
    """An idempotent producer with batches worth compressing; ``options`` are kafka-python's.

    The default partitioner is murmur2 of the key, as in every other Kafka client, so that a user's
    events meet in one partition whoever produced them.
    """
    defaults = {
        "linger_ms": 5,
        "batch_size": 131_072,
        "compression_type": "gzip",
        "max_block_ms": int(settings.kafka.request_timeout_s * 1000),
        "delivery_timeout_ms": int(settings.kafka.request_timeout_s * 2000),
    }
    with naming_the_broker(settings):
        return KafkaProducer(**(kafka_python_options(settings) | _bounds() | defaults | options))


def consumer(settings: Settings, *topics: str, **options: Any) -> KafkaConsumer:
    """A consumer that sees committed records only; without ``group_id`` it commits nothing.

    Reads from the beginning unless ``auto_offset_reset="latest"``. ``options`` are kafka-python's.
    """
    defaults = {
        "isolation_level": "read_committed",
        "auto_offset_reset": "earliest",
        "enable_auto_commit": False,
        "allow_auto_create_topics": False,
        "max_poll_records": 10_000,
        "max_partition_fetch_bytes": settings.kafka.fetch_max_bytes,
        "check_crcs": settings.kafka.batch_max_bytes,  # see stream_app.kafka.polled
    }
    with naming_the_broker(settings):
        return KafkaConsumer(*topics, **(kafka_python_options(settings) | _bounds() | defaults | options))


def read_topic(
    settings: Settings, topic: str, *, key: bytes | None = None, **options: Any
) -> Iterator[ConsumerRecord]:
    """Every committed record of a topic, from its beginning to the end it has now.

    With a ``key`` only the partition that producers put this key in is read: others' keys come too.

    The end is reached when the consumer's *position* has: transaction markers and aborted records
    take offsets that no record shows. Raises TopicMismatchError when the topic does not exist.
    """
    with contextlib.closing(consumer(settings, **options)) as client, naming_the_broker(settings):
        partitions = [TopicPartition(topic, p) for p in sorted(client.partitions_for_topic(topic) or ())]
        if not partitions:
            raise TopicMismatchError(
                f"topic {topic} does not exist: create it with `stream-app topics --create`"
            )
        if key is not None:
            partitions = [partitions[(murmur2(key) & 0x7FFF_FFFF) % len(partitions)]]
        client.assign(partitions)
        client.seek_to_beginning(*partitions)
        ends = client.end_offsets(partitions)
        patience = settings.kafka.request_timeout_s
        deadline = time.monotonic() + patience
        while any(client.position(tp) < ends[tp] for tp in partitions):
            before = [client.position(tp) for tp in partitions]
            for tp, records in client.poll(timeout_ms=POLL_MS).items():
                yield from (record for record in records if record.offset < ends[tp])
            if before != [client.position(tp) for tp in partitions]:
                deadline = time.monotonic() + patience
            elif time.monotonic() > deadline:
                raise kafka_errors.KafkaTimeoutError(f"{topic} gave nothing for {patience:.0f} s")


def _bounds() -> dict[str, Any]:
    return {
        "bootstrap_timeout_ms": CONNECT_TIMEOUT_MS,
        "reconnect_backoff_max_ms": 1_000,  # kafka-python's 30 s would outlast our own bounds
    }
