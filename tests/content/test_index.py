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
from stream_app.content.index import DAY_MS, ContentIndex
from stream_app.content.vectors import ContentVector
from stream_app.hashing import key64
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
    assert index.high == len(index.ids) <= len(index.live)
    assert REGISTRY.get_sample_value("stream_app_content_indexed") == len(model)
    for content_id, wanted in model.items():
        row = index.rows[content_id]
        assert index.ids[row] == content_id
        assert index.row_of_key(key64(content_id)) == row
        assert index.keys[row] == key64(content_id)
        assert index.created_at[row] == wanted.created_at
        assert index.authors[row] == (key64(wanted.author) if wanted.author else 0)
        np.testing.assert_array_equal(index.vectors[row], wanted.vector.astype(np.float32))
    free = ~index.live
    assert not index.vectors[free].any()
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
    mirror = np.zeros_like(index.vectors)
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
            np.testing.assert_array_equal(mirror, index.vectors)


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
