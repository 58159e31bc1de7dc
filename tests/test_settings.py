"""Settings: sources and their order, and errors that name setting, value and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stream_app.errors import ConfigurationError
from stream_app.settings import OWN_TOPICS, Settings, build, load
from stream_app.topics import declare, retry_topics


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('[kafka]\nbroker = "file:1"\npartitions = 7\n[events]\nmax_bytes = 10\n')
    assert load(None, {}) == Settings()
    environment = {
        "STREAM_APP_CONFIG": str(file),
        "STREAM_APP_KAFKA_PARTITIONS": "9",
        "STREAM_APP_BROKER": "b:2",
    }
    settings = load(None, environment)
    assert (settings.kafka.broker, settings.kafka.partitions, settings.events.max_bytes) == ("b:2", 9, 10)


def test_lists_in_the_environment() -> None:
    settings = load(
        None,
        {
            "STREAM_APP_EVENTS_ACTIONS": "like:likes:1,hide:hides:-2.5",
            "STREAM_APP_EVENTS_RETRY_DELAYS_S": "1,2.5",
        },
    )
    assert [(a.name, a.topic, a.weight) for a in settings.events.actions] == [
        ("like", "likes", 1.0),
        ("hide", "hides", -2.5),
    ]
    assert settings.events.retry_delays_s == (1.0, 2.5)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"kafka": {"partitions": 0}}, r"kafka\.partitions = 0: expected `int` >= 1"),
        ({"kafka": {"partition": 1}}, "partition"),
        ({"kafak": {}}, "kafak"),
        ({"ranking": {"slate_size": 300}}, r"ranking\.slate_size = 300: must be at most"),
        ({"interests": {"seen": 3}}, r"interests\.seen = 3: must be at least"),
        ({"events": {"actions": []}}, r"events\.actions = \[\]"),
        (
            {"events": {"actions": [{"name": "a", "topic": "t", "weight": 1}] * 2}},
            "each name must be given once",
        ),
    ],
)
def test_errors_name_setting_and_value(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build(tree)


@pytest.mark.parametrize("topic", [*OWN_TOPICS, "my-events-retry", "my-events-retry-3"])
def test_an_action_cannot_take_one_of_our_topics(topic: str) -> None:
    with pytest.raises(ConfigurationError, match=f"topic '{topic}' of 'like' is the product's own"):
        build({"events": {"actions": [{"name": "like", "topic": topic, "weight": 1}]}})


def test_our_topics_are_those_declared() -> None:
    settings = Settings()
    events = {a.topic for a in settings.events.actions}
    tries = set(retry_topics(settings)[1:])
    assert {t.name for t in declare(settings)} - events - tries == set(OWN_TOPICS)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        load(str(tmp_path / "missing.toml"), {})
    (tmp_path / "bad.toml").write_text("[kafka\n")
    with pytest.raises(ConfigurationError, match="not TOML"):
        load(str(tmp_path / "bad.toml"), {})
    (tmp_path / "flat.toml").write_text("kafka = 3\n")
    with pytest.raises(ConfigurationError, match="kafka = 3: expected `object`"):
        load(str(tmp_path / "flat.toml"), {"STREAM_APP_KAFKA_PARTITIONS": "2", "STREAM_APP_BROKER": "b:1"})
