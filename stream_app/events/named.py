"""Whom a record is about, as far as it says so: also one that is no event."""

from __future__ import annotations

import msgspec

from stream_app.events.faults import DECODING_ERRORS
from stream_app.kafka.records import Record


class _Named(msgspec.Struct):
    user_id: str | None = None


_read = msgspec.json.Decoder(_Named).decode


def users_in(record: Record) -> list[bytes]:
    """The user that the value names, then the key if it is another one: at most two, in UTF-8.

    A platform may key its records by something else, so the value comes first.
    """
    named = [] if record.key is None else [record.key]
    if record.value and b"user_id" in record.value:
        try:
            user = _read(record.value).user_id
        except DECODING_ERRORS:
            user = None
        if user is not None and (name := user.encode(errors="surrogatepass")) != record.key:
            named.insert(0, name)
    return named
