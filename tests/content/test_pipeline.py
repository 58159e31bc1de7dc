"""The way from contents to records, with an encoder that counts what it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream_app.content import vectors
from stream_app.content.index import ContentIndex
from stream_app.content.pipeline import ContentPipeline
from stream_app.content.published import PublishedContents
from stream_app.content.schema import Text
from stream_app.content.vectors import ContentVector, tag, vector_key
from stream_app.hashing import key64, model_code
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


class Topic:
    """``content-vectors`` as one encoder's pipeline fills it, and what stands there by now."""

    def __init__(self, model: str = "counting", standing: dict[bytes, bytes] | None = None) -> None:
        self.encoder = CountingEncoder()
        self.encoder.model = model
        self.standing = {} if standing is None else standing
        self.now_ms = 1_000
        self.published = PublishedContents(SETTINGS, model)
        self.published.apply(self.standing.items())
        self.pipeline = ContentPipeline(SETTINGS, self.encoder, self.published, lambda: self.now_ms)

    def take(self, contents: dict[bytes, Text | None]) -> list[tuple[bytes, bytes | None]]:
        records = [(key, value) for _, key, value in self.pipeline.records(contents)]
        for key, value in records:
            if value is None:
                self.standing.pop(key, None)
            else:
                self.standing[key] = value
        self.published.apply(records)
        return records

    def restarted(self, model: str = "counting") -> Topic:
        """Another worker, on what is left after compaction."""
        return Topic(model, self.standing)

    def record(self, content_id: bytes, model: str = "counting") -> ContentVector:
        return vectors.decode(self.standing[vector_key(content_id, model_code(model))])

    def index(self, model: str = "counting") -> ContentIndex:
        index = ContentIndex(SETTINGS, model)
        index.apply(self.standing.items())
        return index


def vector(text: str) -> NDArray[np.float16]:
    return CountingEncoder().encode([text]).astype(np.float16)[0]


def key(content_id: bytes, model: str = "counting") -> bytes:
    return vector_key(content_id, model_code(model))


def test_records_carry_what_the_index_needs() -> None:
    topic = Topic()
    records = topic.take(
        {b"a": Text("one", "ann", 5), b"b": None, b"c": Text("two", "", 6), b"d": Text("", "", 7)}
    )
    assert [key for key, _ in records] == [key(b"a"), key(b"b"), key(b"c"), key(b"d")]
    assert records[1][1] is None
    index = topic.index()
    assert index.rows.keys() == {b"a", b"c", b"d"}
    wanted = np.array([vector("one"), vector("two"), np.zeros(8)], np.float32)
    np.testing.assert_array_equal(index.vectors[[index.rows[c] for c in (b"a", b"c", b"d")]], wanted)
    assert index.created_at[index.rows[b"c"]] == 6
    assert topic.encoder.asked == ["one", "two"], "no text, nothing to encode"


def test_a_text_is_encoded_once_and_its_records_are_made_again() -> None:
    topic = Topic()
    topic.take({b"a": Text("one", "ann", 5), b"b": Text("one", "bob", 5)})
    before = topic.record(b"a")
    topic.take({b"a": Text("one", "eve", 7), b"c": Text("two", "", 5)})
    assert topic.encoder.asked == ["one", "two"]
    after = topic.record(b"a")
    np.testing.assert_array_equal(before.vector, after.vector)
    assert (after.author, after.created_at) == ("eve", 7)


def test_what_is_remembered_is_bounded_and_the_least_used_goes_first() -> None:
    topic = Topic()
    for text in ("1", "2", "3", "1", "4", "1", "2"):
        topic.take({b"a": Text(text, "", 0)})
    assert topic.encoder.asked == ["1", "2", "3", "4", "2"]
    topic.take({b"%d" % i: Text(f"many {i}", "", 0) for i in range(50)})
    assert len(topic.pipeline._remembered) == 3


# -- creation times


def undated(text: str, came_at: int) -> Text:
    return Text(text, "", came_at, known=False)


def test_a_content_without_created_at_keeps_its_first_time_whichever_way_it_comes_again() -> None:
    topic = Topic()
    topic.take({b"a": undated("one", 100), b"b": Text("one", "", 50)})

    def times(model: str = "counting") -> list[tuple[int, bool]]:
        return [(r.created_at, r.known) for r in (topic.record(c, model) for c in (b"a", b"b"))]

    topic.take({b"a": undated("one", 200), b"b": undated("one", 200)})  # sent again
    assert times() == [(100, False), (50, True)]
    topic.take({b"a": undated("edited", 300), b"b": undated("edited", 300)})
    assert times() == [(100, False), (50, True)]
    topic = topic.restarted()
    topic.take({b"a": undated("more", 400), b"b": undated("more", 400)})
    assert times() == [(100, False), (50, True)]
    topic = topic.restarted("newer")
    topic.take({b"a": undated("more", 400), b"b": undated("more", 400)})
    assert times("newer") == [(100, False), (50, True)]
    topic.take({b"a": None, b"b": None})  # hidden for a while
    topic = topic.restarted("newer")
    topic.take({b"a": undated("shown again", 500), b"b": undated("shown again", 500)})
    assert times("newer") == [(100, False), (50, True)]
    topic.take({b"a": Text("said at last", "", 450), b"b": Text("corrected", "", 60)})
    assert times("newer") == [(450, True), (60, True)]


# -- deletions, and the vectors that contents had before


def test_a_deletion_removes_the_records_of_all_encoders_and_keeps_their_vectors() -> None:
    topic = Topic()
    topic.take({b"a": Text("one", "ann", 5), b"b": Text("two", "", 5)})
    topic.standing[b"a"] = vectors.encode(
        ContentVector("oldest", "ann", 5, 0, vector("0"))
    )  # earlier version's
    topic = topic.restarted("newer")
    topic.take({b"a": Text("one", "ann", 5)})
    topic.now_ms = 2_000
    topic.take({b"a": None})
    assert topic.standing.keys() == {
        key(b"b"),
        *(key(b"a", model) + b"\0%02x" % tag(vector("one")) for model in ("counting", "newer")),
        key(b"a", "oldest") + b"\0%02x" % tag(vector("0")),
    }
    for model in ("counting", "newer"):
        index = topic.index(model)
        assert b"a" not in index.rows
        row = index.row_of_version(key64(b"a"), tag(vector("one")))
        np.testing.assert_array_equal(index.vectors[row], vector("one").astype(np.float32))
    kept = vectors.decode(topic.standing[vector_key(b"a", model_code("newer"), tag(vector("one")))])
    assert (kept.author, kept.encoded_at) == ("", 2_000), "the vector, and since when; nothing else"


def test_the_vector_before_a_change_is_kept_and_nothing_where_it_is_the_same() -> None:
    topic = Topic()
    topic.take({b"a": Text("one", "", 5), b"silent": Text("", "", 5)})
    assert len(topic.take({b"a": Text("one", "eve", 6)})) == 1
    topic.take({b"a": Text("two", "", 6), b"silent": Text("found words", "", 5)})
    topic.take({b"a": Text("", "", 6)})
    index = topic.restarted().index()
    for text in ("one", "two"):
        row = index.row_of_version(key64(b"a"), tag(vector(text)))
        np.testing.assert_array_equal(index.vectors[row], vector(text).astype(np.float32))
    assert index.row_of_version(key64(b"a"), 0) == index.rows[b"a"]
    row = index.row_of_version(key64(b"silent"), 0)
    assert row != index.rows[b"silent"]
    assert not index.vectors[row].any()


def test_former_vectors_are_outdated_by_their_time() -> None:
    topic = Topic()
    for topic.now_ms, text in ((1_000, "one"), (2_000, "two"), (3_000, "three")):
        topic.take({b"a": Text(text, "", 5)})
    published = topic.restarted().published
    assert [list(published.outdated(before)) for before in (2_000, 2_001)] == [
        [],
        [key(b"a") + b"\0%02x" % tag(vector("one"))],
    ]
    assert len(list(published.outdated(9_000))) == 2


def test_a_record_with_an_earlier_versions_key_is_replaced_and_its_vector_kept() -> None:
    topic = Topic(standing={b"a": vectors.encode(ContentVector("counting", "", 5, 0, vector("one")))})
    records = topic.take({b"a": undated("two", 900)})
    assert topic.standing.keys() == {key(b"a"), key(b"a") + b"\0%02x" % tag(vector("one"))}
    assert records[-1] == (b"a", None), "after the new record: a reader never misses the content"
    assert topic.record(b"a").created_at == 5


def test_another_encoder_overwrites_nothing() -> None:
    topic = Topic()
    topic.take({b"a": Text("one", "", 5)})
    before = dict(topic.standing)
    newer = topic.restarted("newer")
    newer.take({b"a": Text("one", "", 5)})
    newer.take({b"a": Text("two", "", 5)})
    assert {key: newer.standing[key] for key in before} == before
