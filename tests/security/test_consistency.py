"""Settings of TLS and SASL that cannot work are refused before a connection is tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stream_app import cli
from stream_app.errors import ConfigurationError
from stream_app.kafka.connection import aiokafka_options, kafka_python_options
from stream_app.kafka.faust.connection import faust_options
from stream_app.secret import Secret
from stream_app.settings import Settings, build
from tests.security.conftest import KEY_PASSWORD, Certificates

PASSWORD = Secret("p")


@pytest.mark.parametrize(
    ("kafka", "message"),
    [
        (
            {"security_protocol": "TLS"},
            "kafka.security_protocol = 'TLS': expected `str` matching regex "
            "'^(PLAINTEXT|SSL|SASL_PLAINTEXT|SASL_SSL)$'",
        ),
        (
            {"sasl_mechanism": "GSSAPI"},
            "kafka.sasl_mechanism = 'GSSAPI': expected `str` matching regex "
            "'^(PLAIN|SCRAM-SHA-256|SCRAM-SHA-512)$'",
        ),
        (
            {"security_protocol": "SASL_SSL", "sasl_password": PASSWORD},
            "kafka.security_protocol = 'SASL_SSL' needs kafka.sasl_username; set it",
        ),
        (
            {"security_protocol": "SASL_SSL", "sasl_username": "u"},
            "kafka.security_protocol = 'SASL_SSL' needs a password; set STREAM_APP_KAFKA_SASL_PASSWORD or "
            "kafka.sasl_password_file",
        ),
        (
            {
                "security_protocol": "SASL_SSL",
                "sasl_username": "u",
                "sasl_password": PASSWORD,
                "sasl_password_file": "f",
            },
            "kafka.sasl_password and kafka.sasl_password_file are both given; keep one",
        ),
        (
            {"sasl_password": PASSWORD},
            "kafka.sasl_password is given, but kafka.security_protocol = 'PLAINTEXT' makes no use of it; "
            "set SASL_SSL or SASL_PLAINTEXT",
        ),
        (
            {"ssl_ca_file": "ca.pem"},
            "kafka.ssl_ca_file is given, but kafka.security_protocol = 'PLAINTEXT' makes no use of it; "
            "set SSL or SASL_SSL",
        ),
        (
            {"security_protocol": "SSL", "sasl_username": "u"},
            "kafka.sasl_username is given, but kafka.security_protocol = 'SSL' makes no use of it; "
            "set SASL_SSL or SASL_PLAINTEXT",
        ),
        (
            {"security_protocol": "SSL", "ssl_key_file": "k"},
            "kafka.ssl_certificate_file and kafka.ssl_key_file belong together; set both",
        ),
        (
            {"security_protocol": "SSL", "ssl_certificate_file": "c"},
            "kafka.ssl_certificate_file and kafka.ssl_key_file belong together; set both",
        ),
        (
            {"security_protocol": "SSL", "ssl_key_password": PASSWORD},
            "kafka.ssl_key_password is given without kafka.ssl_key_file; set both",
        ),
    ],
)
def test_what_does_not_belong_together(kafka: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        build({"kafka": kafka})
    assert str(error.value) == message


def tls(certificates: Certificates, **options: Any) -> Settings:
    return build({"kafka": {"security_protocol": "SSL", "ssl_ca_file": certificates.authority, **options}})


def refused(settings: Settings) -> str:
    """The one message that every library's options end in."""
    messages = set()
    for options in (
        lambda: aiokafka_options(settings, "c"),
        lambda: kafka_python_options(settings),
        lambda: faust_options(settings),
    ):
        with pytest.raises(ConfigurationError) as error:
            options()
        messages.add(str(error.value))
    (message,) = messages
    return message


def test_an_authority_that_is_no_file_or_no_certificate(certificates: Certificates, tmp_path: Path) -> None:
    missing, empty = str(tmp_path / "none.pem"), tmp_path / "empty.pem"
    empty.write_text("no certificate")
    assert refused(tls(certificates, ssl_ca_file=missing)) == (
        f"kafka.ssl_ca_file = {missing!r}: No such file or directory; name a file that this user can read"
    )
    for file in (str(empty), certificates.key("server")):
        assert refused(tls(certificates, ssl_ca_file=file)) == (
            f"kafka.ssl_ca_file = {file!r}: holds no certificate; give a file in PEM format"
        )


def test_a_certificate_whose_key_is_missing(certificates: Certificates, tmp_path: Path) -> None:
    own = {"ssl_certificate_file": certificates.certificate("unknown")}
    missing = str(tmp_path / "none.key")
    assert refused(tls(certificates, **own, ssl_key_file=missing)) == (
        f"kafka.ssl_key_file = {missing!r}: No such file or directory; name a file that this user can read"
    )


@pytest.mark.parametrize("key", ["server", "client", "ca"])
def test_a_key_that_does_not_fit(key: str, certificates: Certificates) -> None:
    """Of another certificate; encrypted, without its password; none at all."""
    file = certificates.authority if key == "ca" else certificates.key(key)
    own = certificates.certificate("client" if key == "client" else "unknown")
    message = refused(tls(certificates, ssl_certificate_file=own, ssl_key_file=file))
    assert message.startswith(
        f"kafka.ssl_certificate_file = {own!r} and kafka.ssl_key_file = {file!r} cannot be used ("
    )
    assert message.endswith(
        "): both must be in PEM format and belong together, and kafka.ssl_key_password must fit an "
        "encrypted key"
    )


def test_a_wrong_password_of_the_key(certificates: Certificates) -> None:
    own = {
        "ssl_certificate_file": certificates.certificate("client"),
        "ssl_key_file": certificates.key("client"),
    }
    wrong = "not this one"
    assert wrong not in refused(tls(certificates, **own, ssl_key_password=Secret(wrong)))
    right = tls(certificates, **own, ssl_key_password=Secret(KEY_PASSWORD))
    assert aiokafka_options(right, "c")["ssl_context"].check_hostname


def test_the_host_name_is_checked_unless_one_says_no(certificates: Certificates) -> None:
    assert aiokafka_options(tls(certificates), "c")["ssl_context"].check_hostname
    context = aiokafka_options(tls(certificates, ssl_check_hostname=False), "c")["ssl_context"]
    assert not context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"  # the authority is checked all the same


def test_a_command_ends_with_status_2(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STREAM_APP_KAFKA_SECURITY_PROTOCOL", "SSL")
    monkeypatch.setenv("STREAM_APP_KAFKA_SSL_CA_FILE", certificates.key("server"))
    assert cli.run(["topics"]) == 2
    assert capsys.readouterr().err.startswith("stream-app: [configuration] kafka.ssl_ca_file = ")
