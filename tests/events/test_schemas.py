"""The decoders accept what the published schemas accept, and the other way round.

Records are made from the schemas themselves. What no schema can say stands in ``docs/RELIABILITY.md``: the
bytes of an id, the size of a record, the key, and times that are later than the record.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from stream_app.content.schema import ContentDecoder
from stream_app.docs.contracts import schema
from stream_app.events.decode import EventDecoder
from stream_app.events.faults import UnfitError
from stream_app.events.impressions import ImpressionDecoder
from stream_app.events.reasons import Reason
from stream_app.events.times import EARLIEST_MS, LATEST_MS
from stream_app.interests.erasure import ErasurePreparation
from stream_app.settings import Settings
from tests.events.from_schema import values, written

SETTINGS = Settings()
EVENTS = EventDecoder(SETTINGS)
CONTENTS = ContentDecoder(SETTINGS, lambda: LATEST_MS)
IMPRESSIONS = ImpressionDecoder(SETTINGS, lambda: LATEST_MS)
ERASURES = ErasurePreparation(SETTINGS)
SCHEMAS = {name: json.loads(schema(name)) for name in ("event", "content", "impression", "erasure")}
VALID = {name: jsonschema.Draft202012Validator(tree).is_valid for name, tree in SCHEMAS.items()}


def record(key: str | None, value: bytes) -> Any:
    """One whose own time is later than any that a schema takes."""
    encoded = None if key is None else key.encode(errors="replace")
    return SimpleNamespace(key=encoded, value=value, timestamp=LATEST_MS, offset=1, headers=())


def event(tree: dict[str, Any], value: bytes) -> str:
    batch = EVENTS.decode([record(str(tree.get("user_id")), value)], "likes", 0, None, LATEST_MS)
    return batch.rejected[0].detail if batch.rejected else ""


def content(tree: dict[str, Any], value: bytes) -> str:
    decoded = CONTENTS.decode([record(str(tree.get("content_id") or "key"), value)])
    return decoded.rejected[0].detail if decoded.rejected else ""


def impression(tree: dict[str, Any], value: bytes) -> str:
    decoded = IMPRESSIONS.decode(str(tree.get("user_id")).encode(errors="replace"), value, LATEST_MS)
    return decoded.value if isinstance(decoded, Reason) else ""


def erasure(tree: dict[str, Any], value: bytes) -> str:
    try:
        ERASURES.request(record(str(tree.get("user_id")), value), LATEST_MS)
    except UnfitError as fault:
        return fault.detail
    return ""


DECODERS: dict[str, Callable[[dict[str, Any], bytes], str]] = {
    "event": event,
    "content": content,
    "impression": impression,
    "erasure": erasure,
}
"""Message → what is wrong with it, as its decoder says; empty when it is accepted."""

bounded = settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", DECODERS)
def test_what_a_schema_accepts_is_accepted(name: str) -> None:
    tree = SCHEMAS[name]

    @seed(15)
    @bounded
    @given(values(tree, tree.get("$defs", {})), st.booleans())
    def accepted(message: dict[str, Any], ascii_only: bool) -> None:
        value = written(message, ascii_only=ascii_only)
        assert VALID[name](json.loads(value)), value  # the generator keeps to the schema
        assert DECODERS[name](message, value) == "", value

    accepted()


POOL = [
    *(None, True, False, 0, 1, -1, 1.5, 2.0, EARLIEST_MS, EARLIEST_MS - 1, LATEST_MS, LATEST_MS + 1, 10**30),
    *("", "u", "é", "\x00", "a\n", "\x7f", "\x85", "x" * 256, "x" * 257, "2026-01-01T00:00:00Z", [], {}),
    *(["u"], [""], ["a\t"], [{"content_id": "c"}], [{"content_id": ""}], [{"position": 1}], ["u"] * 65),
    *(
        [{"content_id": "c", "position": 65_536}],
        [{"content_id": "c", "position": 3.0}],
        [1],
        "1780000000000",
    ),
]
"""What may stand in any field."""


@pytest.mark.parametrize("name", DECODERS)
def test_a_schema_accepts_exactly_what_is_accepted(name: str) -> None:
    base = {"user_id": "u", "content_id": "c", "items": ["c"], "title": "t"}
    fields = SCHEMAS[name]["properties"]
    own = {field: value for field, value in base.items() if field in fields}
    cases = [own, *({k: v for k, v in own.items() if k != field} for field in own)]
    cases += [{**own, field: value} for field in fields for value in POOL]
    for case in cases:
        refused = DECODERS[name](case, json.dumps(case).encode())
        # without a library for it, a validator takes any text of the right years for a date-time
        no_moment = "RFC3339" in refused
        assert no_moment or VALID[name](case) == (not refused), (case, refused)
