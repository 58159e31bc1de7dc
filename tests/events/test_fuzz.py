"""A million nearly-events through the decoders: nothing escapes, all is accounted for, memory stays flat.

``make fuzz`` (or ``pytest tests/events/test_fuzz.py -s``) prints the seed and what was rejected for which
reason. ``FUZZ_SEED`` and ``FUZZ_STRINGS`` choose other strings and other numbers of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from stream_app.content.schema import ContentDecoder
from stream_app.content.vectors import ContentVector
from stream_app.content.vectors import decode as decode_vector
from stream_app.content.vectors import encode as encode_vector
from stream_app.errors import RecordFormatError
from stream_app.events.dead_letters import MAX_RECORD_BYTES, dead_letter, origin_in, origin_of, retry
from stream_app.events.decode import EventDecoder
from stream_app.events.reasons import Reason
from stream_app.events.times import EARLIEST_MS, LATEST_MS
from stream_app.interests.record import HEADER
from stream_app.interests.record import decode as decode_interests
from stream_app.interests.statistics_record import decode as decode_statistics
from stream_app.interests.statistics_record import prefix
from stream_app.learning.coengagement import CHANNELS
from stream_app.learning.neighbours_record import Neighbours
from stream_app.learning.neighbours_record import decode as decode_neighbours
from stream_app.learning.neighbours_record import encode as encode_neighbours
from stream_app.settings import Settings
from tests.commands.records import interest_record
from tests.events.fuzz import CONTENTS, EVENTS, NOW_MS, strings

SEED = int(os.environ.get("FUZZ_SEED", "20260501"))
STRINGS = int(os.environ.get("FUZZ_STRINGS", "1000000"))
BATCH = 500
GROWTH_BYTES = 16 * 1024 * 1024
"""What the process may grow by between the tenth and the last part of the strings: less than 20 bytes a
string would show. Allocators keep some megabytes back, so it is not 0."""

SETTINGS = Settings()
EVENT_DECODER = EventDecoder(SETTINGS)
CONTENT_DECODER = ContentDecoder(SETTINGS)
MAX_ID = SETTINGS.events.max_id_bytes
FUTURE_MS = int(SETTINGS.events.max_future_s * 1000)
AGE_MS = int(SETTINGS.events.max_age_days * 86_400_000)


@dataclass(slots=True)
class Consumed:
    key: bytes | None
    value: bytes | None
    offset: int
    timestamp: int = NOW_MS
    headers: tuple[tuple[str, bytes | None], ...] = ()


def resident_bytes() -> int:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def flat(parts: Iterator[None], count: int) -> int:
    """Go through ``count`` parts; bytes that the process grew by after the first tenth of them."""
    begun = 0
    for number, _ in enumerate(parts):
        if number == count // 10:
            begun = resident_bytes()
    return resident_bytes() - begun


# -- events


HEADERS = tuple(retry(Consumed(b"u1", b"{}", 7), origin_of(Consumed(b"u1", b"{}", 7), "shares", 1), 5, 5)[2])
TIMESTAMPS = (NOW_MS, NOW_MS, NOW_MS, NOW_MS - 10**9, -1, 0, LATEST_MS, 2**63 - 1, -(2**63))
KEYS = (b"u1",) * 20 + ("ü".encode(), None, b"", b"\xff", b"u1\x00", b"u" * 300)


def event_records(count: int, seed: int) -> Iterator[list[Consumed]]:
    """Batches of BATCH records with these strings, now and then under other keys, times and headers."""
    rng = random.Random(seed + 1)
    odd_headers = list(strings(200, seed + 2))
    values = strings(count, seed)
    while chosen := list(islice(values, BATCH)):
        keys, timestamps = rng.choices(KEYS, k=BATCH), rng.choices(TIMESTAMPS, k=BATCH)
        batch = [
            Consumed(*fields, HEADERS) for fields in zip(keys, chosen, range(BATCH), timestamps, strict=False)
        ]
        for record in rng.sample(batch, len(batch) // 10):
            at, headers = rng.randrange(len(HEADERS)), list(HEADERS)
            headers[at : at + rng.randrange(2)] = [
                (
                    headers[at][0],
                    rng.choice([None, b"", b"-1", b"9" * 19, b"x", b"\xff", rng.choice(odd_headers)]),
                )
            ]
            record.headers = tuple(headers)
        yield batch


def check_events(batch: list[Consumed], topic: str, stream_time: int | None) -> Counter[str]:
    """Decode a batch, hold every record of it to what is documented, and count what became of them."""
    decoded = EVENT_DECODER.decode(batch, topic, 3, stream_time, NOW_MS)
    source = decoded.source.tolist()
    assert sorted(source + [r.index for r in decoded.rejected]) == list(range(len(batch)))
    columns = zip(
        source,
        decoded.users,
        decoded.contents,
        decoded.times.tolist(),
        decoded.received.tolist(),
        strict=True,
    )
    for index, user, content, time, received in columns:
        record = batch[index]
        tree = json.loads(record.value or b"")  # another decoder agrees that it is JSON, and on the ids
        assert user == tree["user_id"].encode()
        assert content == tree["content_id"].encode()
        assert 0 < len(user) <= MAX_ID
        assert 0 < len(content) <= MAX_ID
        assert all(c >= " " and not "\x7f" <= c <= "\x9f" for c in tree["user_id"] + tree["content_id"])
        arrived = record.timestamp if topic == "likes" else origin_of(record, topic, 3).timestamp
        assert received == min(arrived, NOW_MS)
        assert EARLIEST_MS <= time <= received + FUTURE_MS
        assert stream_time is None or time >= stream_time - AGE_MS
    fates = Counter({"accepted": len(source)})
    for rejected in decoded.rejected:
        assert type(rejected.reason) is Reason
        assert 0 < len(rejected.detail) <= 200
        fates[rejected.reason.value] += 1
    for rejected in decoded.rejected[:5]:
        record = batch[rejected.index]
        origin = origin_of(record, topic, 3)
        key, value, headers = dead_letter(record, origin, rejected.reason, rejected.detail, NOW_MS)
        letter = Consumed(key, value, 0, headers=tuple(headers))
        assert (key, value) == (record.key, record.value)
        assert sum(len(n) + len(v) for n, v in headers) + len(value or b"") <= MAX_RECORD_BYTES
        if origin.timestamp >= 0:
            assert origin_in(letter) == replace(origin, not_before_ms=0)
    return fates


def test_a_million_strings_through_the_event_decoder() -> None:
    fates: Counter[str] = Counter()
    places = [("likes", None), ("likes", NOW_MS), ("events-retry", NOW_MS), ("likes", NOW_MS + 2 * AGE_MS)]

    def parts() -> Iterator[None]:
        for number, batch in enumerate(event_records(STRINGS, SEED)):
            topic, stream_time = places[number % len(places)]
            fates.update(check_events(batch, topic, stream_time))
            yield

    growth = flat(parts(), STRINGS // BATCH)
    print(f"\nseed {SEED}: {fates.total():,} strings, {growth / 2**20:.1f} MiB more after the first tenth")
    print(", ".join(f"{reason} {count:,}" for reason, count in fates.most_common()))
    assert fates.total() == STRINGS
    assert growth < GROWTH_BYTES
    if STRINGS >= 100_000:  # enough to have met them all: the strings are worth their time
        assert fates.keys() - {"accepted"} == DECODED
        assert fates["accepted"] > STRINGS // 50


DECODED = {
    *("empty", "invalid_utf8", "malformed_json", "too_deep", "missing_field", "bad_type", "invalid_id"),
    *("bad_timestamp", "timestamp_in_future", "too_old", "bad_origin"),
}
"""Reasons that decoding an event of at most ``events.max_bytes`` can give."""


# -- contents


def test_contents() -> None:
    count, fates = STRINGS // 10, Counter[str]()
    values = strings(count, SEED, CONTENTS, EVENTS)
    rng = random.Random(SEED)

    def parts() -> Iterator[None]:
        while batch := [
            Consumed(rng.choice(KEYS), value, offset, rng.choice(TIMESTAMPS))
            for offset, value in zip(range(BATCH), values, strict=False)
        ]:
            for record in batch:
                decoded = CONTENT_DECODER.decode([record])
                assert len(decoded.newest) + len(decoded.rejected) == 1
                for content_id, text in decoded.newest.items():
                    assert 0 < len(content_id) <= MAX_ID
                    assert content_id == record.key or record.key is None
                    assert text is not None
                    assert text.text == "" or text.text.strip()
                    assert len(text.author.encode()) <= MAX_ID
                    assert text.created_at <= record.timestamp + FUTURE_MS
                for rejected in decoded.rejected:
                    assert type(rejected.reason) is Reason
                    assert 0 < len(rejected.detail) <= 200
                    fates[rejected.reason.value] += 1
            yield

    growth = flat(parts(), count // BATCH)
    print(f"\nseed {SEED}: {count:,} contents, {growth / 2**20:.1f} MiB more; {dict(fates.most_common())}")
    assert growth < GROWTH_BYTES
    assert 0 < fates.total() < count


# -- binary records


def statistics_record() -> bytes:
    start, end = prefix(1, np.array([1, 2, 3], np.uint16), np.array([0.5, 24], np.float32))
    return start + NOW_MS.to_bytes(8, "little") + end + np.ones((3, 2), "<f4").tobytes()


def vector_record() -> bytes:
    return encode_vector(ContentVector("a-model", "ann", NOW_MS, NOW_MS, np.ones(8, np.float16)))


def neighbours_record() -> bytes:
    counts = np.ones((len(CHANNELS), 4), np.float32)
    return encode_neighbours(Neighbours(5.0, 2.0, np.arange(1, 5, dtype=np.uint64), counts))


@pytest.mark.parametrize(
    ("decode", "good"),
    [
        (decode_interests, interest_record()),
        (decode_vector, vector_record()),
        (decode_statistics, statistics_record()),
        (decode_neighbours, neighbours_record()),
    ],
    ids=["interests", "content-vectors", "content-stats", "co-engagement"],
)
def test_binary_records_are_decoded_or_refused(decode: Callable[[bytes], Any], good: bytes) -> None:
    decode(good)
    taken = 0
    values = strings(STRINGS // 20, SEED, (good, good[:40], good + good))
    for value in values:
        try:
            decode(value)
            taken += 1
        except RecordFormatError:
            pass
    assert 0 < taken < STRINGS // 20


@pytest.mark.parametrize("decode", [decode_interests, decode_vector, decode_statistics, decode_neighbours])
@pytest.mark.parametrize("size", [0, 1, 7, 15, 16, 23, 24, 95, 96, 97, 1000])
@pytest.mark.parametrize("fill", [b"\x00", b"\x01", b"\xff"])
def test_records_of_one_byte_over_and_over(decode: Callable[[bytes], Any], size: int, fill: bytes) -> None:
    with contextlib.suppress(RecordFormatError):
        assert decode(fill * size) is not None


@pytest.mark.parametrize(
    ("field", "number"), [("total", 0), ("total", 2**40), ("recent", 0), ("recent", 1), ("interactions", 0)]
)
def test_a_ring_that_contradicts_itself_is_refused(field: str, number: int) -> None:
    damaged = np.frombuffer(interest_record(), np.uint8).copy()
    damaged[: HEADER.itemsize].view(HEADER)[field] = number
    with pytest.raises(RecordFormatError):
        decode_interests(damaged.tobytes())


# -- with structure: what a person would think of


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(NOW_MS - 10**12, NOW_MS + 10**12)
    | st.floats()
    | st.text(max_size=8)
    | st.datetimes().map(lambda moment: moment.isoformat() + "Z")
    | st.sampled_from(["u1", "u2", "\ud800", "\u0000", "x" * 257])
)
trees = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.sampled_from("ab"), scalars, max_size=2)
NAMES = [
    "user_id",
    "content_id",
    "event_id",
    "occurred_at",
    "undo",
    "text",
    "title",
    "author",
    "created_at",
    "",
]


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """An object with any fields, in any order, some of them twice."""
    fields = draw(st.lists(st.tuples(st.sampled_from(NAMES), trees), max_size=4))
    if draw(st.booleans()):
        fields += [("user_id", "u1"), ("content_id", "u1"), ("title", "t")]
    ascii_only, space = draw(st.booleans()), draw(st.sampled_from(["", " ", "\r\n\t"]))
    text = f",{space}".join(
        f"{json.dumps(n)}:{space}{json.dumps(v, ensure_ascii=ascii_only)}" for n, v in fields
    )
    return f"{{{space}{text}{space}}}".encode("utf-8", "surrogatepass")


@budget(deadline=None, max_examples=500, derandomize=True)
@given(objects(), st.sampled_from(["likes", "events-retry"]), st.sampled_from([None, NOW_MS]))
def test_objects_of_any_fields(value: bytes, topic: str, stream_time: int | None) -> None:
    fates = check_events([Consumed(b"u1", value, 0, NOW_MS, HEADERS)], topic, stream_time)
    assert fates.total() == 1
    decoded = CONTENT_DECODER.decode([Consumed(b"u1", value, 0)])
    assert len(decoded.newest) + len(decoded.rejected) == 1
