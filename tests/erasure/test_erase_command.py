"""``stream-app erase`` without a worker: what it produces, what it refuses, what it says without answer."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from stream_app.commands import erase
from stream_app.demo.roles import environment
from stream_app.docs.__main__ import ROOT
from stream_app.errors import ConfigurationError
from stream_app.kafka import clients
from stream_app.settings import Settings
from tests.erasure.erasing import erased


def run(settings: Settings, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    erase.add_arguments(parser)
    return erase.run(parser.parse_args(arguments), settings)


def requests(settings: Settings) -> dict[bytes, object]:
    return {r.key: json.loads(r.value) for r in clients.read_topic(settings, settings.topic_name("erasures"))}


def test_requests_are_those_of_the_contract(settings: Settings, topics: list[str], tmp_path: Path) -> None:
    more = tmp_path / "users"
    more.write_text("ben\nzoë\n\nana\n", encoding="utf-8")
    as_of = "2025-06-15T15:06:40Z"
    status, printed = erased(settings, "ana", "--file", str(more), "--as-of", as_of, "--no-wait")
    assert status == 0
    assert [line["user_id"] for line in printed] == ["ana", "ben", "zoë"]
    assert all(line["receipt"] is None for line in printed)
    found = requests(settings)
    assert found.keys() == {b"ana", b"ben", "zoë".encode()}
    assert found["zoë".encode()] == {"user_id": "zoë", "requested_at": 1_750_000_000_000}
    schema = json.loads((ROOT / "schemas" / "erasure.json").read_text(encoding="utf-8"))
    for request in found.values():
        Draft202012Validator(schema).validate(request)


def test_without_an_answer_the_status_says_so(
    settings: Settings, topics: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(settings, "ana", "--timeout", "0.5") == 1
    assert "ana: requested, but not confirmed within 0 s" in capsys.readouterr().out
    assert requests(settings)[b"ana"] == {"user_id": "ana"}
    assert run(settings, "ana", "--no-wait") == 0
    assert capsys.readouterr().out == "ana: requested\n"


@pytest.mark.parametrize(
    "locale", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_an_id_is_what_was_typed_in_every_locale(
    settings: Settings, topics: list[str], locale: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stream_app", "erase", "usér😀", "--no-wait"],
        env=environment(settings) | locale,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert requests(settings) == {"usér😀".encode(): {"user_id": "usér😀"}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nobody to erase"),
        (["x" * 300], "300 bytes"),
        (["us\udce9r"], "surrogates not allowed"),
        (["a\x1b[2J"], r"USER a\\x1b\[2J: the user id has control characters"),
        (["--file", "/nowhere/users"], "/nowhere/users"),
    ],
)
def test_what_is_no_user_is_refused_before_anything_is_produced(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run(Settings(), *arguments)
