"""Topics on a real broker: created as declared, checked, refused when they cannot work together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import msgspec
import pytest
from kafka import errors as kafka_errors

from stream_app.errors import BrokerUnavailableError, ConfigurationError, TopicMismatchError
from stream_app.kafka.admin import (
    check_topics,
    create_topics,
    delete_records,
    delete_topics,
    ensure_topics,
    topic_id,
    topic_states,
)
from stream_app.kafka.clients import admin_client, consumer, producer, read_topic
from stream_app.settings import Settings
from stream_app.topics import declare


def with_kafka(settings: Settings, **changes: object) -> Settings:
    """The same settings with other values in section ``kafka``."""
    return msgspec.structs.replace(settings, kafka=msgspec.structs.replace(settings.kafka, **changes))


def test_topics_are_created_as_declared(settings: Settings) -> None:
    assert create_topics(settings) == [t.name for t in declare(settings)]
    assert create_topics(settings) == []
    assert check_topics(settings) == []
    by_name = {s.topic.name: s for s in topic_states(settings)}
    likes = by_name[settings.topic_name("likes")]
    assert likes.partitions == 2
    assert likes.config["retention.ms"] == str(7 * 86_400_000)
    assert likes.config["message.timestamp.type"] == "LogAppendTime"
    assert by_name[settings.topic_name("interests")].config["cleanup.policy"] == "compact"
    day = str(86_400_000)
    for name in ("interests", "recommendations", "erasure-receipts"):
        config = by_name[settings.topic_name(name)].config
        assert (config["max.compaction.lag.ms"], config["delete.retention.ms"]) == (day, day)
    for name in ("erasures", "events-retry", "events-dlq"):
        assert by_name[settings.topic_name(name)].config["segment.ms"] == day


def test_a_missing_topic_is_named_with_the_command_that_creates_it(settings: Settings) -> None:
    problems = check_topics(settings)
    assert len(problems) == len(declare(settings))
    assert settings.topic_name("likes") in problems[0]
    assert "stream-app topics --create" in problems[0]


def test_a_partition_mismatch_names_both_topics_and_their_counts(settings: Settings) -> None:
    routed, interests = settings.topic_name("events-routed"), settings.topic_name("interests")
    with closing(admin_client(settings)) as admin:
        admin.create_topics({routed: {"num_partitions": 3, "replication_factor": 1}}, wait_for_metadata=True)
    with pytest.raises(TopicMismatchError) as failure:
        ensure_topics(settings)
    assert f"{routed} has 3 partitions and {interests} has 2" in str(failure.value)


def test_a_topic_of_events_may_have_any_number_of_partitions(settings: Settings) -> None:
    wanted = {settings.topic_name("likes"): {"num_partitions": 3, "replication_factor": 1}}
    with closing(admin_client(settings)) as admin:
        admin.create_topics(wanted, wait_for_metadata=True)
    ensure_topics(settings)
    assert not [problem for problem in check_topics(settings) if "partitions" in problem]


def test_topics_that_agree_but_not_with_the_settings_are_refused(
    settings: Settings, topics: list[str]
) -> None:
    with pytest.raises(TopicMismatchError, match=r"has 2 partitions, but kafka\.partitions = 5"):
        check_topics(with_kafka(settings, partitions=5))


def test_a_differing_configuration_is_a_problem(settings: Settings, topics: list[str]) -> None:
    changed = with_kafka(settings, event_retention_days=1, shared_partitions=3, compaction_lag_h=1)
    problems = check_topics(changed)
    assert any("max.compaction.lag.ms is 86400000, declared is 3600000" in p for p in problems)
    assert any("retention.ms is 604800000, declared is 86400000" in p for p in problems)
    assert any("has 2 partitions, configured are 3" in p for p in problems)


def test_a_replication_factor_that_the_brokers_cannot_give_is_a_configuration_error(
    settings: Settings,
) -> None:
    with pytest.raises(ConfigurationError, match=r"kafka\.replication_factor = 9"):
        create_topics(with_kafka(settings, replication_factor=9))


def test_workers_that_start_together_may_all_create_the_topics(settings: Settings) -> None:
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(ensure_topics, settings) for _ in range(4)]:
            done.result(30)
    assert check_topics(settings) == []


def test_a_topic_that_was_created_again_has_another_id(settings: Settings, topics: list[str]) -> None:
    name = settings.topic_name("interests")
    before = topic_id(settings, name)
    assert before == topic_id(settings, name) != topic_id(settings, settings.topic_name("likes"))
    delete_topics(settings)
    with pytest.raises(TopicMismatchError, match="does not exist"):
        topic_id(settings, name)
    create_topics(settings)
    assert topic_id(settings, name) not in ("", before)


def test_records_are_deleted_up_to_an_offset_and_once_is_enough(
    settings: Settings, topics: list[str]
) -> None:
    name = settings.topic_name("events-retry")
    with producer(settings) as client:
        for number in range(5):
            client.send(name, b"%d" % number, partition=1)
    for _ in range(2):
        delete_records(settings, {(name, 1): 3})
    assert [r.value for r in read_topic(settings, name)] == [b"3", b"4"]
    delete_records(settings, {(name, 1): 2})
    assert len(list(read_topic(settings, name))) == 2


def test_topics_are_deleted(settings: Settings, topics: list[str]) -> None:
    assert delete_topics(settings) == topics
    assert delete_topics(settings) == []


def test_reading_ends_behind_transaction_markers_and_aborted_records(
    settings: Settings, topics: list[str]
) -> None:
    name = settings.topic_name("interests")
    client = producer(settings, transactional_id=f"{settings.kafka.app_id}-test")
    client.init_transactions()
    for number, commit in enumerate((True, False, True, False)):
        client.begin_transaction()
        for partition in (0, 1):
            client.send(name, b"%d" % number, key=b"k", partition=partition)
        if commit:
            client.commit_transaction()
        else:
            client.abort_transaction()
    client.close()
    assert sorted(r.value for r in read_topic(settings, name)) == [b"0", b"0", b"2", b"2"]
    assert list(read_topic(settings, settings.topic_name("likes"))) == []


def test_reading_a_topic_that_does_not_exist_names_it(settings: Settings) -> None:
    with pytest.raises(TopicMismatchError, match=settings.topic_name("likes")):
        list(read_topic(settings, settings.topic_name("likes")))


@pytest.mark.parametrize("connect", [admin_client, producer, consumer])
def test_no_broker_is_an_error_that_names_the_address(
    connect: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_app.kafka.clients.CONNECT_TIMEOUT_MS", 300)
    settings = with_kafka(Settings(), broker="127.0.0.1:1")
    with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:1 .*STREAM_APP_BROKER") as failure:
        connect(settings)  # type: ignore[operator]
    assert isinstance(failure.value.__cause__, kafka_errors.KafkaError)
