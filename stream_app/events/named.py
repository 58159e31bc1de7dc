"""Whom a record is about, as far as it says so: also one that is no event."""

from __future__ import annotations

import msgspec

from stream_app.events.faults import DECODING_ERRORS
from stream_app.kafka.records import Record


class _Named(msgspec.Struct):
    user_id: str | None = None


_read = msgspec.json.Decoder(_Named).decode


def user_in(value: bytes) -> bytes | None:
    """The user that a value names, in UTF-8; None where it names none."""
    try:
        user = _read(value).user_id
    except DECODING_ERRORS:
        return None
    return None if user is None else user.encode(errors="surrogatepass")


def users_in(record: Record) -> list[bytes]:
    """The user that the value names, then the key if it is another one: at most two, in UTF-8.

    A platform may key its records by something else, so the value comes first.
    """
    named = [] if record.key is None else [record.key]
    if record.value and b"user_id" in record.value:
        user = user_in(record.value)
        if user is not None and user != record.key:
            named.insert(0, user)
    return named
