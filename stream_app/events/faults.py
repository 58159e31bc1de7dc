"""What is wrong with one record that JSON types cannot say, and which reason a decoder's error means."""

from __future__ import annotations

import re

import msgspec

from stream_app.events.hints import hint
from stream_app.events.reasons import Reason
from stream_app.kafka.unreadable import OVERSIZED, UNREADABLE, UnreadableRange

_RANGES = {UNREADABLE: Reason.UNREADABLE_BATCH, OVERSIZED: Reason.OVERSIZED_BATCH}


class UnfitError(Exception):
    """A record that is valid JSON of the right types and yet not acceptable."""

    def __init__(self, reason: Reason, detail: str) -> None:
        """``detail``: one short sentence, never with user data."""
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


DECODING_ERRORS = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)
"""What msgspec, UTF-8 and timestamps raise on bad input; :func:`explain` names each."""


def check_readable(record: object) -> None:
    """Raise UnfitError if a record without a value stands for a range that could not be read."""
    if isinstance(record, UnreadableRange):
        raise UnfitError(_RANGES[record.damage.reason], record.damage.detail)


def check_id(field: str, text: str, max_bytes: int) -> None:
    """Raise UnfitError unless the id is one: non-empty, bounded, without control characters."""
    if not text:
        raise UnfitError(Reason.INVALID_ID, f"{field} is empty")
    if (length := len(text.encode())) > max_bytes:
        raise UnfitError(Reason.INVALID_ID, f"{field} has {length} bytes, at most {max_bytes} are taken")
    if any(c < " " or "\x7f" <= c <= "\x9f" for c in text):
        raise UnfitError(Reason.INVALID_ID, f"{field} has control characters")


_QUOTED = re.compile(rb'_at"\s*:\s*"[0-9]+"')


def explain(error: Exception, time_field: str, value: bytes) -> tuple[Reason, str]:
    """Reason and detail of one of DECODING_ERRORS. Its messages name fields and types, never values; what
    ``value`` looks like is added where it is no message at all."""
    reason, detail = _explain(error, time_field)
    if reason in (Reason.MALFORMED_JSON, Reason.INVALID_UTF8, Reason.BAD_TYPE, Reason.MISSING_FIELD):
        if looks := hint(value):
            detail = f"{detail}; it looks like {looks}"
        elif f"got `float` - at `$.{time_field}" in detail:
            detail += "; Unix milliseconds are whole numbers"
    elif reason is Reason.BAD_TIMESTAMP and _QUOTED.search(value):
        detail += "; a number of milliseconds goes without quotes"
    return reason, detail


def _explain(error: Exception, time_field: str) -> tuple[Reason, str]:
    text = str(error)
    if isinstance(error, RecursionError):
        return Reason.TOO_DEEP, "the JSON is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return Reason.INVALID_UTF8, "a string is not valid UTF-8"
    if isinstance(error, msgspec.ValidationError):
        if "missing required field" in text:
            return Reason.MISSING_FIELD, text
        if "of length" in text:
            return Reason.INVALID_ID, text
        if f"$.{time_field}" in text and " got " not in text:
            return Reason.BAD_TIMESTAMP, text
        return Reason.BAD_TYPE, text
    if isinstance(error, msgspec.DecodeError):
        return Reason.MALFORMED_JSON, text
    return Reason.BAD_TIMESTAMP, f"{time_field} cannot be represented"
