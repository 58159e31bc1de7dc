"""Decoding: good events become columns, every bad one gets its reason, and nothing ever raises."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.events.dead_letters import origin_of, retry
from stream_app.events.decode import DecodedBatch, EventDecoder
from stream_app.events.reasons import Reason
from stream_app.hashing import action_code, action_mask, key64
from stream_app.settings import Settings, build
from tests.events.malformed import malformed

NOW = 1_780_000_000_000
DAY = 86_400_000
DECODER = EventDecoder(Settings())


@dataclass(slots=True)
class Consumed:
    """The attributes of a consumed record that are used."""

    key: bytes | None
    value: bytes | None
    offset: int = 0
    timestamp: int = NOW
    headers: tuple[tuple[str, bytes | None], ...] = ()


def event(**fields: Any) -> bytes:
    return json.dumps({"user_id": "u1", "content_id": "c1", **fields}).encode()


def good(offset: int = 0) -> Consumed:
    return Consumed(b"u1", event(event_id=f"e{offset}", occurred_at=NOW - 1000 + offset), offset)


def decode(*records: Consumed, topic: str = "likes", stream_time: int | None = None) -> DecodedBatch:
    return DECODER.decode(records, topic, 3, stream_time)


def reason_of(value: bytes | None, key: bytes | None = b"u1", stream_time: int | None = None) -> Reason:
    """The reason of one bad value between two good ones, which must both be accepted."""
    batch = decode(good(0), Consumed(key, value, 1), good(2), stream_time=stream_time)
    assert batch.source.tolist() == [0, 2]
    (rejected,) = batch.rejected
    assert rejected.index == 1
    assert 0 < len(rejected.detail) <= 200
    return rejected.reason


def key_of(name: str, action: str) -> int:
    return key64(name) ^ action_mask(action_code(action))


def test_all_columns_of_a_full_event() -> None:
    record = Consumed(
        b"\xc3\xbc", event(user_id="ü", event_id="e", occurred_at=NOW - 5, undo=True, text="hi"), 7
    )
    batch = decode(record, topic="comments")
    assert batch.source.tolist() == [0]
    assert batch.users == ["ü".encode()]
    assert batch.contents == [b"c1"]
    assert batch.actions.tolist() == [1]
    assert batch.events.tolist() == [key_of("e", "comment")]
    assert batch.named.tolist() == [True]
    assert batch.times.tolist() == [NOW - 5]
    assert batch.undo.tolist() == [True]
    assert batch.received.tolist() == [NOW]
    assert batch.rejected == []


def test_defaults_of_a_bare_event() -> None:
    batch = decode(Consumed(b"u1", event(likes_cats=[1, {"x": None}]), 41), topic="shares")
    assert batch.actions.tolist() == [2]
    assert batch.events.tolist() == [key_of(f"shares-3-41-{NOW}", "share")]
    assert batch.named.tolist() == [False]
    assert batch.times.tolist() == [NOW]
    assert batch.undo.tolist() == [False]


def test_an_offset_that_comes_again_is_another_event() -> None:
    """A topic that was deleted and created again counts from 0 once more."""
    before, after = (decode(Consumed(b"u1", event(), 41, timestamp=NOW + t)) for t in (0, 1))
    assert before.events.tolist() != after.events.tolist()


def test_null_counts_as_missing() -> None:
    batch = decode(Consumed(b"u1", event(event_id=None, occurred_at=None, undo=None, text=None), 9))
    assert batch.times.tolist() == [NOW]
    assert batch.events.tolist() == [key_of(f"likes-3-9-{NOW}", "like")]


def test_the_same_id_on_two_actions_is_two_events() -> None:
    likes, shares = (decode(Consumed(b"u1", event(event_id="e")), topic=t) for t in ("likes", "shares"))
    assert likes.events.tolist() != shares.events.tolist()


@pytest.mark.parametrize("name", ["", None])
def test_an_empty_id_is_none(name: str | None) -> None:
    batch = decode(Consumed(b"u1", event(event_id=name), 9))
    assert batch.events.tolist() == [key_of(f"likes-3-9-{NOW}", "like")]
    assert batch.named.tolist() == [False]


@pytest.mark.parametrize(
    ("literal", "time"),
    [
        (f"{NOW}.0", NOW),
        (f"{NOW}.000", NOW),
        ("1.78e12", NOW),
        ("1.78E+12", NOW),
        ("17800e8", NOW),
        ("178000000000000000e-5", NOW),
        ("0.000178e16", NOW),
        ('"2026-05-28T20:26:40Z"', NOW),
        ('"2016-12-31T23:59:60Z"', 1_483_228_800_000),
        ('"2016-12-31T23:59:60.5+00:00"', 1_483_228_800_000),
    ],
)
def test_whole_numbers_and_leap_seconds_are_times(literal: str, time: int) -> None:
    value = f'{{"user_id":"u1","content_id":"c1","other":1.5,"occurred_at":{literal}}}'
    assert decode(Consumed(b"u1", value.encode())).times.tolist() == [time]


@pytest.mark.parametrize(
    "literal", ["1.5", "1.78e-3", "1e999", "-1e400", "1e99999999999", "1780000000000.5", "1e31", "5e-324"]
)
def test_other_numbers_are_refused_by_name(literal: str) -> None:
    value = f'{{"user_id":"u1","content_id":"c1","occurred_at":{literal}}}'
    (rejected,) = decode(Consumed(b"u1", value.encode())).rejected
    assert rejected.reason in (Reason.BAD_TYPE, Reason.BAD_TIMESTAMP, Reason.TIMESTAMP_IN_FUTURE)
    assert "occurred_at" in rejected.detail


def test_half_an_emoji_costs_no_record_and_a_byte_order_mark_neither() -> None:
    good_ones = [
        b'{"user_id":"u1","content_id":"c1","text":"ha \\ud83d"}',
        b'{"user_id":"u1","content_id":"c1","text":"\\ude00 ha"}',
        b'{"user_id":"u1","content_id":"c1","text":"\\\\ud83d \\ud83d\\ude00 \\ud83d"}',
        b'{"user_id":"u1","content_id":"c1","other":{"\\uD83D":["\\udfff"]}}',
        b'\xef\xbb\xbf{"user_id":"u1","content_id":"c1"}',
    ]
    batch = decode(*(Consumed(b"u1", value, n) for n, value in enumerate(good_ones)))
    assert not batch.rejected


@pytest.mark.parametrize("field", ["user_id", "content_id", "event_id"])
def test_half_a_pair_in_an_id_is_refused_for_two_ids_must_not_become_one(field: str) -> None:
    fields = {"user_id": "u1", "content_id": "c1", "event_id": "e", "text": "\ufffd", field: "x\ud83d"}
    (rejected,) = decode(Consumed("x\ufffd".encode(), json.dumps(fields).encode())).rejected
    assert (rejected.reason, rejected.detail) == (Reason.INVALID_ID, f"{field} has half a surrogate pair")


def test_a_replacement_character_in_an_id_is_one_like_any_other() -> None:
    value = '{"user_id":"x\ufffd","content_id":"c1","text":"\\ud83d"}'.encode()
    assert not decode(Consumed("x\ufffd".encode(), value)).rejected


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (gzip.compress(event()), "gzip"),
        (b"\x28\xb5\x2f\xfd" + event(), "zstd"),
        (b"\0\0\0\0\7" + event(), "Schema Registry"),
        (b"\0\0\0\0\7\x04u1\x04c1", "Schema Registry"),
        (b"Obj\x01" + event(), "Avro"),
        (b"\n\x02u1\x12\x02c1", "Protobuf"),
        (json.dumps(event().decode()).encode(), "twice"),
        (event().decode().encode("utf-16"), "UTF-16"),
        (event().decode().encode("utf-16-be"), "UTF-16"),
        (event().decode().encode("utf-16-le"), "UTF-16"),
        (b"[" + event() + b"]", "array"),
        (b'{"schema":null,"payload":' + event() + b"}", "envelope"),
        (event(occurred_at=NOW * 1000), "microseconds"),
        (event(occurred_at=NOW * 1_000_000), "nanoseconds"),
        (event(occurred_at=NOW // 1000), "; it looks like seconds"),
        (event(occurred_at=NOW / 1000 + 0.5), "whole numbers"),
        (event(occurred_at=str(NOW)), "without quotes"),
    ],
)
def test_a_refused_value_says_what_it_looks_like_and_nothing_that_it_holds(value: bytes, word: str) -> None:
    (rejected,) = decode(Consumed(b"u1", value)).rejected
    assert word in rejected.detail
    assert len(rejected.detail) <= 200
    assert "u1" not in rejected.detail


FAR = 7_000_000_000_000  # 2191


@pytest.mark.parametrize("arrival", [NOW, FAR])
def test_no_time_later_than_now_is_taken_whatever_the_kafka_timestamp_says(arrival: int) -> None:
    records = [
        Consumed(b"u1", event(occurred_at=NOW + 300_000), 0, arrival),
        Consumed(b"u1", event(occurred_at=NOW + 300_001), 1, arrival),
        Consumed(b"u1", event(occurred_at=FAR), 2, arrival),
        Consumed(b"u1", event(), 3, arrival),
    ]
    batch = DECODER.decode(records, "likes", 3, None, NOW)
    assert batch.times.max() <= NOW + 300_000
    assert batch.received.max() <= NOW
    assert [r.index for r in batch.rejected] == ([1, 2] if arrival == NOW else [1, 2, 3])
    assert {r.reason for r in batch.rejected} == {Reason.TIMESTAMP_IN_FUTURE}


def test_dtypes_hold_for_an_empty_batch() -> None:
    batch = decode()
    assert [a.dtype for a in (batch.source, batch.actions, batch.times, batch.received)] == [np.int64] * 4
    assert [a.dtype.str for a in (batch.events, batch.named, batch.undo)] == ["<u8", "|b1", "|b1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-05-28T12:00:00Z", datetime(2026, 5, 28, 12, tzinfo=UTC)),
        ("2026-05-28t12:00:00.123456z", datetime(2026, 5, 28, 12, 0, 0, 123_000, tzinfo=UTC)),
        ("2026-05-28T12:00:00+05:30", datetime(2026, 5, 28, 6, 30, tzinfo=UTC)),
        ("2026-05-28T01:00:00-11:00", datetime(2026, 5, 28, 12, tzinfo=UTC)),
    ],
)
def test_rfc_3339(text: str, expected: datetime) -> None:
    batch = decode(Consumed(b"u1", event(occurred_at=text)))
    assert batch.times.tolist() == [round(expected.timestamp() * 1000)]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, Reason.EMPTY),
        (b"", Reason.EMPTY),
        (b" " * 70_000, Reason.OVERSIZED),
        (event(text="x" * 10_000_000), Reason.OVERSIZED),
        (b"{", Reason.MALFORMED_JSON),
        (event()[:-5], Reason.MALFORMED_JSON),
        (event() + b"x", Reason.MALFORMED_JSON),
        (b'{"user_id":"u1","content_id":"c1","x":00.0}', Reason.MALFORMED_JSON),
        (event(occurred_at=float("nan")), Reason.MALFORMED_JSON),
        (event(other=float("inf")), Reason.MALFORMED_JSON),
        (b'{"user_id":"u1","content_id":"\\ud800"}', Reason.INVALID_ID),
        (b'{"user_id":"u1","content_id":"\xff"}', Reason.INVALID_UTF8),
        (b'{"user_id":"u1","content_id":"c","other":"\xc3("}', Reason.INVALID_UTF8),
        (b'{"user_id":"u1","content_id":"\xed\xa0\x80"}', Reason.INVALID_UTF8),
        (b'{"a":' * 12_000, Reason.TOO_DEEP),
        (b'{"user_id":"u1","a":' + b"[" * 60_000, Reason.TOO_DEEP),
        (b'{"user_id":"u1"}', Reason.MISSING_FIELD),
        (b'{"content_id":"c1"}', Reason.MISSING_FIELD),
        (b"{}", Reason.MISSING_FIELD),
        (b"null", Reason.BAD_TYPE),
        (b"[]", Reason.BAD_TYPE),
        (b"[" * 60_000, Reason.BAD_TYPE),
        (event(user_id=1), Reason.BAD_TYPE),
        (event(content_id=None), Reason.BAD_TYPE),
        (event(event_id=5), Reason.BAD_TYPE),
        (event(undo="yes"), Reason.BAD_TYPE),
        (event(text=["x"]), Reason.BAD_TYPE),
        (event(occurred_at=True), Reason.BAD_TYPE),
        (event(occurred_at=1.5), Reason.BAD_TYPE),
        (event(user_id=""), Reason.INVALID_ID),
        (event(content_id=""), Reason.INVALID_ID),
        (event(content_id="a\x00b"), Reason.INVALID_ID),
        (event(content_id="a\x85b"), Reason.INVALID_ID),
        (event(event_id="line\nbreak"), Reason.INVALID_ID),
        (event(content_id="x" * 257), Reason.INVALID_ID),
        (event(content_id="é" * 129), Reason.INVALID_ID),
        (event(event_id="x" * 257), Reason.INVALID_ID),
        (event(occurred_at="yesterday"), Reason.BAD_TIMESTAMP),
        (event(occurred_at="2026-05-28T12:00:00"), Reason.BAD_TIMESTAMP),
        (event(occurred_at="2026-02-30T12:00:00Z"), Reason.BAD_TIMESTAMP),
        (event(occurred_at=10**30), Reason.BAD_TIMESTAMP),
        (event(occurred_at=-(10**30)), Reason.BAD_TIMESTAMP),
        (b'{"user_id":"u1","content_id":"c1","occurred_at":' + b"9" * 60_000 + b"}", Reason.BAD_TIMESTAMP),
        (b'{"user_id":"u1","content_id":"c1","occurred_at":1e999}', Reason.BAD_TIMESTAMP),
        (event(occurred_at=NOW + 300_001), Reason.TIMESTAMP_IN_FUTURE),
        (event(occurred_at=2**63 - 1), Reason.TIMESTAMP_IN_FUTURE),
        (event(occurred_at="9999-12-31T23:59:59-23:59"), Reason.TIMESTAMP_IN_FUTURE),
        (event(occurred_at=NOW // 1000), Reason.TOO_OLD),
        (event(occurred_at=-1), Reason.TOO_OLD),
        (event(occurred_at="0001-01-01T00:00:00+23:59"), Reason.TOO_OLD),
        (event(occurred_at="1999-12-31T23:59:59Z"), Reason.TOO_OLD),
    ],
)
def test_every_fault_has_its_reason_and_spares_its_neighbours(value: bytes | None, reason: Reason) -> None:
    assert reason_of(value) is reason


@pytest.mark.parametrize("key", [None, b"", b"u", b"U1", b"\xff"])
def test_a_record_under_another_key_or_none_is_the_users_whom_it_names(key: bytes | None) -> None:
    batch = decode(Consumed(key, event()))
    assert batch.rejected == []
    assert batch.users == [b"u1"]


def test_reserved_users_cannot_be_named() -> None:
    assert reason_of(event(user_id="\x00cold-start"), b"\x00cold-start") is Reason.INVALID_ID


def test_limits_are_inclusive() -> None:
    stream_time = NOW - 1
    oldest = stream_time - 400 * DAY
    values = [event(occurred_at=oldest), event(occurred_at=NOW + 300_000), event(content_id="x" * 256)]
    batch = decode(*(Consumed(b"u1", v) for v in values), stream_time=stream_time)
    assert batch.rejected == []
    assert reason_of(event(occurred_at=oldest - 1), stream_time=stream_time) is Reason.TOO_OLD


def test_nothing_is_too_old_before_there_is_stream_time() -> None:
    batch = decode(Consumed(b"u1", event(occurred_at="2001-01-01T00:00:00Z")))
    assert len(batch.source) == 1


@pytest.mark.parametrize("timestamp", [-1, 0])
def test_without_any_time_the_event_is_refused(timestamp: int) -> None:
    batch = decode(Consumed(b"u1", event(), timestamp=timestamp))
    assert [r.reason for r in batch.rejected] == [Reason.BAD_TIMESTAMP]


def test_ids_of_any_language_are_taken() -> None:
    names = ["名前", "משתמש", "a b", "\u00a0", "👩‍👧", "ﷺ"]
    records = [Consumed(n.encode(), event(user_id=n, content_id=n, event_id=n)) for n in names]
    batch = decode(*records)
    assert batch.users == batch.contents == [n.encode() for n in names]


def test_details_never_show_user_data() -> None:
    private = "hunter2"
    values = [
        event(content_id=private + "\n"),
        event(occurred_at=private),
        event(undo=private),
        event(user_id=private + "\n"),
        event(text={private: private}),
        event(content_id=private * 100),
    ]
    batch = decode(*(Consumed(b"u1", v) for v in values))
    assert len(batch.rejected) == len(values)
    assert all(private not in r.detail for r in batch.rejected)


def test_a_retry_is_decoded_as_what_it_was() -> None:
    first = Consumed(b"u1", event(), offset=12, timestamp=NOW - 60_000, headers=(("trace", b"t"),))
    origin = origin_of(first, "shares", 1)
    key, value, headers = retry(first, origin, NOW + 5, NOW)
    again = Consumed(key, value, offset=99, timestamp=NOW, headers=tuple(headers))
    batch = decode(again, topic="events-retry")
    assert batch.actions.tolist() == [2]
    assert batch.received.tolist() == batch.times.tolist() == [NOW - 60_000]
    assert batch.events.tolist() == [key_of(f"shares-1-12-{NOW - 60_000}", "share")]
    seen = origin_of(again, "events-retry", 1)
    assert (seen.topic, seen.partition, seen.offset) == ("shares", 1, 12)
    assert (seen.attempt, seen.not_before_ms) == (1, NOW + 5)


@pytest.mark.parametrize("headers", [(), (("stream-app-topic", b"likes"),), (("stream-app-topic", None),)])
def test_a_retry_of_unknown_origin_is_refused(headers: tuple[tuple[str, bytes | None], ...]) -> None:
    batch = decode(Consumed(b"u1", event(), headers=headers), topic="events-retry")
    assert [r.reason for r in batch.rejected] == [Reason.BAD_ORIGIN]


def test_a_retry_for_an_action_that_is_gone_is_refused() -> None:
    first = Consumed(b"u1", event())
    key, value, headers = retry(first, origin_of(first, "views", 1), NOW, NOW)
    batch = decode(Consumed(key, value, headers=tuple(headers)), topic="events-retry")
    assert [r.reason for r in batch.rejected] == [Reason.BAD_ORIGIN]


def test_prefixed_topics() -> None:
    settings = build({"kafka": {"topic_prefix": "x."}})
    batch = EventDecoder(settings).decode([good()], "x.comments", 0, None)
    assert batch.actions.tolist() == [1]


def test_ten_thousand_malformed_events_among_good_ones() -> None:
    records, expected = [], []
    for number, (reason, value) in enumerate(malformed(10_000, NOW)):
        expected.append(reason)
        records += [Consumed(b"u1", value, 2 * number), good(2 * number + 1)]
    batch = decode(*records)
    assert batch.source.tolist() == list(range(1, len(records), 2))
    assert [r.reason for r in batch.rejected] == expected
    assert len(set(expected)) == 11


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(["user_id", "content_id", "event_id", "occurred_at", "undo", "text", "other"])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good event with some fields replaced or dropped, and some bytes overwritten, cut or added."""
    tree: dict[str, Any] = {"user_id": "u1", "content_id": "c1", "event_id": "e1", "occurred_at": NOW}
    tree |= draw(st.dictionaries(fields, json_values, max_size=3))
    for name in draw(st.sets(fields, max_size=2)):
        tree.pop(name, None)
    value = bytearray(json.dumps(tree, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(value)))
        value[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(value)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    st.lists(st.none() | st.binary(max_size=60) | mutated(), max_size=6),
    st.sampled_from(["likes", "events-retry"]),
    st.sampled_from([None, NOW, NOW + 1000 * DAY]),
    st.integers(-(2**63), 2**63 - 1) | st.just(NOW),
)
def test_nothing_raises_and_every_record_is_in_exactly_one_place(
    values: list[bytes | None], topic: str, stream_time: int | None, timestamp: int
) -> None:
    first = good()
    _, _, headers = retry(first, origin_of(first, "likes", 0), NOW, NOW)
    records = [good(), *(Consumed(b"u1", v, timestamp=timestamp) for v in values), good()]
    for record in records:
        record.headers = tuple(headers)
    batch = decode(*records, topic=topic, stream_time=stream_time)
    places = batch.source.tolist() + [r.index for r in batch.rejected]
    assert sorted(places) == list(range(len(records)))
    count = len(batch.source)
    columns = (batch.users, batch.contents, batch.actions, batch.events, batch.named, batch.times, batch.undo)
    assert all(len(column) == count for column in (*columns, batch.received))
    if stream_time != NOW + 1000 * DAY:
        assert {0, len(records) - 1} <= set(batch.source.tolist())
