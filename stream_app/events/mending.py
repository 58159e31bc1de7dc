"""The slow path of reading JSON: what a strict decoder refuses although it is plain what was meant.

- Half a surrogate pair (``"\\ud83d"``, left by who cuts a text in the middle of an emoji) is U+FFFD.
  Not in an id: two different ids must not become one, so there it is a fault.
- ``1780000000000.0`` and ``1.78e12`` are whole numbers: JSON knows one kind of number.
- A leap second (``23:59:60Z``) is a time of RFC 3339: it counts as the second after it.
- A byte order mark before the JSON says nothing.

Only what failed comes here: what is read at once costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from stream_app.events.faults import UnfitError
from stream_app.events.reasons import Reason

MARK = b"\xef\xbb\xbf"
MAX_DIGITS = 30
"""Of a whole number: what is longer than any 64-bit number is left as it stands."""

_SURROGATE = re.compile(
    rb"(\\u[dD][89aAbB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.",
    re.DOTALL,
)
_NUMBER = re.compile(
    rb'"(?:[^"\\]|\\.)*"|'
    rb"(?<![0-9A-Za-z.+-])(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]{1,4}))?(?![0-9A-Za-z.+-])",
    re.DOTALL,
)
_LEAP = re.compile(rb'("[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}):60(?:\.[0-9]+)?([Zz+-][0-9:]*")')

T = TypeVar("T")


def read_mended(read: Callable[[bytes], T], value: bytes, error: Exception, ids: Sequence[str]) -> T:
    """The message that ``value`` holds once it is mended; ``error`` is why ``read`` refused it as it came.

    ``ids``: fields in which nothing may be replaced. Raises UnfitError for those, ``error`` where there is
    nothing to mend, or one of DECODING_ERRORS for what is wrong beside it.
    """
    mended = _NUMBER.sub(_whole, value.removeprefix(MARK))
    whole = _SURROGATE.sub(_replaced, mended)
    if whole == value and not _is_moment(error):
        raise error
    try:
        message = read(whole)
    except msgspec.ValidationError as other:
        if not _is_moment(other):
            raise
        # rounds to the first millisecond of the next second
        mended = _LEAP.sub(rb"\1:59.999999\2", mended)
        message = read(whole := _SURROGATE.sub(_replaced, mended))
    if whole != mended:
        without = read(_SURROGATE.sub(_left_out, mended))
        for field in ids:
            if getattr(message, field) != getattr(without, field):
                raise UnfitError(Reason.INVALID_ID, f"{field} has half a surrogate pair")
    return message


def _is_moment(error: Exception) -> bool:
    """Whether a text is no time of RFC 3339."""
    return "RFC3339" in str(error)


def _replaced(escape: re.Match[bytes]) -> bytes:
    return rb"\ufffd" if escape[2] else escape[0]


def _left_out(escape: re.Match[bytes]) -> bytes:
    return b"" if escape[2] else escape[0]


def _whole(token: re.Match[bytes]) -> bytes:
    """A number with a point or an exponent that is a whole one after all; anything else as it stands."""
    sign, digits, fraction, exponent = token.groups()
    if digits is None or (fraction is None and exponent is None):
        return token[0]
    digits += fraction or b""
    shift = int(exponent or 0) - len(fraction or b"")
    if shift < 0:
        digits, rest = digits[:shift], digits[shift:]
        if rest.strip(b"0"):
            return token[0]
    elif len(digits.lstrip(b"0")) + shift > MAX_DIGITS:
        return token[0]
    else:
        digits += b"0" * shift
    digits = digits.lstrip(b"0") or b"0"
    return sign + digits if len(digits) <= MAX_DIGITS else token[0]
