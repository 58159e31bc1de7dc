"""The way from contents to records, with an encoder that counts what it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream_app.content import vectors
from stream_app.content.index import ContentIndex
from stream_app.content.pipeline import ContentPipeline
from stream_app.content.schema import Text
from stream_app.settings import build

SETTINGS = build({"content": {"dimensions": 8, "remembered_texts": 3}})


class CountingEncoder:
    """A unit vector that only depends on the text."""

    model = "counting"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked += texts
        drawn = [np.random.default_rng(list(t.encode())).standard_normal(8) for t in texts]
        return np.array([v / np.linalg.norm(v) for v in drawn], np.float32)


def test_records_carry_what_the_index_needs() -> None:
    encoder = CountingEncoder()
    records = ContentPipeline(SETTINGS, encoder).records(
        {b"a": Text("one", "ann", 5), b"b": None, b"c": Text("two", "", 6)}
    )
    assert [key for key, _ in records] == [b"a", b"b", b"c"]
    assert records[1][1] is None
    index = ContentIndex(SETTINGS, "counting")
    index.apply([(b"b", records[0][1]), *records])
    assert index.rows.keys() == {b"a", b"c"}
    wanted = CountingEncoder().encode(["one", "two"]).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(index.vectors[[index.rows[b"a"], index.rows[b"c"]]], wanted)
    assert index.created_at[index.rows[b"c"]] == 6


def test_a_text_is_encoded_once_and_its_records_are_made_again() -> None:
    encoder = CountingEncoder()
    pipeline = ContentPipeline(SETTINGS, encoder)
    first = pipeline.records({b"a": Text("one", "ann", 5), b"b": Text("one", "bob", 5)})
    again = pipeline.records({b"a": Text("one", "eve", 7), b"c": Text("two", "", 5)})
    assert encoder.asked == ["one", "two"]
    before, after = (vectors.decode(r[0][1] or b"") for r in (first, again))
    np.testing.assert_array_equal(before.vector, after.vector)
    assert (after.author, after.created_at) == ("eve", 7)


def test_what_is_remembered_is_bounded_and_the_least_used_goes_first() -> None:
    encoder = CountingEncoder()
    pipeline = ContentPipeline(SETTINGS, encoder)
    for text in ("1", "2", "3", "1", "4", "1", "2"):
        pipeline.records({b"a": Text(text, "", 0)})
    assert encoder.asked == ["1", "2", "3", "4", "2"]
    pipeline.records({b"%d" % i: Text(f"many {i}", "", 0) for i in range(50)})
    assert len(pipeline._remembered) == 3
