"""Events in, states out, over every secured listener; the other roles' clients as well; and nobody sees
the password on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from aiokafka import ConsumerRecord
from numpy.typing import NDArray

from stream_app.content import app as content_app
from stream_app.content.model import model_id
from stream_app.kafka import clients
from stream_app.kafka.admin import create_topics
from stream_app.kafka.reader import TopicReader
from stream_app.observability.health import Health
from stream_app.recommendations import app as ranker_app
from stream_app.settings import Settings
from tests.interests.workers import (
    history,
    produce,
    publish_contents,
    unit_vectors,
    wait_for_outcomes,
    workers,
    worst_error,
)
from tests.security.conftest import KEY_PASSWORD, PASSWORD, SecuredBroker, secured

CONTENTS = 20


@pytest.mark.parametrize("way", ["PLAIN", "SCRAM-SHA-512", "certificate"])
def test_events_become_states(
    way: str, settings: Settings, secured_broker: SecuredBroker, tmp_path: Path
) -> None:
    """Topics, producer, worker (Faust's clients, transactions, changelog, reader), reading: all of them."""
    if way == "certificate":
        connection = secured_broker.by_certificate()
    else:
        connection = secured_broker.connection("USERS", sasl_mechanism=way)
    world = secured(settings, connection)
    create_topics(world)
    vectors = unit_vectors(CONTENTS, world.content.dimensions)
    publish_contents(world, vectors)
    sent = history(200, 12, CONTENTS)
    with workers(world, tmp_path, "w") as (worker,):
        produce(world, sent)
        wait_for_outcomes(world, len(sent), worker.log)
        assert worst_error(world, sent, np.asarray(vectors)) < 1e-5
        assert worker.stop() == 0
    assert not secrets_in(worker.log.read_text())


class UnitEncoder:
    """Stands in for the text encoder, which needs no broker."""

    def __init__(self, settings: Settings) -> None:
        self.model, self._dimensions = model_id(settings), settings.content.dimensions

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.eye(len(texts), self._dimensions, dtype=np.float32)


def test_contents_become_slates(
    settings: Settings,
    secured_broker: SecuredBroker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The content role and the ranker, with SCRAM-SHA-256; what they log does not show the password."""
    world = secured(settings, secured_broker.connection("USERS", sasl_mechanism="SCRAM-SHA-256"))
    monkeypatch.setattr(content_app, "TextEncoder", UnitEncoder)
    create_topics(world)
    created = datetime.now(UTC).isoformat()
    with contextlib.closing(clients.producer(world)) as producer:
        value = json.dumps({"content_id": "c", "text": "a text", "created_at": created})
        producer.send(world.topic_name("content"), key=b"c", value=value.encode())
    found = asyncio.Event()

    def look(records: list[ConsumerRecord]) -> None:
        if any(record.value and b'"c"' in record.value for record in records):
            found.set()

    async def scenario() -> None:
        reader = TopicReader(world, world.topic_name("recommendations"), look, label="slates")
        apps = [create(world, Health(world)) for create in (content_app.create_app, ranker_app.create_app)]
        try:
            await reader.start()
            for app in apps:
                await app.start()
            await found.wait()
        finally:
            for app in reversed(apps):
                await app.stop()
            await reader.stop()

    with caplog.at_level(logging.INFO):  # what `--log-level debug` lets other packages log
        asyncio.run(asyncio.wait_for(scenario(), 90))
    assert "Authenticated as" in caplog.text
    assert not secrets_in(caplog.text)


def secrets_in(text: str) -> list[str]:
    return [secret for secret in (PASSWORD, KEY_PASSWORD) if secret in text]
