"""What a chaos run plays in: a Kafka of its own behind a proxy, topics that compact hard, settings."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import GroupIdNotFoundError, KafkaError

from stream_app.chaos.models import other_model
from stream_app.chaos.proxy import Proxy
from stream_app.content.model import DEFAULT
from stream_app.errors import BrokerUnavailableError, StreamAppError
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.kafka.broker import LocalBroker, free_port
from stream_app.settings import Settings

PARTITIONS = 4
SESSION_TIMEOUT_S = 4.0
REQUEST_TIMEOUT_S = 8.0
TRANSACTION_TIMEOUT_S = 10.0
STALL_TIMEOUT_S = 90.0
BATCH_RECORDS = 64
WHOLE_HISTORY = 1024
"""Interactions that a record holds: more than any user of a run has, so that nothing is forgotten."""
SLAB_ROWS = 256
"""Fewer than a partition's users: rows are evicted and loaded again all the time."""
ADMIN_PATIENCE_S = 60.0
ADMIN_RETRY_S = 0.5

BROKER_PROPERTIES = {
    "log.cleaner.backoff.ms": "500",
    "log.initial.task.delay.ms": "1000",
    "log.retention.check.interval.ms": "2000",
    # producers' timestamps may lie in the future, as Kafka lets them by default before 4.0
    "log.message.timestamp.after.max.ms": str((1 << 63) - 1),
}
SMALL_SEGMENTS = {
    "segment.bytes": "1048576",  # the least that Kafka takes
    "segment.ms": "3000",
    "min.cleanable.dirty.ratio": "0.01",
    # whoever watches the run reads each record before it may go
    "min.compaction.lag.ms": "60000",
    "max.compaction.lag.ms": "61000",
}
TINY_SEGMENTS = SMALL_SEGMENTS | {"segment.ms": "200", "min.cleanable.dirty.ratio": "0.0001"}

T = TypeVar("T")


class World:
    """The broker, the proxy before it, and the settings of those who go through it or around it."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        """Starts nothing yet. ``settings`` are what the user has; only models and devices are taken."""
        ports = [free_port()]
        while len(ports) < 4:
            if (port := free_port()) not in ports:
                ports.append(port)
        self._port, proxied, controller, front = ports
        self.broker = LocalBroker(
            directory / "broker",
            port=self._port,
            properties=BROKER_PROPERTIES
            | {
                "listeners": f"PLAINTEXT://127.0.0.1:{self._port},PROXIED://127.0.0.1:{proxied},"
                f"CONTROLLER://127.0.0.1:{controller}",
                "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self._port},PROXIED://127.0.0.1:{front}",
                "listener.security.protocol.map": ",".join(
                    f"{name}:PLAINTEXT" for name in ("PLAINTEXT", "PROXIED", "CONTROLLER")
                ),
                "inter.broker.listener.name": "PLAINTEXT",
                "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            },
        )
        self.proxy = Proxy(front, proxied)
        self.direct = _configured(settings, f"127.0.0.1:{self._port}")
        """Settings of the driver and its oracle: straight to the broker."""
        self.proxied = _configured(settings, f"127.0.0.1:{front}")
        """Settings of the workers."""
        self._models = directory / "other-model"
        self.lives: dict[str, int] = {}
        """How often each event topic (full name) was created again."""

    def start(self) -> None:
        """Broker, proxy, topics."""
        self.broker.start()
        self.proxy.start()
        create_topics(self.direct)
        self.compact(SMALL_SEGMENTS)

    def close(self) -> None:
        """End both; the directory is the caller's."""
        with contextlib.suppress(AttributeError):
            self.proxy.stop()
        self.broker.stop()

    def compact(self, config: dict[str, str]) -> None:
        """How hard the changelogs compact from now on."""
        self.alter(("interests", "content-stats"), config)

    def alter(self, topics: Iterable[str], config: dict[str, str]) -> None:
        """Set configuration entries of these topics."""
        names = [self.direct.topic_name(name) for name in topics]
        resources = [ConfigResource(ConfigResourceType.TOPIC, name, config) for name in names]
        self._insist(lambda admin: admin.alter_configs(resources))

    def grow(self, topic: str, most: int) -> int:
        """One more partition, up to ``most``; how many there are."""
        name = self.direct.topic_name(topic)

        def grown(admin: KafkaAdminClient) -> int:
            (found,) = admin.describe_topics([name])
            count = len(found["partitions"])
            if count < most:
                count += 1
                admin.create_partitions({name: count})
            return count

        return self._insist(grown)

    def forget_group(self, role: str) -> None:
        """Delete a role's consumer group with its offsets; it must have no live members."""
        group = self.direct.group(role)

        def forget(admin: KafkaAdminClient) -> None:
            answer = admin.delete_groups([group])[group]
            if answer not in ("OK", GroupIdNotFoundError.__name__):
                raise KafkaError(answer)  # it has members yet: their sessions end soon

        self._insist(forget)

    def switch_model(self) -> str:
        """The other text encoder of two from now on; ``content.model`` as it has to be set."""
        if self.proxied.content.model != DEFAULT:
            model = DEFAULT
        else:
            model = str(self._models if self._models.exists() else other_model(self._models))
        self.direct, self.proxied = (with_model(s, model) for s in (self.direct, self.proxied))
        return model

    def recreate(self, topic: str) -> None:
        """Delete a topic with everything in it, and create it again as it was declared."""
        name = self.direct.topic_name(topic)
        self._insist(lambda admin: admin.delete_topics([name]) if name in admin.list_topics() else None)
        deadline = time.monotonic() + ADMIN_PATIENCE_S
        while not self._insist(lambda _: create_topics(self.direct)):
            if time.monotonic() > deadline:
                raise StreamAppError("a deleted topic did not go")
        self.lives[name] = self.lives.get(name, 0) + 1

    def _insist(self, ask: Callable[[KafkaAdminClient], T]) -> T:
        """Ask until the broker, which other faults may have taken away, does it."""
        deadline = time.monotonic() + ADMIN_PATIENCE_S
        while True:
            try:
                with contextlib.closing(clients.admin_client(self.direct)) as admin:
                    return ask(admin)
            except (KafkaError, BrokerUnavailableError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(ADMIN_RETRY_S)


@contextlib.contextmanager
def world(settings: Settings, directory: Path) -> Iterator[World]:
    """A started world, gone at the end."""
    made = World(settings, directory)
    try:
        made.start()
        yield made
    finally:
        made.close()


def with_model(settings: Settings, model: str) -> Settings:
    """The same settings with this ``content.model``."""
    return msgspec.structs.replace(settings, content=msgspec.structs.replace(settings.content, model=model))


def _configured(settings: Settings, address: str) -> Settings:
    """Short sessions, small batches, quick retries: many transactions in which something can happen."""
    replace = msgspec.structs.replace
    return Settings(
        kafka=replace(
            Settings().kafka,
            broker=address,
            app_id="chaos",
            topic_prefix="chaos.",
            partitions=PARTITIONS,
            shared_partitions=2,
            batch_records=BATCH_RECORDS,
            session_timeout_s=SESSION_TIMEOUT_S,
            request_timeout_s=REQUEST_TIMEOUT_S,
            transaction_timeout_s=TRANSACTION_TIMEOUT_S,
        ),
        events=replace(Settings().events, retry_delays_s=(0.3, 0.6, 1.2, 2.5)),
        interests=replace(
            Settings().interests,
            recent=WHOLE_HISTORY,
            seen=WHOLE_HISTORY,
            slab_rows=SLAB_ROWS,
            flush_interval_s=0.5,
            min_mass=0.0,  # nobody fades: the oracle compares every user
        ),
        content=settings.content,
        ranking=replace(settings.ranking, threads=1, candidates=50, slate_size=5, batch_users=64),
        # a slate that shows the same is published again: the oracle looks for the event that caused it
        recommendations=replace(Settings().recommendations, skip_unchanged=False),
        observability=replace(settings.observability, stall_timeout_s=STALL_TIMEOUT_S),
    )
