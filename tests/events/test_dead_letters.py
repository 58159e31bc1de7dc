"""Dead letters and retries: original bytes and headers are kept, and always fit into a record."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.events.dead_letters import (
    HEADERS,
    MAX_RECORD_BYTES,
    Headers,
    Origin,
    dead_letter,
    origin_in,
    origin_of,
    redriven,
    retry,
)
from stream_app.events.reasons import Reason
from stream_app.kafka.unreadable import UNREADABLE, Damage, UnreadableRange

ORIGIN = Origin("likes", 2, 41, 1_780_000_000_000, 3, 0)


@dataclass(slots=True)
class Consumed:
    key: bytes | None
    value: bytes | None
    offset: int = 41
    timestamp: int = 1_780_000_000_000
    headers: tuple[tuple[str, bytes | None], ...] = ()


def size(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    return len(key or b"") + len(value or b"") + sum(len(n.encode()) + len(v) for n, v in headers)


def test_a_dead_letter_keeps_the_original_and_says_why() -> None:
    record = Consumed(
        b"k\xff", b"\xff{", headers=(("trace", b"\x00\xff"), ("trace", b"again"), ("none", None))
    )
    key, value, headers = dead_letter(record, ORIGIN, Reason.BAD_TYPE, "détail", 1_780_000_000_500)
    assert (key, value) == (b"k\xff", b"\xff{")
    assert headers[:3] == [("trace", b"\x00\xff"), ("trace", b"again"), ("none", b"")]
    assert dict(headers[3:]) == {
        "stream-app-topic": b"likes",
        "stream-app-partition": b"2",
        "stream-app-offset": b"41",
        "stream-app-timestamp": b"1780000000000",
        "stream-app-attempts": b"3",
        "stream-app-time": b"1780000000500",
        "stream-app-reason": b"bad_type",
        "stream-app-detail": "détail".encode(),
    }


def test_every_header_is_documented() -> None:
    record = Consumed(b"k", b"v" * 2_000_000)
    written = dead_letter(record, ORIGIN, Reason.OVERSIZED, "", 0)[2] + retry(record, ORIGIN, 0, 0)[2]
    written += redriven(record, ORIGIN, "oversized", 0)[2]
    unread = UnreadableRange.of("likes", 0, Damage(5, 9, 5, 0, UNREADABLE, ""))
    written += dead_letter(unread, ORIGIN, Reason.UNREADABLE_BATCH, "", 0)[2]
    assert {name.removeprefix("stream-app-") for name, _ in written} == set(HEADERS) - {"redriven"}


def test_null_stays_null() -> None:
    key, value, _ = dead_letter(Consumed(None, None), ORIGIN, Reason.EMPTY, "", 0)
    assert key is None
    assert value is None


def test_reserved_headers_of_a_producer_are_not_kept() -> None:
    record = Consumed(b"k", b"v", headers=(("stream-app-reason", b"fine"), ("mine", b"1")))
    _, _, headers = dead_letter(record, ORIGIN, Reason.BAD_TYPE, "", 0)
    assert [v for n, v in headers if n == "stream-app-reason"] == [b"bad_type"]
    assert ("mine", b"1") in headers


def test_a_value_too_large_for_a_record_is_cut_and_said_to_be() -> None:
    original = bytes(range(256)) * 40_000
    key, value, headers = dead_letter(Consumed(b"k", original), ORIGIN, Reason.OVERSIZED, "", 0)
    assert key == b"k"
    assert value is not None
    assert original.startswith(value)
    assert len(value) > 990_000
    assert dict(headers)["stream-app-truncated"] == b"value"
    assert dict(headers)["stream-app-value-bytes"] == b"10240000"
    assert size(key, value, headers) <= MAX_RECORD_BYTES


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.sampled_from([None, 0, 10, 400_000, 1_200_000]),
    st.sampled_from([None, 0, 10, 65_536, 990_000, 1_200_000]),
    st.lists(st.sampled_from([0, 100, 300_000, 1_200_000]), max_size=4),
    st.text(max_size=400),
)
def test_a_dead_letter_always_fits_and_cuts_only_when_it_must(
    key_size: int | None, value_size: int | None, header_sizes: list[int], detail: str
) -> None:
    key = None if key_size is None else b"k" * key_size
    value = None if value_size is None else b"v" * value_size
    headers = tuple((f"h{i}", b"h" * n) for i, n in enumerate(header_sizes))
    record = Consumed(key, value, headers=headers)
    new_key, new_value, new_headers = dead_letter(record, ORIGIN, Reason.OVERSIZED, detail, 0)
    assert size(new_key, new_value, new_headers) <= MAX_RECORD_BYTES
    said = dict(new_headers).get("stream-app-truncated", b"").decode().split(",")
    assert (new_key == key) is ("key" not in said)
    assert (new_value == value) is ("value" not in said)
    assert (new_headers[: len(headers)] == list(headers)) is ("headers" not in said)
    if size(key, value, list(headers)) < MAX_RECORD_BYTES - 3_000:
        assert said == [""]


def test_retries_count_up_and_carry_the_origin() -> None:
    record = Consumed(b"u", b"{}", headers=(("trace", b"t"),))
    origin = origin_of(record, "likes", 2)
    assert origin == Origin("likes", 2, 41, 1_780_000_000_000, 0, 0)
    for attempt in range(1, 4):
        key, value, headers = retry(record, origin, 1000 * attempt, 999)
        record = Consumed(key, value, offset=500 + attempt, timestamp=5, headers=tuple(headers))
        origin = origin_of(record, "x-events-retry", 2)
        assert origin == Origin("likes", 2, 41, 1_780_000_000_000, attempt, 1000 * attempt)
    assert [n for n, _ in record.headers].count("trace") == 1
    assert len(record.headers) == 8


def test_headers_of_first_hand_records_are_not_believed() -> None:
    record = Consumed(b"u", b"{}")
    _, _, headers = retry(record, ORIGIN, 7, 7)
    forged = Consumed(b"u", b"{}", offset=9, timestamp=8, headers=tuple(headers))
    assert origin_of(forged, "likes", 0) == Origin("likes", 0, 9, 8, 0, 0)


def test_only_a_count_of_second_chances_is_believed_of_first_hand_records() -> None:
    _, _, headers = redriven(Consumed(b"c", b"{}"), ORIGIN, "bad_type", 7)
    forged = Consumed(b"c", b"{}", offset=9, timestamp=8, headers=tuple(headers))
    assert origin_of(forged, "content", 0) == Origin("content", 0, 9, 8, 0, 0, 1, ("bad_type@1780000000000",))


def test_a_second_chance_starts_anew_where_the_record_first_arrived_and_keeps_its_history() -> None:
    origin = origin_of(Consumed(b"u", b"{}"), "likes", 2)
    record = Consumed(b"u", b"{}", headers=(("trace", b"t"),))
    for n in range(1, 21):
        for attempt in (0, 1):
            _, _, headers = retry(record, replace(origin, attempt=attempt), 5, 5)
            record = Consumed(b"u", b"{}", headers=tuple(headers))
            origin = origin_of(record, "events-retry", 2)
        _, _, headers = dead_letter(record, origin, Reason.UNKNOWN_CONTENT, "", n)
        letter = Consumed(b"u", b"{}", offset=70 + n, timestamp=10**13, headers=tuple(headers))
        found = origin_in(letter)
        assert found is not None
        assert (found.attempt, found.redrives) == (2, n - 1)
        key, value, headers = redriven(letter, found, "unknown_content", 7)
        assert (key, value) == (b"u", b"{}")
        assert dict(headers)["stream-app-not-before"] == b"0"
        record = Consumed(key, value, offset=800, timestamp=9, headers=tuple(headers))
        origin = origin_of(record, "events-retry", 2)
        history = tuple(f"unknown_content@{m}" for m in range(1, n + 1))[-16:]
        assert origin == Origin("likes", 2, 41, 1_780_000_000_000, 0, 0, n, history)
    assert [n for n, _ in record.headers].count("trace") == 1


@pytest.mark.parametrize("count", [b"", b"-1", b"x", b"9" * 30, b"\xff", None])
def test_a_broken_count_of_second_chances_is_none(count: bytes | None) -> None:
    headers = (("stream-app-redrives", count), ("stream-app-history", b"a@1"))
    assert origin_of(Consumed(b"u", b"{}", headers=headers), "likes", 1).redrives == 0


@pytest.mark.parametrize(
    ("history", "kept"),
    [
        (b"", ()),
        (b"\xff", None),
        (b"a@1,A@1,@1,a@,a@x,b@2\n,c_d@3", ("a@1", "c_d@3")),
        (b"a@1," * 1000, ("a@1",) * 16),
        (b"x" * 100_000, ()),
    ],
)
def test_history_is_bounded_and_only_what_we_write(history: bytes, kept: tuple[str, ...] | None) -> None:
    headers = (("stream-app-redrives", b"2"), ("stream-app-history", history))
    found = origin_of(Consumed(b"u", b"{}", headers=headers), "likes", 1)
    assert (found.redrives, found.history) == ((0, ()) if kept is None else (2, kept))


@pytest.mark.parametrize("broken", [b"", b"-1", b"x", b"9" * 19, b"9" * 30, b"\xff", b"1.0", "²".encode()])
@pytest.mark.parametrize("name", ["partition", "offset", "timestamp", "attempts", "not-before"])
def test_broken_origin_headers_never_raise(name: str, broken: bytes) -> None:
    record = Consumed(b"u", b"{}")
    _, _, headers = retry(record, ORIGIN, 7, 7)
    headers = [(n, broken if n == f"stream-app-{name}" else v) for n, v in headers]
    found = origin_of(Consumed(b"u", b"{}", headers=tuple(headers)), "events-retry", 1)
    assert found == Origin("events-retry", 1, 41, 1_780_000_000_000, 0, 0)


def test_a_broken_topic_header_never_raises() -> None:
    _, _, headers = retry(Consumed(b"u", b"{}"), ORIGIN, 7, 7)
    headers = [(n, b"\xff" if n == "stream-app-topic" else v) for n, v in headers]
    assert origin_of(Consumed(b"u", b"{}", headers=tuple(headers)), "events-retry", 1).topic == "events-retry"


def test_every_reason_is_documented_in_one_line() -> None:
    assert all(r.meaning and "\n" not in r.meaning for r in Reason)
    assert all(r.value == r.name.lower() for r in Reason)
