"""How a Faust app reaches the broker: ``kafka/connection.py`` in Faust's words."""

from __future__ import annotations

from typing import Any

from faust.auth import SASLCredentials, SSLCredentials
from yarl import URL

from stream_app.addresses import addresses
from stream_app.kafka import patches
from stream_app.kafka.connection import password_of, tls_context
from stream_app.settings import Settings


def faust_options(settings: Settings) -> dict[str, Any]:
    """For a Faust app, which makes its clients from them. Raises ConfigurationError naming the setting."""
    patches.apply()
    kafka = settings.kafka
    options: dict[str, Any] = {
        "broker": [URL(f"aiokafka://{address}") for address in addresses(kafka.broker)]
    }
    if kafka.uses_sasl:
        options["broker_credentials"] = SASLCredentials(
            username=kafka.sasl_username,
            password=password_of(kafka),
            mechanism=kafka.sasl_mechanism,
            ssl_context=tls_context(kafka) if kafka.uses_tls else None,
        )
    elif kafka.uses_tls:
        options["broker_credentials"] = SSLCredentials(tls_context(kafka))
    return options
