"""Which contents an encoder has vectors of, and whether the others will come."""

from __future__ import annotations

import msgspec
import numpy as np

from stream_app.content import vectors
from stream_app.content.coverage import Coverage, Mark, mark_key
from stream_app.content.vectors import NOTHING, ContentVector, vector_key
from stream_app.hashing import model_code

MINE, OTHER = model_code("mine"), model_code("other")


def record(content: bytes, model: str, at: int = 10) -> tuple[bytes, bytes]:
    return vector_key(content, model_code(model)), vectors.encode(ContentVector(model, "", 0, at, NOTHING))


def mark(partition: int, at: int, partitions: int = 2, model: str = "mine") -> tuple[bytes, bytes]:
    return mark_key(model_code(model), partition), msgspec.json.encode(Mark(model, partitions, at))


def covering(*records: tuple[bytes, bytes | None]) -> Coverage:
    coverage = Coverage("mine")
    coverage.apply(records)
    return coverage


def test_what_others_alone_have_is_missing_until_it_comes_or_is_deleted() -> None:
    coverage = covering(
        record(b"a", "mine"), record(b"a", "other"), record(b"b", "other"), record(b"c", "other")
    )
    assert (coverage.missing, coverage.complete) == (2, False)
    coverage.apply([record(b"b", "mine"), (vector_key(b"c", OTHER), None)])
    assert (coverage.missing, coverage.complete) == (0, False), "no mark: more may come"
    coverage.apply([(vector_key(b"a", MINE), None)])
    assert coverage.missing == 1
    coverage.apply([(vector_key(b"a", OTHER), None)])
    assert coverage.missing == 0


def test_what_is_not_there_after_all_was_encoded_will_not_come() -> None:
    coverage = covering(record(b"a", "other", at=50), mark(0, 100))
    assert (coverage.missing, coverage.complete) == (1, False), "the other partition"
    coverage.apply([mark(1, 0)])
    assert (coverage.missing, coverage.complete) == (1, False), "begun, not done"
    coverage.apply([mark(1, 60)])
    assert (coverage.missing, coverage.complete) == (0, True)
    coverage.apply([record(b"b", "other", at=70)])
    assert (coverage.missing, coverage.complete) == (1, False), "came later"
    coverage.apply([mark(1, 80)])
    assert (coverage.missing, coverage.complete) == (0, True)
    coverage.apply([(mark_key(MINE, 0), None)])
    assert (coverage.missing, coverage.complete) == (2, False), "retired"


def test_marks_and_former_vectors_of_others_say_nothing() -> None:
    gone = vector_key(b"a", OTHER, 9), record(b"a", "other")[1]
    coverage = covering(
        mark(0, 100, 1, "other"), gone, (b"\0?", b"?"), (None, None), (mark_key(MINE, 0), b"no JSON")
    )
    assert (coverage.missing, coverage.complete, coverage.marks) == (0, False, {})


def test_records_with_an_earlier_versions_keys_count_by_their_values() -> None:
    def plain(content: bytes, model: str) -> tuple[bytes, bytes]:
        return content, record(content, model)[1]

    coverage = covering(plain(b"a", "mine"), plain(b"b", "other"), (b"c", b"unreadable"))
    assert ([coverage.covers(c) for c in (b"a", b"b", b"c")], coverage.missing) == ([True, False, False], 1)
    coverage.apply([plain(b"b", "mine")])  # overwritten, as that version did
    assert (coverage.covers(b"b"), coverage.missing) == (True, 0)
    coverage.apply([record(b"a", "mine"), (b"a", None)])
    assert coverage.covers(b"a"), "the record with the new key stands"


def test_offsets_are_trusted_by_their_mark_or_where_nothing_is_missing() -> None:
    assert not covering().trusts(0), "an empty topic: whatever was committed, it is not here"
    assert not covering(record(b"a", "mine"), record(b"b", "other")).trusts(0)
    assert covering(record(b"a", "mine")).trusts(0), "an earlier version wrote no marks"
    marked = covering(record(b"b", "other"), mark(0, 0))
    assert (marked.trusts(0), marked.trusts(1)) == (True, False)


def test_keys_are_what_they_say() -> None:
    key = vector_key("é".encode(), MINE, 0)
    assert vectors.split_key(key) == ("é".encode(), MINE, 0)
    assert vectors.split_key(b"a\nb") == (b"a\nb", None, None)
    for none in (b"", b"\0", b"\0a", b"a\0", b"a\0xyz", b"a\0" + b"0" * 9, key + b"\0", mark_key(MINE, 1)):
        assert vectors.split_key(none) is None
    assert vectors.tag(NOTHING) == 0
    assert len({vectors.tag(np.full(8, n, np.float16)) for n in range(2_000)} - set(range(1, 256))) == 0
