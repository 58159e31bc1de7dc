"""Seeded byte strings that are nearly events: fast enough for a million, and different every time.

Each string is a well-formed text of some kind with a few mutations: bits flipped, cut, spliced with
another, pieces doubled or swapped, hostile tokens put in. Deterministic for a seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

NOW_MS = 1_780_000_000_000
LONGEST = 4_096

EVENTS: tuple[bytes, ...] = tuple(
    json.dumps(tree, ensure_ascii=number % 2 == 0).encode()
    for number, tree in enumerate(
        [
            {"user_id": "u1", "content_id": "c1"},
            {"event_id": "e1", "user_id": "u1", "content_id": "c1", "occurred_at": NOW_MS - 1000},
            {"user_id": "u1", "content_id": "c1", "occurred_at": "2026-05-28T12:00:00.123456Z"},
            {"user_id": "u1", "content_id": "c1", "occurred_at": "2026-05-28t12:00:00+05:30", "undo": True},
            {"user_id": "u1", "content_id": "c1", "event_id": "é名👩‍👧", "text": "naïve \u2028 ﷺ"},
            {"user_id": "u1", "content_id": "c1", "event_id": None, "occurred_at": None, "undo": None},
            {"other": {"a": [1, -2.5e3, None, {"b": [[], {}]}]}, "user_id": "u1", "content_id": "c1"},
            {"user_id": "ü", "content_id": "c1", "x": "\x7f", "text": '\\ " \n \u0000'},
        ]
    )
)
CONTENTS: tuple[bytes, ...] = tuple(
    json.dumps(tree, ensure_ascii=number % 2 == 0).encode()
    for number, tree in enumerate(
        [
            {
                "content_id": "u1",
                "title": "A title",
                "text": "hello",
                "author": "ann",
                "created_at": NOW_MS - 5,
            },
            {"text": "夏 à la carte", "created_at": "1995-06-01T02:00:00+02:00"},
            {"content_id": "u1", "title": " ", "text": "\t\n", "tags": ["x"], "nested": {"a": [1]}},
            {"title": "t", "author": "a" * 250, "created_at": None},
        ]
    )
)
VALUES: tuple[bytes, ...] = (
    *(b"null", b"true", b"false", b"[]", b"{}", b'""', b"0", b"-0", b"-1", b"1.5", b"1e12", b"1.78e12"),
    *(b"NaN", b"-Infinity", b"1e999", b"1e-400", b"0x10", b"01", b"+1", b".5", b"5.", b"1_000"),
    *(b"9223372036854775807", b"9223372036854775808", b"-9223372036854775809", b"18446744073709551616"),
    *(
        b"4102444800000",
        b"946684799999",
        b"946684800000",
        b"7258118400001",
        b"1780000300000",
        b"1780000300001",
    ),
    *(b"9" * 400, b"-" + b"1" * 30, b"0." + b"3" * 300, b"1" + b"0" * 22),
    *(b'"0001-01-01T00:00:00+23:59"', b'"9999-12-31T23:59:60Z"', b'"2026-02-30T00:00:00Z"', b'"2026-05-28"'),
    *(b'"2026-05-28T12:00:00.1234567890123Z"', b'"1999-12-31T23:59:59.999Z"', b'"2026-05-28T24:00:00Z"'),
    *(
        b'"u1"',
        b'"u2"',
        b'"\\u0000"',
        b'"\\u0075\\u0031"',
        b'"\\ud800"',
        b'"\\uD83D\\uDE00"',
        b'"\\x41"',
        b'"\x7f"',
    ),
    *(b'"\xc2\x85"', b'"\xe2\x80\xa8"', b'"\xe2\x80\xae"', b'"' + b"\xcc\x81" * 20 + b'"', b'"\xef\xbf\xbf"'),
    *(
        b'"' + b"y" * 256 + b'"',
        b'"' + b"y" * 257 + b'"',
        b'"' + b"\xc3\xa9" * 128 + b'"',
        b'"\xff"',
        b'"\xed\xa0\x80"',
    ),
    *(b"[" * 64 + b"]" * 64, b'{"a":' * 64 + b"1" + b"}" * 64, b'{"user_id":"u2"}', b'["u1"]'),
)
NAMES: tuple[bytes, ...] = (
    *(b'"user_id"', b'"content_id"', b'"event_id"', b'"occurred_at"', b'"undo"', b'"text"'),
    *(
        b'"title"',
        b'"author"',
        b'"created_at"',
        b'"other"',
        b'""',
        b'"\\u0075ser_id"',
        b'"USER_ID"',
        b'"a\xff"',
        b"user_id",
    ),
)
NOISE: tuple[bytes, ...] = (
    *(b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xfe\xff", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf"),
    *(
        b"\r\n",
        b"\t",
        b" ",
        b"\x0b",
        b"\x1b[2J",
        b"\x85",
        b"\xc2\x85",
        b"\xe2\x80\xa8",
        b"\xf0\x9f\x91\xa9\xe2\x80\x8d",
    ),
    *(
        b",",
        b":",
        b'"',
        b"'",
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b"//",
        b"/**/",
        b"[",
        b"{",
        b"]",
        b"}",
        b"x" * 300,
    ),
)


def strings(count: int, seed: int, *corpora: tuple[bytes, ...]) -> Iterator[bytes]:
    """``count`` strings made of these texts (events, when none are given), at most LONGEST bytes each,
    but for about one in 3,000 that is nested tens of thousands of levels deep."""
    rng = random.Random(seed)
    texts = [text for corpus in corpora or (EVENTS,) for text in corpus]
    draw = rng.random
    for _ in range(count):
        text = texts[int(draw() * len(texts))]
        rounds = int(draw() * 2.6 + 0.95)  # 2 % stay as they are
        for _ in range(rounds):
            text = MUTATIONS[int(draw() * len(MUTATIONS))](text, draw, texts)
        if draw() < 0.0003:
            text = text[:-1] + b',"z":' + (b"[", b'{"a":')[rounds % 2] * int(draw() * 12_000)
        else:
            text = text[:LONGEST]
        yield text


Draw = Callable[[], float]
Mutation = Callable[[bytes, Draw, list[bytes]], bytes]


def _something(draw: Draw) -> bytes:
    """A hostile value, a number of any size, one near now, or a string of any characters."""
    kind = draw()
    if kind < 0.5:
        return VALUES[int(draw() * len(VALUES))]
    if kind < 0.6:
        return b"%d" % int((draw() - 0.5) * 10 ** (draw() * 22))
    if kind < 0.75:
        return b"%d" % (NOW_MS + int((draw() - 0.6) * 10 ** (draw() * 13)))
    text = "".join(chr(int(0x2FFF * draw() ** 3)) for _ in range(int(draw() * 12)))
    return b'"' + text.encode() + b'"'


def _flip(text: bytes, draw: Draw, _texts: list[bytes]) -> bytes:
    if not text:
        return text
    at = int(draw() * len(text))
    return text[:at] + bytes((text[at] ^ (1 << int(draw() * 8)),)) + text[at + 1 :]


def _cut(text: bytes, draw: Draw, _texts: list[bytes]) -> bytes:
    return text[: int(draw() * (len(text) + 1))]


def _drop(text: bytes, draw: Draw, _texts: list[bytes]) -> bytes:
    at = int(draw() * (len(text) + 1))
    return text[:at] + text[at + 1 + int(draw() * 8) :]


def _put(text: bytes, draw: Draw, _texts: list[bytes]) -> bytes:
    """Noise somewhere."""
    at = int(draw() * (len(text) + 1))
    return text[:at] + NOISE[int(draw() * len(NOISE))] + text[at:]


def _field(text: bytes, draw: Draw, _texts: list[bytes]) -> bytes:
    """One more field, at the start or the end: fields given twice, of other types."""
    field = NAMES[int(draw() * len(NAMES))] + b":" + _something(draw)
    return b"{" + field + b"," + text[1:] if draw() < 0.5 else text[:-1] + b"," + field + b"}"


def _value(text: bytes, draw: Draw, _texts: list[bytes]) -> bytes:
    """Something in the place of some field's value."""
    at = text.find(b'":', int(draw() * (len(text) + 1))) + 2
    ends = [end for end in (text.find(b", ", at), text.find(b"}", at)) if end >= 0]
    if at < 2 or not ends:
        return text
    return text[:at] + _something(draw) + text[min(ends) :]


def _splice(text: bytes, draw: Draw, texts: list[bytes]) -> bytes:
    other = texts[int(draw() * len(texts))]
    return text[: int(draw() * (len(text) + 1))] + other[int(draw() * (len(other) + 1)) :]


def _double(text: bytes, draw: Draw, _texts: list[bytes]) -> bytes:
    at, end = sorted((int(draw() * (len(text) + 1)), int(draw() * (len(text) + 1))))
    return text[:end] + text[at:end] * int(draw() * 12) + text[end:]


def _noise(_text: bytes, draw: Draw, _texts: list[bytes]) -> bytes:
    return random.Random(draw()).randbytes(int(draw() * 48))


MUTATIONS: tuple[Mutation, ...] = (
    *(_flip, _cut, _drop, _put, _splice, _double, _noise),
    *(_field, _field, _field, _field, _value, _value, _value, _value),
)
