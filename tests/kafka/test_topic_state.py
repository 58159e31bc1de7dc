"""Topics that were there before us, on a real broker: refused, warned of, mended."""

from __future__ import annotations

import argparse
import contextlib
import logging

import msgspec
import pytest

from stream_app.commands import doctor
from stream_app.commands import topics as command
from stream_app.errors import ConfigurationError, TopicMismatchError
from stream_app.kafka.admin import alter_topics, check_topics, create_topics, ensure_topics, topic_states
from stream_app.kafka.clients import admin_client
from stream_app.kafka.topic_state import TopicState
from stream_app.settings import Settings
from stream_app.topics import declare
from stream_app.worker import ROLES

DAY = 86_400_000
BROKER_DEFAULTS = {"cleanup.policy": "delete", "retention.ms": str(7 * DAY)}
"""Of a topic that a broker, or an administrator, has made without more ado."""


def made(settings: Settings, name: str, **config: object) -> None:
    """A topic with a configuration of somebody else's, ``_`` for a dot."""
    full = settings.topic_name(name)
    entries = {key.replace("_", "."): str(value) for key, value in config.items()}
    partitions = next(t.partitions for t in declare(settings) if t.name == full)
    wanted = {"num_partitions": partitions, "replication_factor": 1, "configs": entries}
    with contextlib.closing(admin_client(settings)) as admin:
        admin.create_topics({full: wanted}, wait_for_metadata=True)


STATE = (
    "content",
    "content-vectors",
    "interests",
    "content-stats",
    "erasure-receipts",
    "models",
    "co-engagement",
)
SLATES: dict[str, object] = {"retention_ms": 28 * DAY, "max_compaction_lag_ms": DAY}
EVENTS = ("likes", "events-retry", "events-dlq", "erasures", "impressions")


@pytest.mark.parametrize("name", STATE)
def test_a_changelog_that_expires_is_refused_by_name(name: str, settings: Settings) -> None:
    made(settings, name, **{key.replace(".", "_"): value for key, value in BROKER_DEFAULTS.items()})
    with pytest.raises(TopicMismatchError) as error:
        ensure_topics(settings)
    assert str(error.value) == (
        f"{settings.topic_name(name)}: cleanup.policy is delete, declared is compact: the broker would "
        "delete what is older than 7 days, which stands nowhere else; `stream-app topics --alter` mends it"
    )


@pytest.mark.parametrize("name", EVENTS)
def test_records_that_compaction_would_take_are_refused(name: str, settings: Settings) -> None:
    made(settings, name, cleanup_policy="compact,delete")
    with pytest.raises(TopicMismatchError, match="would keep the last record only") as error:
        ensure_topics(settings)
    assert str(error.value).startswith(f"{settings.topic_name(name)}: cleanup.policy is compact,delete")


def test_all_that_is_refused_is_said_at_once(settings: Settings) -> None:
    made(settings, "interests", cleanup_policy="delete")
    made(settings, "content-stats", cleanup_policy="compact,delete", retention_ms=-1, retention_bytes=1000)
    made(settings, "events-retry", cleanup_policy="delete", retention_ms=30_000)
    with pytest.raises(TopicMismatchError) as error:
        ensure_topics(settings)
    assert f"{settings.topic_name('interests')}: cleanup.policy" in str(error.value)
    assert "would delete what exceeds 1,000 bytes a partition" in str(error.value)
    assert "retention.ms is 30000, declared is 604800000: what waits there would be deleted" in str(
        error.value
    )


@pytest.mark.parametrize(
    ("name", "config", "warning"),
    [
        ("recommendations", SLATES | {"cleanup_policy": "compact"}, "cleanup.policy is compact, "),
        ("recommendations", SLATES | {"cleanup_policy": "delete"}, "cleanup.policy is delete, "),
        (
            "interests",
            {"cleanup_policy": "compact,delete", "retention_ms": -1, "max_compaction_lag_ms": DAY},
            "nothing is deleted as long as",
        ),
        ("interests", {"cleanup_policy": "compact"}, "max.compaction.lag.ms is 9223372036854775807"),
        (
            "content",
            {"cleanup_policy": "compact", "delete_retention_ms": 1000},
            "delete.retention.ms is 1000, declared is 86400000: who reads the topic later",
        ),
        (
            "likes",
            {"retention_ms": 7 * DAY},
            "message.timestamp.type is CreateTime, declared is LogAppendTime",
        ),
        (
            "likes",
            {"retention_ms": DAY, "message_timestamp_type": "LogAppendTime"},
            "retention.ms is 86400000, declared is 604800000: what is older is deleted",
        ),
        (
            "events-dlq",
            {"retention_ms": 8 * DAY, "segment_ms": DAY, "message_timestamp_type": "LogAppendTime"},
            "retention.ms is 691200000, declared is 604800000: users' records stay",
        ),
        ("models", {"cleanup_policy": "compact", "min_insync_replicas": 2}, "nothing can be written, since"),
    ],
)
def test_what_loses_nothing_is_warned_of_in_one_line(
    name: str, config: dict[str, object], warning: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    made(settings, name, **config)
    with caplog.at_level(logging.WARNING, "stream_app.kafka.admin"):
        ensure_topics(settings)
    (line,) = (record.getMessage() for record in caplog.records if record.name.startswith("stream_app"))
    assert line.startswith(f"topic {settings.topic_name(name)}: ")
    assert warning in line
    assert "`stream-app topics --alter`" in line


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("content", {"cleanup_policy": "compact", "retention_ms": 1000}),  # without effect
        ("models", {"cleanup_policy": "compact", "delete_retention_ms": 5 * DAY}),
        ("interests", {"cleanup_policy": "compact", "max_compaction_lag_ms": DAY // 2}),
        ("likes", {"retention_ms": -1, "message_timestamp_type": "LogAppendTime"}),
        ("impressions", {"retention_ms": 30 * DAY, "message_timestamp_type": "LogAppendTime"}),
        ("content-vectors", {"cleanup_policy": "compact", "compression_type": "zstd", "segment_ms": 1000}),
    ],
)
def test_of_what_changes_nothing_nothing_is_said(
    name: str, config: dict[str, object], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    made(settings, name, **config)
    with caplog.at_level(logging.WARNING, "stream_app.kafka.admin"):
        ensure_topics(settings)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("stream_app")] == []
    assert alter_topics(settings) == []


def run(settings: Settings, **options: bool) -> int:
    defaults = {"create": False, "alter": False, "dry_run": False, "json": False}
    return command.run(argparse.Namespace(**(defaults | options)), settings)


def test_the_command_mends_what_is_refused_and_warned_of(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    made(settings, "interests", cleanup_policy="delete", retention_ms=5000, compression_type="zstd")
    made(settings, "likes", retention_ms=DAY)
    made(settings, "recommendations", cleanup_policy="compact")
    made(settings, "impressions", retention_ms=30 * DAY, message_timestamp_type="LogAppendTime")
    assert run(settings, create=True) == 1, "a worker would refuse the changelog"
    interests, likes = settings.topic_name("interests"), settings.topic_name("likes")
    assert f"stream-app: {interests}: cleanup.policy is delete" in capsys.readouterr().err
    assert run(settings, alter=True, dry_run=True) == 1
    said = capsys.readouterr().err
    assert f"would alter {interests}: cleanup.policy delete → compact" in said
    assert f"would alter {likes}: retention.ms 86400000 → 604800000" in said
    assert run(settings, alter=True) == 0
    assert f"stream-app: altered {interests}: cleanup.policy delete → compact" in capsys.readouterr().err
    assert check_topics(settings) == []
    found = {state.topic.name: state.config for state in topic_states(settings)}
    assert found[interests]["compression.type"] == "zstd", "what is not declared stays"
    assert found[settings.topic_name("impressions")]["retention.ms"] == str(30 * DAY), "the platform's own"
    ensure_topics(settings)


def test_to_create_does_not_fail_for_a_harmless_difference(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    made(settings, "likes")
    made(settings, "recommendations", cleanup_policy="compact")
    assert run(settings, create=True) == 0
    said = capsys.readouterr()
    assert "stream-app: warning: " in said.err
    assert " differs\n" in said.out


def test_a_dry_run_of_nothing_is_said(settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match="--dry-run"):
        run(settings, dry_run=True)


def test_doctor_tells_a_fault_from_a_warning(settings: Settings) -> None:
    appended = {"message_timestamp_type": "LogAppendTime"}
    made(settings, "content-stats", cleanup_policy="delete", **appended)
    made(settings, "recommendations", cleanup_policy="compact")
    create_topics(settings)
    found = {f.detail.partition(":")[0]: f for f in doctor.check_broker(settings) if f.check == "topics"}
    assert found[settings.topic_name("content-stats")].state == "fault"
    assert found[settings.topic_name("content-stats")].advice == "`stream-app topics --alter` mends it"
    assert found[settings.topic_name("recommendations")].state == "warn"


def replicated(settings: Settings, name: str, replicas: int, in_sync: int, factor: int) -> list[str]:
    """What is said of a topic on so many brokers; the tests have one."""
    kafka = msgspec.structs.replace(settings.kafka, replication_factor=factor)
    topic = next(t for t in declare(msgspec.structs.replace(settings, kafka=kafka)) if t.name == name)
    config = topic.config | {"min.insync.replicas": str(in_sync)}
    return TopicState(topic, topic.partitions, config, replicas).warnings


def test_state_has_to_stand_on_more_than_one_broker() -> None:
    settings = Settings()
    for topic in declare(settings):
        three = msgspec.structs.replace(settings.kafka, replication_factor=3)
        (same,) = (t for t in declare(msgspec.structs.replace(settings, kafka=three)) if t.name == topic.name)
        assert topic.config.get("min.insync.replicas") == ("1" if topic.keeps_state else None)
        assert same.config.get("min.insync.replicas") == ("2" if topic.keeps_state else None)
    assert {t.name for t in declare(settings) if not t.keeps_state} == {
        *("likes", "comments", "shares", "impressions", "recommendations")
    }
    (line,) = replicated(settings, "interests", replicas=3, in_sync=1, factor=3)
    assert "min.insync.replicas is 1, declared is 2: a record counts as written that is lost" in line
    assert replicated(settings, "interests", replicas=3, in_sync=2, factor=3) == []
    assert replicated(settings, "interests", replicas=3, in_sync=2, factor=1) == []
    (line,) = replicated(settings, "interests", replicas=1, in_sync=1, factor=3)
    assert "has 1 replicas, fewer than kafka.replication_factor asks for" in line
    assert replicated(settings, "interests", replicas=1, in_sync=1, factor=1) == []
    assert replicated(settings, "likes", replicas=1, in_sync=1, factor=3) == []


def test_every_topic_has_a_role_and_every_role_topics() -> None:
    assert all(topic.roles for topic in declare(Settings()))
    assert {role for topic in declare(Settings()) for role in topic.roles} == set(ROLES)
