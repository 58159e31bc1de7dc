"""Impressions: what fits becomes a list, whatever does not has a reason, and nothing raises."""

from __future__ import annotations

import json
import random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.events.impressions import ImpressionDecoder, ShownList
from stream_app.events.reasons import Reason
from stream_app.hashing import key64
from stream_app.settings import Settings
from tests.events.malformed import KINDS

NOW = 1_700_000_000_000
DECODER = ImpressionDecoder(Settings())


def decode(key: bytes | None = b"u", arrival: int = NOW, **fields: object) -> ShownList | Reason:
    tree = {"user_id": "u", "items": ["a", "b"], **fields}
    return DECODER.decode(key, json.dumps({k: v for k, v in tree.items() if v != "gone"}).encode(), arrival)


def test_ids_alone_stand_in_their_order() -> None:
    shown = decode(items=["b", "a", "b"], other={"ignored": [1]})
    assert isinstance(shown, ShownList)
    assert (shown.user, shown.time, shown.of_slate) == (b"u", NOW, False)
    assert shown.keys.tolist() == [key64("b"), key64("a")]
    assert shown.positions.tolist() == [0, 1]


def test_positions_time_and_slate_are_what_is_said() -> None:
    items = [{"content_id": "é", "position": 7}, "b", {"content_id": "c"}]
    shown = decode(items=items, shown_at="2023-11-14T22:00:00+01:00", slate_id="x")
    assert isinstance(shown, ShownList)
    assert shown.time == 1_699_995_600_000
    assert shown.positions.tolist() == [7, 1, 2]
    assert shown.keys.tolist() == [key64("é"), key64("b"), key64("c")]
    assert shown.of_slate
    again = decode(items=items, shown_at=1_699_995_600_000)
    assert isinstance(again, ShownList)
    assert again.time == shown.time


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"items": "gone"}, Reason.MISSING_FIELD),
        ({"user_id": "gone"}, Reason.MISSING_FIELD),
        ({"items": []}, Reason.MISSING_FIELD),
        ({"items": ["x"] * 65}, Reason.OVERSIZED),
        ({"other": "x" * 70_000}, Reason.OVERSIZED),
        ({"items": "a"}, Reason.BAD_TYPE),
        ({"items": [1]}, Reason.BAD_TYPE),
        ({"items": [{"content_id": "a", "position": -1}]}, Reason.BAD_TYPE),
        ({"items": [{"content_id": "a", "position": 65_536}]}, Reason.BAD_TYPE),
        ({"items": [{"content_id": ""}]}, Reason.INVALID_ID),
        ({"items": [""]}, Reason.INVALID_ID),
        ({"items": ["a\n"]}, Reason.INVALID_ID),
        ({"items": ["x" * 257]}, Reason.INVALID_ID),
        ({"slate_id": "x" * 257}, Reason.INVALID_ID),
        ({"user_id": "v"}, Reason.KEY_MISMATCH),
        ({"shown_at": NOW + 300_001}, Reason.TIMESTAMP_IN_FUTURE),
        ({"shown_at": 10**40}, Reason.TIMESTAMP_IN_FUTURE),
        ({"shown_at": NOW // 1000}, Reason.TOO_OLD),
        ({"shown_at": -(10**40)}, Reason.TOO_OLD),
        ({"shown_at": 1.5}, Reason.BAD_TYPE),
        ({"shown_at": True}, Reason.BAD_TYPE),
        ({"shown_at": "2023-11-14T22:00:00"}, Reason.BAD_TIMESTAMP),
    ],
)
def test_what_does_not_fit_has_its_reason(fields: dict[str, object], reason: Reason) -> None:
    assert decode(**fields) is reason


@pytest.mark.parametrize("reason", [r for r in KINDS if r not in (Reason.MALFORMED_JSON, Reason.BAD_TYPE)])
def test_no_malformed_event_is_an_impression(reason: Reason) -> None:
    rng = random.Random(3)  # a test's variety, no secret
    for _ in range(20):
        value = KINDS[reason](rng, NOW)
        assert isinstance(DECODER.decode(b"u1", value, NOW), Reason)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | st.none(), st.binary(max_size=200) | st.none(), st.integers(-(2**63), 2**63))
def test_bytes_never_raise(key: bytes | None, value: bytes | None, arrival: int) -> None:
    assert isinstance(DECODER.decode(key, value, arrival), Reason)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
ITEM = VALUES | st.text(max_size=3) | st.fixed_dictionaries({"content_id": st.text(max_size=3) | VALUES})


@settings(max_examples=100, deadline=None)
@given(st.lists(ITEM, max_size=70) | VALUES, VALUES, VALUES | st.integers(NOW - 10**9, NOW))
def test_json_of_any_kind_is_a_bounded_list_or_has_a_reason(
    items: object, slate: object, shown_at: object
) -> None:
    value = msgspec.json.encode({"user_id": "u", "items": items, "slate_id": slate, "shown_at": shown_at})
    shown = DECODER.decode(b"u", value, NOW)
    if isinstance(shown, ShownList):
        assert 0 < len(shown.keys) == len(shown.positions) <= 64
        assert len(np.unique(shown.keys)) == len(shown.keys)
        assert shown.time <= NOW + 300_000
    else:
        assert isinstance(shown, Reason)


FAR = 7_000_000_000_000  # 2191


def test_no_showing_is_later_than_now_whatever_the_kafka_timestamp_says() -> None:
    decoder = ImpressionDecoder(Settings(), lambda: NOW)

    def shown(**fields: object) -> ShownList | Reason:
        value = json.dumps({"user_id": "u", "items": ["a"], **fields}).encode()
        return decoder.decode(b"u", value, FAR)

    assert shown() is Reason.TIMESTAMP_IN_FUTURE
    assert shown(shown_at=FAR) is Reason.TIMESTAMP_IN_FUTURE
    taken = shown(shown_at=NOW)
    assert isinstance(taken, ShownList)
    assert taken.time == NOW


@pytest.mark.parametrize("items", ['["x\\ud83d"]', '[{"content_id":"x\\ud83d"}]'])
def test_half_an_emoji_in_a_content_id_is_refused_and_elsewhere_replaced(items: str) -> None:
    value = '{"user_id":"u","items":%s}'
    assert DECODER.decode(b"u", (value % items).encode(), NOW) is Reason.INVALID_ID
    other = '{"user_id":"u","items":["x"],"place":"\\ud83d","shown_at":%d.0}' % NOW  # noqa: UP031
    assert isinstance(DECODER.decode(b"u", other.encode(), NOW), ShownList)
