"""One Apache Kafka with secured listeners for all of these tests, and throw-away certificates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from kafka.admin import UserScramCredentialUpsertion

from stream_app.kafka import clients
from stream_app.kafka.broker import LocalBroker
from stream_app.secret import Secret
from stream_app.settings import Kafka, Settings
from tests.conftest import RunningBroker

USER = "alice"
PASSWORD = "correct horse, battery staple"  # noqa: S105  # with what a command line could trip over
KEY_PASSWORD = "another secret of ours"  # noqa: S105  # of a key that is thrown away
PLAIN_LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
SCRAM_LOGIN = "org.apache.kafka.common.security.scram.ScramLoginModule required"
MECHANISMS = ("SCRAM-SHA-256", "SCRAM-SHA-512")
LISTENERS = {"USERS": "SASL_SSL", "CERTIFICATES": "SSL", "STRANGER": "SSL", "CLEAR": "SASL_PLAINTEXT"}


@dataclass(frozen=True)
class Certificates:
    """PEM files: whom to trust, and who somebody is."""

    directory: Path

    @property
    def authority(self) -> str:
        return str(self.directory / "ca.pem")

    @property
    def other_authority(self) -> str:
        return str(self.directory / "other-ca.pem")

    def certificate(self, name: str) -> str:
        return str(self.directory / f"{name}.crt")

    def key(self, name: str) -> str:
        return str(self.directory / f"{name}.key")


@dataclass(frozen=True)
class SecuredBroker:
    """A Kafka that wants to know who comes, and what its clients need."""

    broker: LocalBroker
    certificates: Certificates

    def connection(self, listener: str, **options: Any) -> dict[str, Any]:
        """The fields of ``Kafka`` for a listener, TLS where it has it; ``options`` are added or replaced."""
        chosen: dict[str, Any] = {
            "broker": self.broker.listener(listener),
            "security_protocol": LISTENERS[listener],
        }
        if chosen["security_protocol"].endswith("SSL"):
            chosen["ssl_ca_file"] = self.certificates.authority
        if chosen["security_protocol"].startswith("SASL"):
            chosen |= {"sasl_username": USER, "sasl_password": Secret(PASSWORD)}
        return chosen | options

    def by_certificate(self) -> dict[str, Any]:
        """The fields of ``Kafka`` for mutual TLS, with an encrypted key."""
        return self.connection(
            "CERTIFICATES",
            ssl_certificate_file=self.certificates.certificate("client"),
            ssl_key_file=self.certificates.key("client"),
            ssl_key_password=Secret(KEY_PASSWORD),
        )


def secured(settings: Settings, connection: dict[str, Any]) -> Settings:
    """The same world, reached in another way."""
    return msgspec.structs.replace(settings, kafka=msgspec.structs.replace(settings.kafka, **connection))


@pytest.fixture(scope="package")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Of one authority: the broker's, one for another host, a client's. And a second authority."""
    directory = tmp_path_factory.mktemp("certificates")
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    other.cert_pem.write_to_path(str(directory / "other-ca.pem"))
    for name, issued in {
        "server": authority.issue_cert("127.0.0.1", "localhost"),
        "stranger": authority.issue_cert("elsewhere.example"),
        "client": authority.issue_cert("client.example"),
        "unknown": other.issue_cert("client.example"),
    }.items():
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        (directory / f"{name}.crt").write_bytes(chain)
        key = load_pem_private_key(issued.private_key_pem.bytes(), None)
        how = BestAvailableEncryption(KEY_PASSWORD.encode()) if name == "client" else NoEncryption()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)
        (directory / f"{name}.key").write_bytes(pem)
        (directory / f"{name}.pem").write_bytes(pem + chain)  # Kafka takes both from one file
    return Certificates(directory)


@pytest.fixture(scope="package")
def secured_broker(certificates: Certificates) -> Iterator[SecuredBroker]:
    """Started, with one user for each mechanism."""
    plain = f'{PLAIN_LOGIN} username="broker" password="broker" user_{USER}="{PASSWORD}";'
    properties = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificates.directory / "server.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": certificates.authority,
        "listener.name.certificates.ssl.client.auth": "required",
        "listener.name.stranger.ssl.keystore.type": "PEM",
        "listener.name.stranger.ssl.keystore.location": str(certificates.directory / "stranger.pem"),
        "listener.name.users.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.users.plain.sasl.jaas.config": plain,
        "listener.name.users.scram-sha-256.sasl.jaas.config": f"{SCRAM_LOGIN};",
        "listener.name.users.scram-sha-512.sasl.jaas.config": f"{SCRAM_LOGIN};",
        "listener.name.clear.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.clear.scram-sha-512.sasl.jaas.config": f"{SCRAM_LOGIN};",
    }
    with LocalBroker(properties=properties, listeners=LISTENERS) as broker:
        add_users(broker)
        yield SecuredBroker(broker, certificates)


@pytest.fixture(scope="package")
def broker(secured_broker: SecuredBroker) -> RunningBroker:
    """What ``settings`` point to: the same Kafka's plain listener."""
    return RunningBroker(secured_broker.broker.address)


def add_users(broker: LocalBroker) -> None:
    """Over the plain listener, as an operator would with Kafka's own tools."""
    settings = Settings(kafka=Kafka(broker=broker.address))
    with contextlib.closing(clients.admin_client(settings)) as admin:
        for mechanism in MECHANISMS:  # Kafka takes one for a user in a request
            credential = UserScramCredentialUpsertion(USER, mechanism, PASSWORD)
            assert admin.alter_user_scram_credentials([credential]) == {USER: None}
