"""A password reaches the client that needs it, and no person's eyes."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from stream_app import cli
from stream_app.demo.roles import environment
from stream_app.errors import ConfigurationError
from stream_app.kafka.connection import aiokafka_options, kafka_python_options
from stream_app.kafka.faust.connection import faust_options
from stream_app.secret import Secret
from stream_app.settings import Settings, build, load

SECRET = "hunter2 and; a bit=more"  # noqa: S105  # of nobody
USER = {"security_protocol": "SASL_PLAINTEXT", "sasl_username": "alice"}
WITH_PASSWORD = {
    "STREAM_APP_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    "STREAM_APP_KAFKA_SASL_USERNAME": "alice",
    "STREAM_APP_KAFKA_SASL_PASSWORD": SECRET,
}


@pytest.fixture
def known() -> Settings:
    """Settings that hold the secret."""
    return load(None, WITH_PASSWORD)


@pytest.mark.parametrize("show", [str, repr, "{}".format, "{!r}".format, "%s".__mod__, ascii])
def test_shown_it_is_redacted(show: Callable[[object], str], known: Settings) -> None:
    for holder in (known.kafka.sasl_password, (known.kafka.sasl_password,), known.kafka, known):
        assert SECRET not in show((holder,))
        assert "***" in show((holder,))


def test_an_empty_one_is_not_made_to_look_like_one() -> None:
    assert "***" not in repr(Settings())


@pytest.mark.parametrize(
    "encode", [msgspec.json.encode, msgspec.msgpack.encode, msgspec.to_builtins, json.dumps, pickle.dumps]
)
def test_encoders_refuse_it(encode: Callable[[object], object], known: Settings) -> None:
    for holder in (known.kafka.sasl_password, known):
        with pytest.raises(TypeError) as error:
            encode(holder)
        assert SECRET not in str(error.value)


def test_copies_and_comparisons(known: Settings) -> None:
    assert known.kafka.sasl_password == Secret(SECRET) != Secret("other")
    assert hash(known.kafka.sasl_password) == hash(Secret(SECRET))
    assert known == load(None, WITH_PASSWORD)
    assert copy.copy(known.kafka).sasl_password.reveal() == SECRET


def test_a_file_of_settings_may_not_hold_one(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    for name in ("sasl_password", "ssl_key_password"):
        file.write_text(f"[kafka]\n{name} = {SECRET!r}\n")
        with pytest.raises(ConfigurationError) as error:
            load(str(file), {})
        assert str(error.value) == (
            f"kafka.{name}: not in the configuration file; set STREAM_APP_KAFKA_{name.upper()}, or name a "
            f"file that holds it alone in kafka.{name}_file"
        )


def test_other_errors_of_the_configuration_do_not_show_it(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    for wrong in ("[kafka]\nno_such_setting = 1\n", "[kafka]\npartitions = 0\n", "kafka = 3\n"):
        file.write_text(wrong)
        with pytest.raises(ConfigurationError) as error:
            load(str(file), WITH_PASSWORD)
        assert SECRET not in "".join(traceback.format_exception(error.value))


def test_workers_get_it_by_their_environment(known: Settings) -> None:
    handed_on = environment(known)
    assert handed_on["STREAM_APP_KAFKA_SASL_PASSWORD"] == SECRET
    assert load(None, handed_on) == known


def test_clients_get_it(known: Settings) -> None:
    assert aiokafka_options(known, "c")["sasl_plain_password"] == SECRET
    assert kafka_python_options(known)["sasl_plain_password"] == SECRET
    credentials = faust_options(known)["broker_credentials"]
    assert credentials.password == SECRET
    assert SECRET not in repr(credentials)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_from_a_file(end: str, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes((SECRET + end).encode())
    settings = build({"kafka": {**USER, "sasl_password_file": str(file)}})
    assert aiokafka_options(settings, "c")["sasl_plain_password"] == SECRET
    file.write_text("changed")
    assert aiokafka_options(settings, "c")["sasl_plain_password"] == "changed"  # noqa: S105  # of nobody


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines\n", b"\xff\xfe", b"x" * 5000])
def test_a_file_that_holds_no_password(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    settings = build({"kafka": {**USER, "sasl_password_file": str(file)}})
    with pytest.raises(ConfigurationError) as error:
        aiokafka_options(settings, "c")
    assert str(error.value) == (
        f"kafka.sasl_password_file = {str(file)!r}: must hold one line of UTF-8 text, the secret and "
        "nothing else"
    )


def test_a_password_file_that_cannot_be_read(tmp_path: Path) -> None:
    settings = build({"kafka": {**USER, "sasl_password_file": str(tmp_path / "none")}})
    with pytest.raises(
        ConfigurationError, match=r"kafka\.sasl_password_file = .*: No such file or directory;"
    ):
        kafka_python_options(settings)


@pytest.mark.parametrize("command", [["--help"], ["worker", "--help"], ["doctor", "--help"]])
def test_help_does_not_show_it(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in WITH_PASSWORD.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        cli.run(command)
    assert SECRET not in capsys.readouterr().out


def test_a_log_line_of_the_settings_is_redacted(known: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("stream_app").error("%s %r", known, known.kafka)
    assert SECRET not in caplog.text
    assert "***" in caplog.text
