"""What is said about a model comes back, and headers that say nothing are refused."""

from __future__ import annotations

import pytest

from stream_app.errors import RecordFormatError
from stream_app.learning.models_record import Description, description

SAID = Description(17, 12_345, 3.25, 1_700_000_000_000, {0: 5, 3: 1 << 40})


def test_headers_come_back() -> None:
    assert description(SAID.headers()) == SAID
    assert description(Description(1, 0, 0.0, 1).headers()).positions == {}


@pytest.mark.parametrize("name", ["version", "steps", "loss", "created_at", "positions"])
@pytest.mark.parametrize(
    "value", [None, b"", b"x", b"-1", b"nan", b"9" * 5000, b"\xff", b"[]", b'{"a":1}', b"{"]
)
def test_headers_that_say_nothing_are_refused(name: str, value: bytes | None) -> None:
    headers = [(n, v) for n, v in SAID.headers() if n != name]
    if value is not None:
        headers.append((name, value))
    with pytest.raises(RecordFormatError):
        description(headers)


@pytest.mark.parametrize("value", [b'{"-1":3}', b'{"1":-3}', b'{"1":1e3}', b'{"1":99999999999999999999}'])
def test_positions_out_of_range_are_refused(value: bytes) -> None:
    with pytest.raises(RecordFormatError):
        description([(n, value if n == "positions" else v) for n, v in SAID.headers()])
