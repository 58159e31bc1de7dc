"""config: what is in effect, where it comes from, and nothing that is secret."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from stream_app import cli
from stream_app.settings import SECTIONS, build, load

SECRET = "correct horse"  # noqa: S105


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file, whose name this is, and variables beside it."""
    file = tmp_path / "s.toml"
    file.write_text(
        '[kafka]\nbroker = "file:1"\npartitions = 7\ntopic_prefix = "a-b."\n'
        + '[[events.actions]]\nname = "like"\ntopic = "likes"\nweight = 1.5\n'
    )
    for name, value in {
        "BROKER": "env:2, env:3",
        "EVENTS_EXTRA_ACTIONS": "view:views:0.2",
        "SERVING_TOKEN": SECRET,
        "OBSERVABILITY_TRACING_ENDPOINT": f"http://me:{SECRET.replace(' ', '')}@collector:4318/v1/traces",
    }.items():
        monkeypatch.setenv(f"STREAM_APP_{name}", value)
    return str(file)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.run(["config", *arguments]) == 0
    out = capsys.readouterr().out
    assert SECRET not in out
    assert SECRET.replace(" ", "") not in out
    return out


def test_each_setting_and_where_it_comes_from(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(printed(capsys, "--config", given, "--json", "--log-level", "error"))
    by_name = {row["setting"]: (row["value"], row["source"]) for row in rows}
    assert list(by_name) == [f"{s}.{f}" for s, kind in SECTIONS.items() for f in kind.__struct_fields__]
    assert by_name["kafka.broker"] == ("env:2, env:3", "STREAM_APP_BROKER")
    assert by_name["kafka.partitions"] == (7, given)
    assert by_name["kafka.shared_partitions"] == (4, "default")
    assert by_name["serving.token"] == ("***", "STREAM_APP_SERVING_TOKEN")
    assert by_name["inspect.token"] == ("", "default")
    assert by_name["observability.log_level"] == ("error", "--log-level")
    assert by_name["observability.tracing_endpoint"][0] == "http://***@collector:4318/v1/traces"
    actions, source = by_name["events.actions"]
    assert [(action["name"], action["weight"]) for action in actions] == [("like", 1.5), ("view", 0.2)]
    assert source == f"{given}, and events.extra_actions from STREAM_APP_EVENTS_EXTRA_ACTIONS"


def test_what_is_printed_is_a_file_that_says_the_same(
    given: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STREAM_APP_OBSERVABILITY_TRACING_ENDPOINT")
    text = printed(capsys, "--config", given)
    assert 'broker = "env:2, env:3"  # STREAM_APP_BROKER\n' in text
    assert '# token = "***"  # STREAM_APP_SERVING_TOKEN\n' in text
    monkeypatch.delenv("STREAM_APP_SERVING_TOKEN")
    assert build(tomllib.loads(text)) == load(given)


def test_only_what_is_set(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(printed(capsys, "--config", given, "--json", "--changed"))
    assert [row["setting"] for row in rows] == [
        *("kafka.broker", "kafka.topic_prefix", "kafka.partitions", "events.actions", "events.extra_actions"),
        *("serving.token", "observability.tracing_endpoint"),
    ]


def test_without_anything_given_all_are_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(printed(capsys, "--json"))
    sources = {row["source"] for row in rows if row["setting"] != "kafka.broker"}
    assert sources == {"default"}


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_refuses_a_misspelt_variable(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {
        "worker": ["interests"],
        "replay": ["--log", "x"],
        "dlq": ["count"],
        "erase": ["u"],
        "show": ["u"],
        "evaluate": ["--log", "x"],
    }
    monkeypatch.setenv("STREAM_APP_SERVNG_TOKEN", SECRET)
    assert cli.run([command, *arguments.get(command, [])]) == 2
    said = capsys.readouterr().err
    assert "did you mean STREAM_APP_SERVING_TOKEN?" in said
    assert SECRET not in said
