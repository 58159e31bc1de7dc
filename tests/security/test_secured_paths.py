"""Events in, states out, over every secured listener; the other roles' clients as well."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stream_app.kafka.admin import create_topics
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
from tests.security.conftest import SecuredBroker, secured

CONTENTS = 20


def check_events_become_states(settings: Settings, directory: Path) -> None:
    """Topics, producer, worker (Faust's clients, transactions, changelog, reader), reading: all of them."""
    create_topics(settings)
    vectors = unit_vectors(CONTENTS, settings.content.dimensions)
    publish_contents(settings, vectors)
    sent = history(200, 12, CONTENTS)
    with workers(settings, directory, "w") as (worker,):
        produce(settings, sent)
        wait_for_outcomes(settings, len(sent), worker.log)
        assert worst_error(settings, sent, np.asarray(vectors)) < 1e-5
        assert worker.stop() == 0


def test_plain_over_tls(settings: Settings, secured_broker: SecuredBroker, tmp_path: Path) -> None:
    check_events_become_states(secured(settings, secured_broker.connection("USERS")), tmp_path)
