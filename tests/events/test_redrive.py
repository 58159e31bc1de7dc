"""Second chances, decided without Kafka: who gets one, who is refused and why, and what is produced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from stream_app.events.dead_letters import Origin, dead_letter, our_headers
from stream_app.events.decode import EventDecoder
from stream_app.events.reasons import Reason
from stream_app.events.redrive import Refusal, SecondChances, is_mark, mark_in, mark_of, reason_of
from stream_app.hashing import key64
from stream_app.kafka.partitions import partition_of
from stream_app.settings import Settings, build

NOW = 1_780_000_000_000
SETTINGS = build({"events": {"max_redrives": 2}})
CHANCES = SecondChances(SETTINGS, {"events-retry": 4, "content": 2})


@dataclass(frozen=True, slots=True)
class Letter:
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    partition: int = 3
    offset: int = 17
    timestamp: int = NOW


def letter(
    topic: str = "likes",
    key: bytes | None = b"u1",
    value: bytes | None = b'{"user_id":"u1","content_id":"c1"}',
    **fields: Any,
) -> Letter:
    origin = Origin(
        **({"topic": topic, "partition": 1, "offset": 41, "timestamp": NOW - 5, "attempt": 7} | fields),
        not_before_ms=0,
    )
    record = Letter(key, value, (("trace", b"t"),))
    key, value, headers = dead_letter(record, origin, Reason.UNKNOWN_CONTENT, "", NOW)
    return Letter(key, value, tuple(headers))


@pytest.mark.parametrize(
    ("asked", "newest", "wanted"),
    [
        (letter(), -1, None),
        (letter(redrives=1), -1, None),
        (letter(redrives=2), -1, Refusal.TOO_OFTEN),
        (letter(redrives=3), -1, Refusal.TOO_OFTEN),
        (letter("views"), -1, Refusal.FOREIGN),
        (letter("events-retry"), -1, Refusal.FOREIGN),
        (letter(partition=3), -1, None),
        (letter(partition=4), -1, None),  # of a topic with more partitions than the table
        (letter("content", partition=2), -1, Refusal.NO_PARTITION),
        (letter(value=None), -1, Refusal.NO_VALUE),
        (letter(value=b""), -1, Refusal.NO_VALUE),
        (letter("content", value=None), -1, Refusal.NO_VALUE),
        (letter(value=b"x" * 2_000_000), -1, Refusal.TRUNCATED),
        (letter(key=b"x" * 2_000_000), -1, Refusal.TRUNCATED),
        (letter("content"), -1, None),
        (letter("content"), 41, None),
        (letter("content"), 42, Refusal.SUPERSEDED),
        (letter("content", key=None), -1, Refusal.NO_KEY),
        (letter(key=None), -1, None),
        (Letter(b"u1", b"{}", ()), -1, Refusal.NO_ORIGIN),
        (Letter(b"u1", b"{}", (("stream-app-topic", b"likes"),)), -1, Refusal.NO_ORIGIN),
    ],
)
def test_who_gets_a_second_chance(asked: Letter, newest: int, wanted: Refusal | None) -> None:
    assert CHANCES.refusal(asked, newest) == wanted


def test_a_letter_that_only_lost_the_producers_headers_can_be_tried() -> None:
    record = Letter(b"u1", b"{}", (("h", b"x" * 2_000_000),))
    origin = Origin("likes", 1, 41, NOW, 0, 0)
    _, _, headers = dead_letter(record, origin, Reason.UNKNOWN_CONTENT, "", NOW)
    assert our_headers(Letter(None, None, tuple(headers)))["truncated"] == b"headers"
    assert CHANCES.refusal(Letter(b"u1", b"{}", tuple(headers)), -1) is None


def test_an_event_goes_to_the_retry_topic_in_its_users_partition_with_the_id_of_its_first_arrival() -> None:
    copy, _ = CHANCES.outputs(letter(), NOW + 9)
    assert (copy.topic, copy.partition, copy.key) == ("events-retry", partition_of(b"u1", 4), b"u1")
    again = Letter(copy.key, copy.value, tuple(copy.headers), 1, 5000, NOW + 10)
    batch = EventDecoder(Settings()).decode([again], "events-retry", 1, None)
    first = EventDecoder(Settings()).decode([Letter(b"u1", copy.value, (), 1, 41, NOW - 5)], "likes", 1, None)
    assert batch.events.tolist() == first.events.tolist()
    assert batch.times.tolist() == batch.received.tolist() == [NOW - 5]
    assert ("trace", b"t") in copy.headers
    ours = our_headers(again)
    assert (ours["attempts"], ours["not-before"]) == (b"0", b"0")
    assert (ours["redrives"], ours["history"]) == (b"1", b"unknown_content@%d" % NOW)


def test_a_content_goes_back_under_its_key_where_it_came_from() -> None:
    asked = letter("content", key=b"c1", value=b'{"text":"a"}')
    copy, _ = CHANCES.outputs(asked, NOW)
    assert (copy.topic, copy.partition, copy.key, copy.value) == ("content", 1, b"c1", b'{"text":"a"}')
    assert CHANCES.content_key(asked) == (1, key64(b"c1"))
    assert CHANCES.content_key(letter()) is None


def test_a_mark_names_its_letter_and_is_none_itself() -> None:
    asked = letter()
    copy, mark = CHANCES.outputs(asked, NOW)
    assert (mark.topic, mark.partition) == ("events-dlq", asked.partition)
    written = Letter(mark.key, mark.value, tuple(mark.headers))
    assert is_mark(written)
    assert mark_in(written) == mark_of(asked)
    others = [
        letter(offset=42),
        letter(partition=0),
        letter("shares"),
        letter(timestamp=NOW),
        letter(redrives=1),
    ]
    assert len({mark_of(other) for other in [asked, *others]}) == 6
    assert not is_mark(asked)
    assert not is_mark(Letter(copy.key, copy.value, tuple(copy.headers)))


@pytest.mark.parametrize("text", [b"", b"x", b"1" * 30, None])
def test_a_foreign_mark_marks_nothing(text: bytes | None) -> None:
    assert mark_in(Letter(None, None, (("stream-app-redriven", text),))) != mark_of(letter())
    assert mark_of(Letter(b"u1", b"{}", ())) is None


def test_a_producer_cannot_forge_a_mark() -> None:
    forged = Letter(b"u1", b"[", (("stream-app-redriven", b"17"),))
    _, _, headers = dead_letter(forged, Origin("likes", 1, 1, NOW, 0, 0), Reason.BAD_TYPE, "", NOW)
    assert not is_mark(Letter(b"u1", b"[", tuple(headers)))


@pytest.mark.parametrize(
    ("reason", "wanted"),
    [
        (b"bad_type", "bad_type"),
        (b"", "unknown"),
        (b"\xff", "unknown"),
        (b"a@1,b", "unknown"),
        (b"_", "unknown"),
    ],
)
def test_reasons_of_letters(reason: bytes, wanted: str) -> None:
    assert reason_of(Letter(None, b"x", (("stream-app-reason", reason),))) == wanted
