"""Following `co-engagement`: in whatever order things come, rows speak of their own contents."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import REGISTRY

from stream_app.content.index import ContentIndex
from stream_app.content.vectors import ContentVector
from stream_app.hashing import key64
from stream_app.learning.coengagement import CHANNELS, TOGETHER
from stream_app.learning.followed import FollowedNeighbours
from stream_app.learning.neighbours_record import Neighbours, decode, encode
from stream_app.settings import Content, Settings

MODEL = "a-model"
NOW = 1_700_000_000_000


def index_of(capacity: int = 8) -> ContentIndex:
    return ContentIndex(Settings(content=Content(capacity=capacity, dimensions=8)), MODEL)


def put(index: ContentIndex, name: str, created_at: int = NOW) -> int | None:
    vector = np.zeros(8, np.float16)
    vector[0] = 1
    return index.put(name.encode(), ContentVector(MODEL, "", created_at, created_at, vector))


def record(users: int, **together: int) -> bytes:
    """A content with so many users, and with how many of them it shares others."""
    counts = np.zeros((len(CHANNELS), len(together)), np.float32)
    counts[TOGETHER] = list(together.values())
    keys = np.array([key64(name) for name in together], np.uint64)
    return encode(Neighbours(users, 0.0, keys, counts))


def said(followed: FollowedNeighbours, index: ContentIndex, name: str) -> dict[str, float]:
    rows, counts = followed.together.row(index.rows[name.encode()])
    names = [(index.ids[row] or b"-").decode() for row in rows.tolist()]
    return dict(zip(names, counts[TOGETHER].tolist(), strict=True))


def test_a_record_is_held_until_its_content_comes() -> None:
    index = index_of()
    followed = FollowedNeighbours(index, 4)
    put(index, "b")
    followed.apply([(b"a", record(3, b=2))])
    put(index, "a")
    followed.adopt(index.drain_changes())
    assert said(followed, index, "a") == {"b": 2}
    assert followed.together.users[index.rows[b"a"]] == 3


def test_neighbours_that_are_not_known_are_left_out() -> None:
    index = index_of()
    followed = FollowedNeighbours(index, 4)
    for name in "ab":
        put(index, name)
    followed.apply([(b"a", record(3, b=2, c=1))])
    assert said(followed, index, "a") == {"b": 2}


@pytest.mark.parametrize("followed_first", [True, False])
def test_a_row_that_is_given_to_another_content_forgets_the_former(followed_first: bool) -> None:
    index = index_of()
    followed = FollowedNeighbours(index, 4)
    for name in "abc":
        put(index, name)
    followed.adopt(index.drain_changes())
    followed.apply([(b"a", record(3, b=2, c=1)), (b"b", record(4, a=2))])
    row = index.rows[b"b"]
    index.delete(b"b")
    assert put(index, "d") == row
    if followed_first:
        assert followed.adopt(index.drain_changes()).tolist() == [row]
    followed.apply([(b"d", record(9, c=5))])
    followed.adopt(index.drain_changes())
    assert said(followed, index, "a") == {"c": 1}
    assert said(followed, index, "d") == {"c": 5}
    assert followed.together.users[row] == 9


def test_what_is_held_is_bounded_and_a_tombstone_forgets() -> None:
    index = index_of(capacity=4)
    followed = FollowedNeighbours(index, 4)
    followed.apply([(b"c%d" % n, record(n)) for n in range(10)])
    followed.apply([(b"c9", None)])
    for n in range(6, 10):
        put(index, f"c{n}", NOW + n)
    followed.adopt(index.drain_changes())
    users = {n: float(followed.together.users[index.rows[b"c%d" % n]]) for n in range(6, 10)}
    assert users == {6: 6, 7: 7, 8: 8, 9: 0}
    assert followed.gone == {b"c%d" % n for n in range(6)}
    followed.apply([(b"c8", None), (None, record(1)), (b"c7", b"nonsense")])
    assert followed.together.users[index.rows[b"c8"]] == 0
    assert followed.together.users[index.rows[b"c7"]] == 7


def test_what_is_published_says_what_is_held() -> None:
    index = index_of()
    followed = FollowedNeighbours(index, 4)
    for name in "abc":
        put(index, name)
    followed.adopt(index.drain_changes())
    followed.apply([(b"a", record(3, b=2, c=1))])
    found = followed.record(index.rows[b"a"])
    assert found is not None
    key, value = found
    assert key == b"a"
    there = decode(value)
    assert there.users == 3
    assert dict(zip(there.keys.tolist(), there.counts[TOGETHER].tolist(), strict=True)) == {
        key64("b"): 2,
        key64("c"): 1,
    }
    index.delete(b"c")
    found = followed.record(index.rows[b"a"])
    assert found is not None
    assert decode(found[1]).keys.tolist() == [key64("b")]


def test_contents_that_left_the_index_are_gone_unless_they_come_back() -> None:
    index = index_of()
    followed = FollowedNeighbours(index, 4)
    for name in "abc":
        put(index, name)
    followed.adopt(index.drain_changes())
    for name in (b"a", b"c"):
        index.delete(name)
    put(index, "c")
    put(index, "d")
    followed.adopt(index.drain_changes())
    assert followed.gone == {b"a"}
    put(index, "a")
    followed.adopt(index.drain_changes())
    assert followed.gone == set()


def test_records_that_cannot_be_read_count_as_the_trainers() -> None:
    def rejected(role: str) -> float:
        labels = {"topic": "co-engagement"}
        return REGISTRY.get_sample_value(f"stream_app_{role}_rejected_total", labels) or 0.0

    before = rejected("trainer"), rejected("ranker")
    FollowedNeighbours(index_of(), 4).apply([(None, b"x"), (b"a", b"nonsense")])
    assert (rejected("trainer") - before[0], rejected("ranker") - before[1]) == (2, 0)
