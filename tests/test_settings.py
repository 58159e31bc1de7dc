"""Settings: sources and their order, and errors that name setting, value and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stream_app.addresses import addresses
from stream_app.demo.roles import environment
from stream_app.errors import ConfigurationError
from stream_app.kafka.connection import aiokafka_options, kafka_python_options
from stream_app.kafka.faust.connection import faust_options
from stream_app.settings import OWN_TOPICS, SECTIONS, Settings, build, load
from stream_app.topics import declare, retry_topics
from stream_app.worker import _actions


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
        ({"ranking": {"weight_recency": float("nan")}}, r"ranking\.weight_recency = nan: expected a finite"),
        ({"ranking": {"weight_match": "-inf"}}, r"ranking\.weight_match = -inf: expected a finite"),
        ({"interests": {"half_life_days": "inf"}}, r"interests\.half_life_days = inf: expected a finite"),
        ({"events": {"retry_delays_s": [1, "inf"]}}, r"events\.retry_delays_s\[1\] = inf: expected a finite"),
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


SECRET = "hunter2"  # noqa: S105


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("STREAM_APP_KAFKA_PARTITONS", "STREAM_APP_KAFKA_PARTITIONS"),
        ("STREAM_APP_SERVNG_TOKEN", "STREAM_APP_SERVING_TOKEN"),
        ("STREAM_APP_KAFKA_SASL_PASWORD", "STREAM_APP_KAFKA_SASL_PASSWORD"),
        ("STREAM_APP_PARTITIONS", "STREAM_APP_KAFKA_PARTITIONS"),
        ("STREAM_APP_BROKERS", "STREAM_APP_BROKER"),
        ("STREAM_APP_CONFIG_FILE", "STREAM_APP_CONFIG"),
        ("stream_app_kafka_broker", "STREAM_APP_KAFKA_BROKER"),
    ],
)
def test_a_misspelt_name_in_the_environment_is_refused_with_the_right_one(name: str, nearest: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        load(None, {name: SECRET, "STREAM_APP_BROKER": "b:1"})
    assert f"{name} is no setting (did you mean {nearest}?)" in str(error.value)
    assert SECRET not in str(error.value)


def test_all_misspelt_names_are_said_at_once() -> None:
    with pytest.raises(ConfigurationError) as error:
        load(None, {"STREAM_APP_XYZZY": "1", "STREAM_APP_KAFKA_BROKR": "b:1"})
    assert "STREAM_APP_XYZZY is no setting:" in str(error.value)
    assert "did you mean STREAM_APP_KAFKA_BROKER?" in str(error.value)


@pytest.mark.parametrize(
    "name", ["STREAM_APP_PORT", "STREAM_APP_SERVE_SERVICE_HOST", "STREAM_APP_SERVE_PORT_8700_TCP_ADDR"]
)
def test_what_kubernetes_puts_there_for_a_service_is_called_that(name: str) -> None:
    with pytest.raises(ConfigurationError, match="enableServiceLinks: false"):
        load(None, {name: "tcp://10.0.0.7:8700"})


def test_names_that_are_no_settings_but_read_elsewhere_pass() -> None:
    assert load(None, {"STREAM_APP_DATA": "/logs", "STREAMLINE": "x", "PATH": "y"}) == Settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f'[kafka]\nsasl_pasword = "{SECRET}"\n',
            "kafka.sasl_pasword is no setting: did you mean sasl_password",
        ),
        (f'[kafak]\nsasl_password = "{SECRET}"\n', "[kafak] is no setting: did you mean kafka?"),
        (f'sasl_password = "{SECRET}"\n', "stands outside of its table: write it under [kafka]"),
        (f'[kafka.broker]\nsasl_password = "{SECRET}"\n', "kafka.broker: expected `str`"),
        (f'[[kafka]]\nsasl_password = "{SECRET}"\n', "kafka: expected `object`"),
        (f'[kafka]\nbroker = "user:{SECRET}@b:1"\n', "is no address of a broker"),
        (
            '[[events.actions]]\nname = "a"\ntopic = "t"\nwieght = 1\n',
            "events.actions[0].wieght is no setting: did you mean weight?",
        ),
        ("[kafka]\nbroker = 5\n", "kafka.broker = 5: expected `str`"),
    ],
)
def test_a_misspelt_name_in_the_file_is_refused_and_no_value_is_shown(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ConfigurationError) as error:
        load(str(tmp_path / "s.toml"), {})
    assert message in str(error.value)
    assert SECRET not in str(error.value)


def floats() -> list[tuple[str, str]]:
    """Every setting that is a number with a fraction."""
    return [
        (name, field)
        for name, section in SECTIONS.items()
        for field in section.__struct_fields__
        if isinstance(getattr(section(), field), float)
    ]


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(("section", "field"), floats())
def test_numbers_are_finite(section: str, field: str, number: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{section}\.{field} = "):
        load(None, {f"STREAM_APP_{section}_{field}".upper(): number})


@pytest.mark.parametrize(
    "name",
    [
        "EVENTS_RETRY_DELAYS_S=1,nan",
        "INTERESTS_STATS_HALF_LIVES_H=inf",
        "EVENTS_ACTIONS=like:likes:nan",
        "EVENTS_EXTRA_ACTIONS=view:views:inf",
        "RANKING_ARMS=a:blend:nan",
    ],
)
def test_numbers_in_lists_are_finite(name: str) -> None:
    variable, _, value = name.partition("=")
    with pytest.raises(ConfigurationError):
        load(None, {f"STREAM_APP_{variable}": value})


def test_actions_are_added_to_those_that_there_are(tmp_path: Path) -> None:
    def names(settings: Settings) -> list[tuple[str, float]]:
        return [(action.name, action.weight) for action in settings.events.actions]

    defaults = [("like", 1.0), ("comment", 2.0), ("share", 3.0)]
    extra = {"STREAM_APP_EVENTS_EXTRA_ACTIONS": "view:views:0.2, save:saves:4"}
    assert names(load(None, extra)) == [*defaults, ("view", 0.2), ("save", 4.0)]
    assert names(load(None, {"STREAM_APP_EVENTS_EXTRA_ACTIONS": "like:likes:5"}))[0] == ("like", 5.0)
    only = {"STREAM_APP_EVENTS_ACTIONS": "hide:hides:-1"}
    assert names(load(None, only)) == [("hide", -1.0)]
    assert names(load(None, only | extra)) == [("hide", -1.0), ("view", 0.2), ("save", 4.0)]
    (tmp_path / "s.toml").write_text(
        '[[events.extra_actions]]\nname = "view"\ntopic = "views"\nweight = 0.2\n'
    )
    added = load(str(tmp_path / "s.toml"), {})
    assert names(added) == [*defaults, ("view", 0.2)]
    assert load(None, environment(added)) == added, "a worker that is started with them has the same"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("view:views:1,view:others:1", r"events\.extra_actions: each name must be given once"),
        ("view:likes:1", r"events\.actions: each topic must be given once"),
        ("view:interests:1", "is the product's own"),
        (",".join(f"a{n}:t{n}:1" for n in range(14)), "17 actions, at most 16 are allowed"),
    ],
)
def test_extra_actions_that_do_not_fit(given: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load(None, {"STREAM_APP_EVENTS_EXTRA_ACTIONS": given})


@pytest.mark.parametrize(
    ("broker", "found"),
    [
        ("a:9092, b:9093", ["a:9092", "b:9093"]),
        (" a:1 ,\tb:2 ,, ", ["a:1", "b:2"]),
        ("[::1]:9092,127.0.0.1:9", ["[::1]:9092", "127.0.0.1:9"]),
        ("kafka-0.kafka.svc_x.:65535", ["kafka-0.kafka.svc_x.:65535"]),
    ],
)
def test_addresses_of_brokers(broker: str, found: list[str]) -> None:
    settings = load(None, {"STREAM_APP_BROKER": broker})
    assert [str(address) for address in addresses(settings.kafka.broker)] == found
    assert aiokafka_options(settings, "c")["bootstrap_servers"] == found
    assert kafka_python_options(settings)["bootstrap_servers"] == found
    assert [str(url) for url in faust_options(settings)["broker"]] == [f"aiokafka://{a}" for a in found]


@pytest.mark.parametrize(
    "broker",
    [
        *("host", "host:", ":9092", "host:99999", "host:0", "host:-1", "host:1x", "a:1,b", "a b:1", " , "),
        *("::1:9092", "[::1]", "[::g]:1", "[a]:1", "kafka://a:1", "user:word@a:1", "a:1;b:1", "a:９"),
    ],
)
def test_what_is_no_address_is_said_and_ends_nothing_in_a_traceback(broker: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^kafka\.broker"):
        load(None, {"STREAM_APP_BROKER": broker})


def test_a_worker_says_which_actions_count_and_which_defaults_do_not() -> None:
    only = {"STREAM_APP_EVENTS_ACTIONS": "view:views:0.2,like:likes:1"}
    assert _actions(load(None, only).events) == (
        "view (views, weight 0.2), like (likes, weight 1); without the default comment, share "
        "(events.extra_actions only adds)"
    )
    added = load(None, {"STREAM_APP_EVENTS_EXTRA_ACTIONS": "view:views:0.2"})
    assert _actions(added.events).endswith("share (shares, weight 3), view (views, weight 0.2)")
