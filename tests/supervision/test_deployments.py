"""Two deployments on one cluster with one app_id, told apart by their topics' prefix alone."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from stream_app.commands import doctor
from stream_app.errors import ConfigurationError
from stream_app.kafka.deployments import refuse_others
from stream_app.settings import Settings
from tests.interests.workers import Worker, workers


def prefixed(settings: Settings, prefix: str) -> Settings:
    """Another deployment, with the same app_id."""
    kafka = msgspec.structs.replace(settings.kafka, topic_prefix=f"{settings.kafka.topic_prefix}{prefix}.")
    return msgspec.structs.replace(settings, kafka=kafka)


@pytest.fixture
def production(settings: Settings, tmp_path: Path) -> Iterator[Worker]:
    """An interests worker that serves; its settings are ``settings``."""
    with workers(settings, tmp_path, "production") as (worker,):
        worker.wait_for("serving 2 partitions")
        yield worker


def test_who_comes_second_is_refused_and_the_first_goes_on(
    settings: Settings, production: Worker, tmp_path: Path
) -> None:
    with workers(prefixed(settings, "staging"), tmp_path, "staging") as (staging,):
        assert staging.end() == 2
        said = staging.log.read_text().splitlines()[-1]
    group = settings.group("interests")
    assert f"[configuration] consumer group {group} has members of another deployment, which read " in said
    assert f"set another than {settings.kafka.app_id!r} here or there" in said
    log = production.log.read_text()
    assert log.count("serving 2 partitions") == 1, "the newcomer never was in its group"
    assert "is lost" not in log
    assert production.running


def test_doctor_says_so_before_anything_is_started(settings: Settings, production: Worker) -> None:
    found = [f for f in doctor.check_broker(prefixed(settings, "staging")) if f.check == "app_id"]
    assert [(f.state, f.advice.startswith("set another than")) for f in found] == [("fault", True)]
    assert not [f for f in doctor.check_broker(settings) if f.check == "app_id"]


def test_members_of_ones_own_are_welcome(settings: Settings, production: Worker) -> None:
    """Also those with another action, as in a rolling change of the settings."""
    refuse_others(settings, settings.group("interests"))
    action = msgspec.structs.replace(settings.events.actions[0], topic=f"likes-{uuid.uuid4().hex}")
    events = msgspec.structs.replace(settings.events, actions=(action,))
    refuse_others(msgspec.structs.replace(settings, events=events), settings.group("interests"))
    with pytest.raises(ConfigurationError):
        refuse_others(prefixed(settings, "staging"), settings.group("interests"))


def test_who_sees_the_other_only_after_joining_leaves(
    settings: Settings, production: Worker, tmp_path: Path
) -> None:
    """As when both start at the same moment."""
    blind = "tests.supervision.blind_worker"
    staging = Worker(prefixed(settings, "staging"), "staging", tmp_path, module=blind)
    try:
        staging.start()
        assert staging.end() == 2
    finally:
        staging.kill()
    assert "has members of another deployment" in staging.log.read_text().splitlines()[-1]
    assert production.running
