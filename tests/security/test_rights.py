"""A broker that asks for rights: each role runs with those on its own topics, and no others."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
)

from stream_app.errors import AccessError, TopicMismatchError
from stream_app.kafka import clients
from stream_app.kafka.admin import alter_topics, create_topics, ensure_topics, topic_states
from stream_app.kafka.broker import LocalBroker
from stream_app.kafka.partitions import partition_of
from stream_app.secret import Secret
from stream_app.settings import Settings, build
from stream_app.topics import declare
from stream_app.worker import ROLES
from tests.interests.workers import Worker, wait_until
from tests.security.conftest import PLAIN_LOGIN, secured

USERS = " ".join(f'user_{role}="{role}"' for role in (*ROLES, "nobody"))
PROPERTIES = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",  # the plain listener: the administrator's
    "listener.name.clear.sasl.enabled.mechanisms": "PLAIN",
    "listener.name.clear.plain.sasl.jaas.config": f'{PLAIN_LOGIN} username="b" password="b" {USERS};',
}
READ_AND_WRITE = (ACLOperation.READ, ACLOperation.WRITE)


@pytest.fixture(scope="module")
def guarded() -> Iterator[LocalBroker]:
    with LocalBroker(properties=PROPERTIES, listeners={"CLEAR": "SASL_PLAINTEXT"}) as broker:
        yield broker


@pytest.fixture
def administrator(guarded: LocalBroker, settings: Settings) -> Settings:
    """This test's world on that broker, its topics created."""
    world = secured(settings, {"broker": guarded.address})
    create_topics(world)
    return world


def user(world: Settings, guarded: LocalBroker, name: str) -> Settings:
    """The same world for somebody whose password is the name."""
    connection = {
        "broker": guarded.listener("CLEAR"),
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_username": name,
        "sasl_password": Secret(name),
    }
    return secured(world, connection)


def grant(
    administrator: Settings,
    name: str,
    kind: ResourceType,
    resources: Sequence[str],
    operations: Sequence[ACLOperation],
    pattern: ACLResourcePatternType = ACLResourcePatternType.LITERAL,
) -> None:
    rights = [
        ACL(
            principal=f"User:{name}",
            host="*",
            operation=operation,
            permission_type=ACLPermissionType.ALLOW,
            resource_pattern=ResourcePattern(kind, resource, pattern),
        )
        for resource in resources
        for operation in operations
    ]
    with contextlib.closing(clients.admin_client(administrator)) as admin:
        admin.create_acls(rights)


def grant_role(administrator: Settings, role: str) -> None:
    """Reading and writing the role's own topics, its groups and its transactional ids."""
    names = [topic.name for topic in declare(administrator, role)]
    grant(administrator, role, ResourceType.TOPIC, names, READ_AND_WRITE)
    prefix = [administrator.kafka.app_id]
    prefixed = ACLResourcePatternType.PREFIXED
    grant(administrator, role, ResourceType.GROUP, prefix, [ACLOperation.READ], prefixed)
    grant(administrator, role, ResourceType.TRANSACTIONAL_ID, prefix, [ACLOperation.WRITE], prefixed)


def is_ready(worker: Worker) -> bool:
    found = re.search(r"metrics and health on (http://[0-9.:]+)/metrics", worker.log.read_text())
    try:
        if found is None:
            return False
        with urllib.request.urlopen(f"{found[1]}/readyz", timeout=5) as page:
            return bool(json.load(page)["ready"])
    except OSError:  # 503, or importing torch
        return False


def test_every_role_is_ready_with_rights_on_its_own_topics_alone(
    guarded: LocalBroker, administrator: Settings, tmp_path: Path
) -> None:
    workers = []
    try:
        for role in ROLES:
            grant_role(administrator, role)
            world = msgspec.structs.replace(
                user(administrator, guarded, role),
                serving=msgspec.structs.replace(administrator.serving, port=0),
            )
            workers.append(Worker(world, role, tmp_path, role))
            workers[-1].start()
        for worker in workers:
            wait_until(lambda w=worker: is_ready(w) or not w.running, "it to be ready", worker.log)  # type: ignore[misc]
            log = worker.log.read_text()
            assert worker.running, log[-2000:]
            assert "grant DESCRIBE_CONFIGS by an ACL to have it checked" in log
            assert "AuthorizationFailed" not in log
    finally:
        for worker in workers:
            worker.kill()


def test_with_the_right_to_see_it_the_configuration_is_checked(
    guarded: LocalBroker, administrator: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    grant_role(administrator, "serve")
    world = user(administrator, guarded, "serve")
    names = [topic.name for topic in declare(world, "serve")]
    # brokers learn of a right a moment after it was granted
    wait_until(lambda: all(s.partitions for s in topic_states(world, "serve")), "the topics to be seen")

    def said(world: Settings) -> list[str]:
        """Warnings of ours: kafka-python has its own about passwords in the clear."""
        caplog.clear()
        with caplog.at_level(logging.WARNING, "stream_app.kafka.admin"):
            ensure_topics(world, "serve")
        return [r.getMessage() for r in caplog.records if r.name == "stream_app.kafka.admin"]

    (line,) = said(world)  # of all its topics
    assert "may not be read, and is taken for as declared: grant DESCRIBE_CONFIGS" in line
    grant(administrator, "serve", ResourceType.TOPIC, names, [ACLOperation.DESCRIBE_CONFIGS])
    wait_until(lambda: all(s.config for s in topic_states(world, "serve")), "their configuration to be seen")
    assert said(world) == []
    other: dict[str, Any] = {"event_retention_days": 1}
    (line,) = said(secured(world, other))
    assert "recommendations: retention.ms is " in line
    with pytest.raises(AccessError, match=r"does not alter topic .* grant ALTER_CONFIGS"):
        alter_topics(secured(world, other))


def test_a_topic_that_is_hidden_is_said_to_be(guarded: LocalBroker, administrator: Settings) -> None:
    with pytest.raises(AccessError, match=r"does not exist, or is hidden from us\. Grant DESCRIBE on it"):
        ensure_topics(user(administrator, guarded, "nobody"), "content")


def test_a_changelog_that_expires_is_no_matter_of_roles_that_do_not_use_it(administrator: Settings) -> None:
    kafka = msgspec.structs.replace(administrator.kafka, topic_prefix=f"{administrator.kafka.topic_prefix}x.")
    world = msgspec.structs.replace(administrator, kafka=kafka)
    with contextlib.closing(clients.admin_client(world)) as admin:
        wanted = {"num_partitions": 2, "replication_factor": 1, "configs": {"cleanup.policy": "delete"}}
        admin.create_topics({world.topic_name("erasure-receipts"): wanted}, wait_for_metadata=True)
    ensure_topics(world, "ranker")
    with pytest.raises(TopicMismatchError, match=r"erasure-receipts: cleanup\.policy is delete"):
        ensure_topics(world, "interests")


def test_titles_need_the_contents() -> None:
    """Only a ranker that shows the inspection page reads them."""

    def topics(enabled: bool) -> set[str]:
        return {topic.name for topic in declare(build({"inspect": {"enabled": enabled}}), "ranker")}

    assert topics(True) - topics(False) == {"content"}


def test_without_the_right_to_delete_records_routed_ones_stay_and_the_worker_goes_on(
    guarded: LocalBroker, administrator: Settings, tmp_path: Path
) -> None:
    grant_role(administrator, "interests")
    world = user(administrator, guarded, "interests")
    interests = msgspec.structs.replace(world.interests, sweep_interval_s=0.3)
    worker = Worker(msgspec.structs.replace(world, interests=interests), "w", tmp_path, "interests")
    worker.start()
    try:
        with clients.producer(administrator) as producer:
            value, elsewhere = b'{"user_id":"ana","content_id":"c"}', 1 - partition_of(b"ana", 2)
            producer.send(administrator.topic_name("likes"), value, b"ana", partition=elsewhere).get(10)
        said = "what was routed cannot be removed yet"
        wait_until(lambda: said in worker.log.read_text() or not worker.running, said, worker.log)
        assert worker.running, worker.log.read_text()[-2000:]
        assert worker.stop() == 0
    finally:
        worker.kill()
