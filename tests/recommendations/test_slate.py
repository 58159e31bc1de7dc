"""The slate message and its identity."""

from __future__ import annotations

import json

import msgspec
import pytest

from stream_app.recommendations.slate import (
    Cause,
    Item,
    Parts,
    Reason,
    Slate,
    decode,
    encode,
    fingerprint,
    milliseconds,
    rfc3339,
)


def slate(*contents: str, score: float = 1.0, user: str = "u") -> Slate:
    parts = Parts(score, 0.0, 0.0, 0.0)
    return Slate(
        user,
        "2024-01-01T00:00:00.000Z",
        "m",
        Cause("likes", 2, 17, "2024-01-01T00:00:00.000Z", "2024-01-01T00:00:00.005Z"),
        "personal",
        [Item(c, score, parts, [Reason("x", "like", 0.5)]) for c in contents],
    )


def test_the_json_is_the_documented_one_and_comes_back() -> None:
    message = json.loads(encode(slate("a")))
    assert message == {
        "user_id": "u",
        "generated_at": "2024-01-01T00:00:00.000Z",
        "model": "m",
        "caused_by": {
            "topic": "likes",
            "partition": 2,
            "offset": 17,
            "occurred_at": "2024-01-01T00:00:00.000Z",
            "received_at": "2024-01-01T00:00:00.005Z",
        },
        "kind": "personal",
        "items": [
            {
                "content_id": "a",
                "score": 1.0,
                "parts": {"interest": 1.0, "recency": 0.0, "popularity": 0.0, "match": 0.0},
                "reasons": [{"content_id": "x", "action": "like", "share": 0.5}],
            }
        ],
    }
    assert decode(encode(slate("a"))) == slate("a")
    assert json.loads(encode(msgspec.structs.replace(slate(), caused_by=None)))["caused_by"] is None


def test_another_kind_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(encode(slate()).replace(b'"personal"', b'"guessed"'))


def test_the_fingerprint_is_the_ordered_content_ids() -> None:
    assert fingerprint(slate("a", "b")) == fingerprint(slate("a", "b", score=0.3, user="v"))
    different = [("a", "b"), ("b", "a"), ("a",), ("ab",), ("a", "b", "c"), ()]
    assert len({fingerprint(slate(*c)) for c in different}) == len(different)


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000_007, "2023-11-14T22:13:20.007Z"),
        (-1, "1970-01-01T00:00:00.000Z"),
        (2**63 - 1, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_rfc_3339_in_utc(ms: int, text: str) -> None:
    assert rfc3339(ms) == text
    if 0 <= ms < 2**53:
        assert milliseconds(text) == ms
