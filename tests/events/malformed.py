"""Malformed events of every kind, for tests that mix them into good ones. Deterministic."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

from stream_app.events.reasons import Reason

USER = "u1"
Maker = Callable[[random.Random, int], bytes]


def good(number: int, time_ms: int, **fields: object) -> bytes:
    """An event that is accepted under the key ``u1`` if ``fields`` are all right."""
    tree = {
        "event_id": f"e{number}",
        "user_id": USER,
        "content_id": f"c{number % 50}",
        "occurred_at": time_ms,
    }
    return json.dumps(tree | fields).encode()


def _truncated(rng: random.Random, now: int) -> bytes:
    value = good(1, now)
    return value[: rng.randrange(1, len(value))]


def _wrong_type(rng: random.Random, now: int) -> bytes:
    field = rng.choice(["user_id", "content_id", "event_id", "undo", "text", "occurred_at"])
    return good(1, now, **{field: rng.choice([[], {}, 1.5, ["x"], {"a": None}])})


def _invalid_utf8(rng: random.Random, now: int) -> bytes:
    bad = rng.choice([b"\xff", b"\xc3(", b"\xed\xa0\x80", b"\xf8\x88", b"\x80"])
    return good(1, now, text="@").replace(b"@", bad)


def _not_json(rng: random.Random, now: int) -> bytes:
    constant = rng.choice(["NaN", "Infinity", "-Infinity", "undefined", "0x1", "'a'", "01", "+1"])
    return good(1, now, other="@").replace(b'"@"', constant.encode())


def _missing(rng: random.Random, now: int) -> bytes:
    tree = json.loads(good(1, now))
    del tree[rng.choice(["user_id", "content_id"])]
    return json.dumps(tree).encode()


def _too_deep(rng: random.Random, now: int) -> bytes:
    opening = rng.choice([b"[", b'{"a":'])
    return b'{"user_id":"u1","other":' + opening * rng.randrange(9_000, 10_000)


def _bad_id(rng: random.Random, now: int) -> bytes:
    field = rng.choice(["content_id", "event_id"])
    return good(1, now, **{field: rng.choice(["\t", "\x00", "a\nb", "\x7f", "\x9f", "x" * 257, "é" * 200])})


def _huge_number(rng: random.Random, now: int) -> bytes:
    digits = str(rng.choice([-1, 1]) * 10 ** rng.randrange(19, 3000))
    return good(1, now, occurred_at="@").replace(b'"@"', digits.encode())


def _no_date(rng: random.Random, now: int) -> bytes:
    texts = ["", "now", "2026-13-01T00:00:00Z", "2026-05-01", "2026-05-01T00:00:00", "2026-05-01T25:00:00Z"]
    return good(1, now, occurred_at=rng.choice(texts))


def _future(rng: random.Random, now: int) -> bytes:
    return good(1, now + rng.choice([3_600_000, 10**11, 10**14]))


def _ancient(rng: random.Random, now: int) -> bytes:
    return good(1, rng.choice([0, -1, now // 1000, -(10**14), 900_000_000_000]))


KINDS: dict[Reason, Maker] = {
    Reason.EMPTY: lambda rng, now: b"",
    Reason.OVERSIZED: lambda rng, now: good(1, now, text="x" * rng.randrange(70_000, 200_000)),
    Reason.INVALID_UTF8: _invalid_utf8,
    Reason.TOO_DEEP: _too_deep,
    Reason.MISSING_FIELD: _missing,
    Reason.BAD_TYPE: _wrong_type,
    Reason.INVALID_ID: _bad_id,
    Reason.BAD_TIMESTAMP: lambda rng, now: rng.choice([_huge_number, _no_date])(rng, now),
    Reason.TIMESTAMP_IN_FUTURE: _future,
    Reason.TOO_OLD: _ancient,
    Reason.MALFORMED_JSON: lambda rng, now: rng.choice([_truncated, _not_json])(rng, now),
}
"""Reason → makes one value, under the key ``u1`` and the Kafka timestamp ``now``, that gets it."""


def malformed(count: int, now_ms: int, seed: int = 7) -> Iterator[tuple[Reason, bytes]]:
    """``count`` values that are no events, of all kinds in turn, each with its reason."""
    rng = random.Random(seed)  # a test's variety, no secret
    kinds = list(KINDS.items())
    for number in range(count):
        reason, make = kinds[number % len(kinds)]
        yield reason, make(rng, now_ms)
    # the largest that a producer may try
    yield Reason.OVERSIZED, good(1, now_ms, text="x" * 10_000_000)
