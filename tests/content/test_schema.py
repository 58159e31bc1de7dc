"""What is a content and what is not, and under which reason."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from stream_app.content.schema import ContentDecoder, DecodedContents, Text
from stream_app.events.reasons import Reason
from stream_app.settings import build

NOW = 1_780_000_000_000
DECODER = ContentDecoder(build({"content": {"max_bytes": 10_000}}))


@dataclass(frozen=True)
class Consumed:
    key: bytes | None
    value: bytes | None
    timestamp: int = NOW
    offset: int = 0
    headers: tuple[tuple[str, bytes | None], ...] = ()


def decode(*records: tuple[bytes | None, bytes | None]) -> DecodedContents:
    return DECODER.decode([Consumed(key, value) for key, value in records])


def made(**fields: Any) -> bytes:
    return json.dumps({"content_id": "c1", "text": "hello", **fields}).encode()


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (made(), Text("hello", "", NOW, known=False)),
        (made(title="A title", author="ann"), Text("A title\nhello", "ann", NOW, known=False)),
        (made(text=None, title="alone"), Text("alone", "", NOW, known=False)),
        (made(title="  ", text="spaces around "), Text("spaces around ", "", NOW, known=False)),
        (made(text=""), Text("", "", NOW, known=False)),
        (made(text=" \n", title="\t", created_at=NOW - 5), Text("", "", NOW - 5)),
        (b"{}", Text("", "", NOW, known=False)),
        (made(created_at=NOW - 5), Text("hello", "", NOW - 5)),
        (made(created_at="2026-01-02T03:04:05.678Z"), Text("hello", "", 1_767_323_045_678)),
        (made(created_at="1995-06-01T02:00:00+02:00"), Text("hello", "", 801_964_800_000)),
        (made(created_at=NOW + 300_000), Text("hello", "", NOW + 300_000)),
        (made(tags=["x"], likes=3, nested={"a": [1]}), Text("hello", "", NOW, known=False)),
        (b'{"text": "\\u00e9t\\u00e9"}', Text("été", "", NOW, known=False)),
        ('{"text": "夏"}'.encode(), Text("夏", "", NOW, known=False)),
    ],
)
def test_contents(value: bytes, wanted: Text) -> None:
    decoded = decode((b"c1", value))
    assert decoded.newest == {b"c1": wanted}
    assert not decoded.rejected


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (b"c1", b"", Reason.EMPTY),
        (b"c1", b"{" + b" " * 10_000 + b"}", Reason.OVERSIZED),
        (b"c1", b'{"text": "\xff"}', Reason.INVALID_UTF8),
        (b"c1", b'{"text": "a", "ignored": "\xff"}', Reason.INVALID_UTF8),
        (b"\xff", made(), Reason.INVALID_UTF8),
        (b"\xff", None, Reason.INVALID_UTF8),
        (b"c1", b"hello", Reason.MALFORMED_JSON),
        (b"c1", made()[:-1], Reason.MALFORMED_JSON),
        (b"c1", b'{"text": "a", "x": NaN}', Reason.MALFORMED_JSON),
        (b"c1", b'{"x": ' + b"[" * 4000 + b"]" * 4000 + b"}", Reason.TOO_DEEP),
        (None, b'{"text": "a"}', Reason.MISSING_FIELD),
        (None, None, Reason.MISSING_FIELD),
        (b"c1", b"[]", Reason.BAD_TYPE),
        (b"c1", made(text=7), Reason.BAD_TYPE),
        (b"c1", made(author=["a"]), Reason.BAD_TYPE),
        (b"c1", made(content_id=1), Reason.BAD_TYPE),
        (b"c1", made(created_at=1.5), Reason.BAD_TYPE),
        (b"", b'{"text": "a"}', Reason.INVALID_ID),
        (b"", None, Reason.INVALID_ID),
        (b"c" * 257, None, Reason.INVALID_ID),
        (b"\x00c", None, Reason.INVALID_ID),
        (b"c1", made(author="a" * 257), Reason.INVALID_ID),
        (b"c2", made(), Reason.KEY_MISMATCH),
        (b"c1", made(created_at="yesterday"), Reason.BAD_TIMESTAMP),
        (b"c1", made(created_at="2026-01-02T03:04:05"), Reason.BAD_TIMESTAMP),
        (b"c1", made(created_at=NOW // 1000), Reason.BAD_TIMESTAMP),
        (b"c1", made(created_at=0), Reason.BAD_TIMESTAMP),
        (b"c1", made(created_at=-(10**30)), Reason.BAD_TIMESTAMP),
        (b"c1", made(created_at=NOW + 300_001), Reason.TIMESTAMP_IN_FUTURE),
        (b"c1", made(created_at=10**30), Reason.TIMESTAMP_IN_FUTURE),
    ],
)
def test_what_is_no_content_gets_its_reason_and_no_user_data(
    key: bytes | None, value: bytes | None, reason: Reason
) -> None:
    decoded = decode((b"other", made(content_id="other")), (key, value))
    assert [(r.index, r.reason) for r in decoded.rejected] == [(1, reason)]
    assert 0 < len(decoded.rejected[0].detail) <= 200
    assert "hello" not in decoded.rejected[0].detail
    assert decoded.newest.keys() == {b"other"}


def test_the_newest_accepted_version_of_each_content_counts() -> None:
    decoded = decode(
        (b"a", b'{"text": "1"}'),
        (b"b", b'{"text": "1"}'),
        (b"b", None),
        (b"c", None),
        (b"c", b'{"text": "2"}'),
        (b"a", b'{"text": "2"}'),
        (b"a", b'{"text": 3}'),
    )
    two = Text("2", "", NOW, known=False)
    assert decoded.newest == {b"a": two, b"b": None, b"c": two}
    assert [r.index for r in decoded.rejected] == [6]


def test_a_version_without_created_at_keeps_the_time_of_the_one_before() -> None:
    records = [
        (b"a", made(content_id="a", created_at=NOW - 9), NOW - 2),
        (b"b", made(content_id="b"), NOW - 2),
        (b"c", made(content_id="c"), NOW - 2),
        (b"b", None, NOW - 1),
        (b"a", made(content_id="a", text="edited"), NOW),
        (b"b", made(content_id="b", text="shown again"), NOW),
        (b"c", made(content_id="c", created_at=NOW - 1), NOW),
    ]
    newest = DECODER.decode([Consumed(*record) for record in records]).newest
    assert newest == {
        b"a": Text("edited", "", NOW - 9),
        b"b": Text("shown again", "", NOW - 2, known=False),
        b"c": Text("hello", "", NOW - 1),
    }


@budget(deadline=None, derandomize=True, max_examples=300)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["content_id", "text", "title", "author", "created_at", "x"]), inner
                )
            ),
            max_leaves=8,
        ).map(lambda tree: json.dumps(tree).encode()),
    ),
    st.none() | st.binary(max_size=6),
)
def test_anything_is_either_a_content_or_rejected(value: bytes, key: bytes | None) -> None:
    decoded = decode((key, value))
    assert len(decoded.newest) + len(decoded.rejected) == 1


FAR = 7_000_000_000_000  # 2191


def test_no_content_is_of_a_later_time_than_now_whatever_the_kafka_timestamp_says() -> None:
    decoder = ContentDecoder(build({}), lambda: NOW)
    values = (made(), made(created_at=NOW - 5), made(created_at=FAR))
    records = [Consumed(b"c1", value, FAR) for value in values]
    bare, dated, refused = (decoder.decode([record]) for record in records)
    assert bare.newest == {b"c1": Text("hello", "", NOW, known=False)}
    assert dated.newest == {b"c1": Text("hello", "", NOW - 5)}
    assert [bad.reason for bad in refused.rejected] == [Reason.TIMESTAMP_IN_FUTURE]


def test_half_an_emoji_is_replaced_but_not_in_the_id() -> None:
    decoded = decode((b"c1", b'{"title":"ha \\ud83d","created_at":1.78e12}'))
    assert decoded.newest == {b"c1": Text("ha \ufffd", "", NOW)}
    (refused,) = decode(("x\ufffd".encode(), b'{"content_id":"x\\ud83d","text":"t"}')).rejected
    assert refused.reason is Reason.INVALID_ID


def test_a_compressed_content_is_named_as_one() -> None:
    (refused,) = decode((b"c1", gzip.compress(made()))).rejected
    assert "gzip" in refused.detail
