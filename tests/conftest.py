"""Fixtures of the whole suite: one real Apache Kafka a session, one world of topics a test."""

from __future__ import annotations

import gc
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from stream_app.kafka.admin import create_topics
from stream_app.kafka.broker import broker_address
from stream_app.settings import Settings, build

# a shell starts what runs in its background with SIGINT ignored, and every process of a test would be, too
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class RunningBroker:
    """A broker that tests may share; each test has topics of its own on it."""

    address: str


@pytest.fixture(scope="session")
def broker() -> Iterator[RunningBroker]:
    """A started LocalBroker, or the one that STREAM_APP_BROKER names."""
    with broker_address() as address:
        yield RunningBroker(address)


@pytest.fixture
def settings(broker: RunningBroker, tmp_path: Path) -> Settings:
    """Settings with topics, groups and directories that no other test has. The topics do not exist yet."""
    world = f"t{uuid.uuid4().hex[:10]}"
    return build(
        {
            "kafka": {
                "broker": broker.address,
                "app_id": world,
                "topic_prefix": f"{world}.",
                "partitions": 2,
                "shared_partitions": 2,
            },
            "interests": {"data_dir": str(tmp_path / "state")},
            "observability": {"port": 0},
        }
    )


@pytest.fixture
def topics(settings: Settings) -> list[str]:
    """The topics of ``settings``, created; their full names in declaration order."""
    return create_topics(settings)


@pytest.fixture
def left_over() -> Iterator[None]:
    """For tests that break or crash an app: what its clients leave is collected here, and not in somebody
    else's test."""
    yield
    gc.collect()


def pytest_sessionfinish() -> None:
    """Let go of what tests left for the collector before plugins import more at the end: Python 3.11
    raises SystemError when a collection runs finalizers in the middle of parsing a module."""
    gc.collect()
