"""The content index against a dictionary that says what must stand in it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from numpy.typing import NDArray
from prometheus_client import REGISTRY

from stream_app.content import vectors
from stream_app.content.coverage import mark_key
from stream_app.content.index import DAY_MS, ContentIndex
from stream_app.content.vectors import NOTHING, ContentVector, tag, vector_key
from stream_app.hashing import key64, model_code
from stream_app.settings import Settings, build

D = 8
MAX_AGE_DAYS = 1.0


def small(capacity: int = 5) -> Settings:
    return build({"content": {"capacity": capacity, "dimensions": D, "max_age_days": MAX_AGE_DAYS}})


def unit(seed: int) -> NDArray[np.float16]:
    vector = np.random.default_rng(seed).standard_normal(D)
    return (vector / np.linalg.norm(vector)).astype(np.float16)


def content(seed: int, created_at: int = 0, author: str = "", model: str = "m") -> ContentVector:
    return ContentVector(model, author, created_at, 0, unit(seed))


def rejected(reason: str) -> float:
    return REGISTRY.get_sample_value("stream_app_content_rejected_total", {"reason": reason}) or 0.0


def check(index: ContentIndex, model: dict[bytes, ContentVector]) -> None:
    """Every array, map and count says the same as the dictionary."""
    assert index.rows.keys() == model.keys()
    assert len(index) == index.size == len(model) == int(index.live.sum())
    assert len(set(index.rows.values())) == len(model)
    assert index.high == len(index.ids) <= len(index.keys)
    assert REGISTRY.get_sample_value("stream_app_content_indexed") == len(model)
    for content_id, wanted in model.items():
        row = index.rows[content_id]
        assert index.ids[row] == content_id
        assert index.row_of_key(key64(content_id)) == row
        assert index.keys[row] == key64(content_id)
        assert index.created_at[row] == wanted.created_at
        assert index.authors[row] == (key64(wanted.author) if wanted.author else 0)
        np.testing.assert_array_equal(index.vectors[row], wanted.vector.astype(np.float32))
    free = ~index.live[: len(index.keys)]
    assert not index.live[len(index.keys) :].any()
    assert not index.vectors[: len(index.keys)][free].any()
    assert not index.versions[: len(index.keys)][free].any()
    assert not index.keys[free].any()
    assert not index.created_at[free].any()
    assert not index.authors[free].any()
    assert all(index.ids[row] is None for row in np.flatnonzero(free[: index.high]))


KEYS = st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h"])
# distinct creation times, so that "the oldest" is one content
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.integers(0, 40)),
        st.tuples(st.just("delete"), KEYS, st.just(0)),
        st.tuples(st.just("evict"), st.just(b""), st.integers(0, 40)),
    ),
    max_size=80,
)


@budget(deadline=None, derandomize=True, max_examples=150)
@given(STEPS)
def test_any_order_of_changes_leaves_what_a_dictionary_would_hold(
    steps: list[tuple[str, bytes, int]],
) -> None:
    index, model = ContentIndex(small(), "m"), dict[bytes, ContentVector]()
    mirror = np.zeros_like(index.vectors[: len(index.keys)])
    for number, (verb, key, hours) in enumerate(steps):
        created_at = hours * 3_600_000 + number
        if verb == "put":
            new = content(number, created_at, author=f"author {number % 3}" if number % 2 else "")
            row = index.put(key, new)
            full = key not in model and len(model) == 5
            oldest = min(model, key=lambda k: model[k].created_at) if full else None
            if oldest is not None and model[oldest].created_at > created_at:
                assert row is None
            else:
                if oldest is not None:
                    del model[oldest]
                model[key] = new
                assert row == index.rows[key]
        elif verb == "delete":
            assert index.delete(key) is (model.pop(key, None) is not None)
        else:
            old = [k for k, c in model.items() if c.created_at < created_at - MAX_AGE_DAYS * DAY_MS]
            assert index.evict(created_at) == len(old)
            for k in old:
                del model[k]
        check(index, model)
        if number % 7 == 0:
            rows = index.drain_changes()
            mirror[rows] = index.vectors[rows]
            np.testing.assert_array_equal(mirror, index.vectors[: len(mirror)])


def test_the_bookkeeping_of_ages_stays_bounded_under_updates() -> None:
    index = ContentIndex(small(), "m")
    for number in range(2000):
        index.put(b"%d" % (number % 3), content(number, created_at=number))
    assert len(index._by_age) <= 2 * 3 + 65
    assert index.evict(1999 + int(MAX_AGE_DAYS * DAY_MS)) == 2
    assert index.rows.keys() == {b"%d" % (1999 % 3)}


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (content(1, model="another"), "other_model"),
        (ContentVector("m", "", 0, 0, unit(1)[:4]), "wrong_dimensions"),
        (ContentVector("m", "", 0, 0, np.zeros(D, np.float16)), "not_a_unit_vector"),
        (ContentVector("m", "", 0, 0, np.full(D, np.nan, np.float16)), "not_a_unit_vector"),
        (ContentVector("m", "", 0, 0, np.full(D, np.inf, np.float16)), "not_a_unit_vector"),
    ],
)
def test_a_rejected_content_leaves_what_stood_there(new: ContentVector, reason: str) -> None:
    index, before = ContentIndex(small(), "m"), content(7, author="x")
    index.put(b"a", before)
    count = rejected(reason)
    assert index.put(b"a", new) is None
    assert index.put(b"b", new) is None
    assert rejected(reason) == count + 2
    check(index, {b"a": before})


def test_records_are_applied_in_order_and_bad_ones_skipped() -> None:
    index = ContentIndex(small(), "m")
    good, last = content(1, 5, "ann"), content(2, 6)
    bad_name = bytearray(vectors.encode(content(3)))
    bad_name[24] = 0xFF  # first byte of the model's name
    before = rejected("record_format"), rejected("missing_key")
    index.apply(
        [
            (b"a", vectors.encode(good)),
            (None, vectors.encode(good)),
            (b"b", b""),
            (b"b", vectors.encode(good)[:-1]),
            (b"b", b"\x09" + vectors.encode(good)[1:]),
            (b"b", bytes(bad_name)),
            (b"c", vectors.encode(good)),
            (b"c", None),
            (b"unknown", None),
            (b"a", vectors.encode(last)),
        ]
    )
    assert (rejected("record_format"), rejected("missing_key")) == (before[0] + 4, before[1] + 1)
    check(index, {b"a": last})


def test_changes_are_drained_once() -> None:
    index = ContentIndex(small(), "m")
    a, b = index.put(b"a", content(1)), index.put(b"b", content(2))
    index.put(b"a", content(3))
    assert index.drain_changes().tolist() == [a, b]
    assert index.drain_changes().tolist() == []
    index.delete(b"b")
    assert index.drain_changes().tolist() == [b]
    assert index.put(b"c", content(4)) == b


# -- keys, encoders, former vectors


CODE, OTHER = model_code("m"), model_code("another")


def put(content_id: bytes, seed: int, code: int = CODE, **more: int) -> tuple[bytes, bytes]:
    model = "m" if code == CODE else "another"
    return vector_key(content_id, code), vectors.encode(content(seed, model=model, **more))


def former(index: ContentIndex, content_id: bytes, seed: int) -> NDArray[np.float32] | None:
    row = index.row_of_version(key64(content_id), tag(unit(seed)))
    return None if row is None else index.vectors[row]


def test_another_encoders_records_are_neither_read_nor_counted() -> None:
    index, before = ContentIndex(small(), "m"), rejected("other_model")
    index.apply([put(b"a", 1), put(b"a", 2, OTHER), put(b"b", 3, OTHER), (vector_key(b"a", OTHER), None)])
    index.apply([(mark_key(CODE, 0), b"{}"), (b"\0\0", b"?"), (vector_key(b"a", OTHER, 7), b"")])
    check(index, {b"a": content(1)})
    assert rejected("other_model") == before


def test_a_record_with_an_earlier_versions_key_gives_way_to_ours() -> None:
    index = ContentIndex(small(), "m")
    index.apply([(b"a", vectors.encode(content(1))), (b"b", vectors.encode(content(2)))])
    row = index.rows[b"a"]
    index.apply([put(b"a", 3), (b"a", None), (b"b", None)])
    check(index, {b"a": content(3)})
    assert index.rows[b"a"] == row, "not forgotten in between"
    index.apply([(b"a", vectors.encode(content(4)))])
    check(index, {b"a": content(3)})
    index.apply([(vector_key(b"a", CODE), None)])
    check(index, {})


def test_the_vectors_of_what_was_deleted_replaced_or_evicted_are_found_by_their_tags() -> None:
    index = ContentIndex(small(capacity=2), "m")
    index.apply([put(b"a", 1, created_at=1), put(b"b", 2, created_at=2)])
    index.apply([put(b"a", 3, created_at=1), (vector_key(b"b", CODE), None)])
    for content_id, seed in ((b"a", 1), (b"a", 3), (b"b", 2)):
        np.testing.assert_array_equal(former(index, content_id, seed), unit(seed).astype(np.float32))
    assert former(index, b"b", 1) is None, "another content's"
    index.apply([put(b"c", 4, created_at=3), put(b"d", 5, created_at=4), put(b"e", 6, created_at=0)])
    check(index, {b"c": content(4, 3), b"d": content(5, 4)})
    for content_id, seed in ((b"a", 3), (b"e", 6)):  # evicted; never taken, since it is older than all
        np.testing.assert_array_equal(former(index, content_id, seed), unit(seed).astype(np.float32))
    row = index.row_of_version(key64(b"a"), tag(unit(1)))
    assert row is not None
    assert row >= len(index.keys), "out of the ranking's sight"
    assert (index.names[row], index.live[row]) == (b"a", False)


def test_former_vectors_come_and_go_by_their_records_and_are_bounded() -> None:
    settings = build({"content": {"capacity": 5, "dimensions": D, "former_vectors": 3}})
    dropped = REGISTRY.get_sample_value("stream_app_content_former_dropped_total") or 0.0
    index = ContentIndex(settings, "m")
    keys = [vector_key(b"%d" % n, CODE, tag(unit(n))) for n in range(5)]
    index.apply((keys[n], vectors.encode(content(n))) for n in range(4))
    assert former(index, b"0", 0) is None, "the oldest gave way"
    assert REGISTRY.get_sample_value("stream_app_content_former_dropped_total") == dropped + 1
    index.apply([(keys[2], None), (keys[4], vectors.encode(content(4)))])
    assert [former(index, b"%d" % n, n) is not None for n in range(5)] == [False, True, False, True, True]
    assert REGISTRY.get_sample_value("stream_app_content_former") == 3
    none = ContentIndex(build({"content": {"dimensions": D, "former_vectors": 0}}), "m")
    none.apply([put(b"a", 1), (vector_key(b"a", CODE), None)])
    assert former(none, b"a", 1) is None


def test_of_two_contents_with_one_key_the_other_is_found_when_one_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stream_app.content.index.key64", lambda _: 7)
    for gone, left, seed in ((b"a", b"b", 2), (b"b", b"a", 1)):
        index = ContentIndex(small(), "m")
        index.apply([put(b"a", 1), put(b"b", 2)])
        assert index.row_of_version(7, tag(unit(1))) == index.rows[b"a"]
        assert index.row_of_version(7, tag(unit(2))) == index.rows[b"b"]
        index.delete(gone)
        assert index.row_of_key(7) == index.row_of_version(7, tag(unit(seed))) == index.rows[left]
        index.delete(left)
        assert index.row_of_key(7) is None


def test_a_content_without_text_stands_in_a_row_without_a_vector() -> None:
    index = ContentIndex(small(), "m")
    silent = ContentVector("m", "ann", 5, 0, NOTHING)
    index.apply([(vector_key(b"a", CODE), vectors.encode(silent)), put(b"old", 9)])
    row = index.rows[b"a"]
    assert (index.live[row], index.versions[row], index.vectors[row].any()) == (True, 0, False)
    assert index.row_of_version(key64(b"a"), 0) == row
    index.apply([put(b"a", 1)])
    assert index.versions[row] == tag(unit(1)) > 0
    before = index.row_of_version(key64(b"a"), 0)
    assert before not in (None, row), "what was added without a vector is taken back without one"
    assert not index.vectors[before].any()
    # in records of earlier versions 0 says nothing: the content as it is, or was last
    assert index.row_of_version(key64(b"old"), 0) == index.rows[b"old"]
    index.delete(b"old")
    np.testing.assert_array_equal(
        index.vectors[index.row_of_version(key64(b"old"), 0)], unit(9).astype(np.float32)
    )
    index.apply([(vector_key(b"a", CODE), vectors.encode(silent))])
    assert not index.vectors[row].any()


def test_a_content_whose_creation_is_not_known_is_of_no_ones_future() -> None:
    index = ContentIndex(small(), "m")
    index.put(b"a", ContentVector("m", "", 900, 0, unit(1), known=True))
    index.put(b"b", ContentVector("m", "", 900, 0, unit(2)))
    assert index.created_by(500).tolist() == [900, 500]
    assert index.created_by(1000).tolist() == [900, 900]
