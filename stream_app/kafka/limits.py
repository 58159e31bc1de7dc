"""Settings whose records no broker would take are refused before the first record."""

from __future__ import annotations

from stream_app.errors import ConfigurationError
from stream_app.settings import Settings

HEADER_BYTES = 1_024
"""Of a record's headers where they are ours alone, and its framing, at most."""


def check_record(settings: Settings, what: str, value_bytes: int) -> None:
    """Raise ConfigurationError where ``what`` allows records larger than ``kafka.max_record_bytes``."""
    size = value_bytes + settings.events.max_id_bytes + HEADER_BYTES
    if size > settings.kafka.max_record_bytes:
        raise ConfigurationError(
            f"{what}: records may have {size} bytes, and kafka.max_record_bytes is "
            f"{settings.kafka.max_record_bytes}; set lower"
        )
