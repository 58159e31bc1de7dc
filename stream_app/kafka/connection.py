"""How a client reaches the broker: the one place that turns settings into connection options.

Three libraries open connections for us, each with names of its own (Faust's are in ``faust/connection.py``).
Whoever makes a client passes these options, so that none can be opened without the transport security that
is configured, or before the libraries are patched. Files are read anew for each client: a rotated certificate
or password counts from the next one on.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from stream_app.addresses import addresses
from stream_app.errors import ConfigurationError
from stream_app.kafka import patches
from stream_app.secret import secret_of
from stream_app.settings import Kafka, Settings

READABLE = "name a file that this user can read"
NOT_PEM = "not PEM"


def aiokafka_options(settings: Settings, client_id: str) -> dict[str, Any]:
    """For AIOKafkaProducer and AIOKafkaConsumer. Raises ConfigurationError naming the setting."""
    return {"bootstrap_servers": _servers(settings.kafka), **single_connection_options(settings, client_id)}


def single_connection_options(settings: Settings, client_id: str) -> dict[str, Any]:
    """For AIOKafkaConnection: to one host and port. Raises ConfigurationError."""
    patches.apply()
    return {
        "client_id": client_id,
        "request_timeout_ms": int(settings.kafka.request_timeout_s * 1000),
        **_security(settings.kafka),
    }


def kafka_python_options(settings: Settings) -> dict[str, Any]:
    """For kafka-python's clients. Raises ConfigurationError naming the setting."""
    patches.apply()
    kafka = settings.kafka
    return {
        "bootstrap_servers": _servers(kafka),
        "client_id": kafka.app_id,
        "request_timeout_ms": int(kafka.request_timeout_s * 1000),
        **_security(kafka),
    }


def _servers(kafka: Kafka) -> list[str]:
    return [str(address) for address in addresses(kafka.broker)]


def _security(kafka: Kafka) -> dict[str, Any]:
    """What aiokafka and kafka-python call by the same names."""
    options: dict[str, Any] = {"security_protocol": kafka.security_protocol}
    if kafka.uses_tls:
        options["ssl_context"] = tls_context(kafka)
    if kafka.uses_sasl:
        options["sasl_mechanism"] = kafka.sasl_mechanism
        options["sasl_plain_username"] = kafka.sasl_username
        options["sasl_plain_password"] = password_of(kafka)
    return options


def password_of(kafka: Kafka) -> str:
    """Of the SASL user. Raises ConfigurationError naming the setting."""
    return secret_of("kafka.sasl_password", kafka.sasl_password, kafka.sasl_password_file).reveal()


def tls_context(kafka: Kafka) -> ssl.SSLContext:
    """Trust and identity of a TLS client. Raises ConfigurationError naming the setting."""
    where = f"kafka.ssl_ca_file = {kafka.ssl_ca_file!r}"
    try:
        context = ssl.create_default_context(cafile=kafka.ssl_ca_file or None)
    except ssl.SSLError:
        raise ConfigurationError(f"{where}: holds no certificate; give a file in PEM format") from None
    except OSError as error:
        raise ConfigurationError(f"{where}: {error.strerror}; {READABLE}") from None
    context.check_hostname = kafka.ssl_check_hostname
    if kafka.ssl_certificate_file:
        _identify(context, kafka)
    return context


def _identify(context: ssl.SSLContext, kafka: Kafka) -> None:
    """Load the client's certificate and key."""
    for name in ("ssl_certificate_file", "ssl_key_file"):
        try:
            Path(getattr(kafka, name)).open("rb").close()
        except OSError as error:
            raise ConfigurationError(
                f"kafka.{name} = {getattr(kafka, name)!r}: {error.strerror}; {READABLE}"
            ) from None
    password = secret_of("kafka.ssl_key_password", kafka.ssl_key_password, kafka.ssl_key_password_file)
    try:
        # an empty password, and not None: OpenSSL would ask for it on the terminal
        context.load_cert_chain(kafka.ssl_certificate_file, kafka.ssl_key_file, password.reveal())
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"kafka.ssl_certificate_file = {kafka.ssl_certificate_file!r} and kafka.ssl_key_file = "
            f"{kafka.ssl_key_file!r} cannot be used ({error.reason or NOT_PEM}): both must be in PEM format "
            "and belong together, and kafka.ssl_key_password must fit an encrypted key"
        ) from None
