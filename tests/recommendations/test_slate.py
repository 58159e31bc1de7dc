"""The slate message and its identity."""

from __future__ import annotations

import json
import re
import time

import msgspec
import pytest

from stream_app.interests import record
from stream_app.ranking.ranked import Item, Parts, Ranked, Reason
from stream_app.recommendations.readable import Titles, heading, lines
from stream_app.recommendations.slate import (
    Cause,
    Slate,
    SlateMaker,
    decode,
    encode,
    fingerprint,
    milliseconds,
    rfc3339,
)
from tests.ranking import ranking_world as world


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
        "arm": "",
        "ranker": "blend",
        "slate_id": "",
    }
    assert decode(encode(slate("a"))) == slate("a")
    assert json.loads(encode(msgspec.structs.replace(slate(), caused_by=None)))["caused_by"] is None


def test_another_kind_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(encode(slate()).replace(b'"personal"', b'"guessed"'))


def test_the_fingerprint_is_the_ordered_content_ids() -> None:
    assert fingerprint(slate("a", "b").items) == fingerprint(slate("a", "b", score=0.3, user="v").items)
    different = [("a", "b"), ("b", "a"), ("a",), ("ab",), ("a", "b", "c"), ()]
    assert len({fingerprint(slate(*c).items) for c in different}) == len(different)


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


def ranked(action: str = "share") -> Ranked:
    config = world.settings()
    index = world.filled_index(config, 3)
    value = world.interest_record(
        config, index, [world.Engagement(world.content_id(1), world.NOW, 3.0, action)]
    )
    return Ranked(b"u", record.decode(value), "personal", slate("a", "b").items)


def test_a_slate_names_the_event_applied_last() -> None:
    made = SlateMaker(world.settings(kafka={"topic_prefix": "x."}), "m").slate(ranked())
    assert made == msgspec.structs.replace(
        slate("a", "b"),
        generated_at=made.generated_at,
        slate_id=made.slate_id,
        caused_by=Cause("x.shares", 1, 42, "2023-11-14T22:13:20.000Z", "2023-11-14T22:13:20.005Z"),
    )
    assert abs(milliseconds(made.generated_at) - time.time() * 1000) < 60_000


def test_a_slate_is_named_by_user_time_and_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = SlateMaker(world.settings(), "m")
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_123_456_789)
    base = Ranked(b"u", None, "personal", slate("a", "b").items)
    named = maker.slate(base).slate_id
    assert re.fullmatch("[0-9a-f]{16}", named)
    assert maker.slate(base).slate_id == named
    others = [Ranked(b"v", None, "personal", base.items), Ranked(b"u", None, "personal", base.items[::-1])]
    names = {named, *(maker.slate(other).slate_id for other in others)}
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_124_456_789)
    assert len({*names, maker.slate(base).slate_id}) == 4


def test_a_slate_without_an_event_or_with_one_of_a_former_action_names_no_cause() -> None:
    maker = SlateMaker(world.settings(), "m")
    assert maker.slate(Ranked(b"u", None, "cold_start", [])).caused_by is None
    assert maker.slate(ranked("waved_at")).caused_by is None


def test_what_a_learned_slate_shows_is_what_its_ranker_weighed() -> None:
    parts = Parts(0.2, -3.0, 1.5, 0.0, together=0.4, habit=0.1, bend=-0.5)
    nothing = Parts(-1.0, -1.0, -1.0, -1.0)
    made = msgspec.structs.replace(
        slate("a"), items=[Item("a", -1.3, parts, []), Item("b", -4.0, nothing, [])], ranker="learned-17"
    )
    assert decode(encode(made)) == made
    assert lines(made, Titles()) == [
        "  1. a  -1.300  (popularity +1.50, together +0.40, interest +0.20)",
        "  2. b  -4.000",
    ]
    assert "personal by learned-17" in heading(made)
    blended = msgspec.structs.replace(made, ranker="blend")
    assert lines(blended, Titles())[0] == "  1. a  -1.300"
    assert "blend" not in heading(blended)


def test_a_slate_without_arm_and_ranker_is_one_of_the_blend() -> None:
    message = json.loads(encode(slate("a")))
    del message["arm"], message["ranker"], message["slate_id"]
    assert decode(json.dumps(message).encode()) == slate("a")
