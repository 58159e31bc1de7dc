"""The same text under several ids, against comparing everything with everything."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.content.index import ContentIndex
from stream_app.ranking.texts import SAME, SameTexts
from tests.ranking import ranking_world as world


def obvious(index: ContentIndex) -> NDArray[np.bool_]:
    """[high, high], whether two rows hold the same text."""
    vectors = index.vectors[: index.high].astype(np.float64)
    apart = ((vectors[:, None] - vectors) ** 2).sum(axis=2)
    return (apart < SAME**2) & vectors.any(axis=1) & vectors.any(axis=1)[:, None]


def found(texts: SameTexts, high: int) -> NDArray[np.bool_]:
    groups = np.zeros((high, high), np.bool_)
    users, rows = texts.with_copies(np.arange(high), np.arange(high))
    groups[users, rows] = True
    return groups & (texts.numbers[:high] > 0)


def test_groups_follow_the_index() -> None:
    """Encoded again, in another batch, deleted, said anew, without text: 40 texts, 70 ids."""
    config = world.settings(content={"capacity": 60})
    index, rng = ContentIndex(config, world.MODEL), np.random.default_rng(1)
    said = rng.normal(size=(40, world.D))
    said /= np.linalg.norm(said, axis=1, keepdims=True)
    texts = SameTexts(index)
    most = 0
    for round_ in range(300):
        for _ in range(int(rng.integers(1, 9))):
            id_ = world.content_id(int(rng.integers(70)))
            kind = rng.random()
            if kind < 0.3:
                index.delete(id_)
            elif kind < 0.4:
                world.put_silent(index, id_, world.NOW + round_)
            else:
                again = said[rng.integers(40)] + rng.uniform(-1e-5, 1e-5, world.D)
                world.put(index, id_, again, world.NOW + round_)
        texts.adopt(index.drain_changes())
        expected = obvious(index)
        assert (found(texts, index.high) == expected).all()
        most = max(most, int(expected.sum(axis=0).max(initial=0)))
    assert most >= 4


def test_rounding_is_seen_through_and_another_word_is_not() -> None:
    """384 dimensions, half precision, and what batches of another length do to a vector."""
    config = world.settings(content={"dimensions": 384, "capacity": 2000})
    index, rng = ContentIndex(config, world.MODEL), np.random.default_rng(2)
    said = rng.normal(size=(500, 384))
    said /= np.linalg.norm(said, axis=1, keepdims=True)
    for i, vector in enumerate(said):
        world.put(index, world.content_id(i), vector, world.NOW)
        world.put(index, world.content_id(500 + i), vector + rng.uniform(-1e-5, 1e-5, 384), world.NOW)
        world.put(index, world.content_id(1000 + i), vector + rng.normal(size=384) * 5e-4, world.NOW)
    texts = SameTexts(index)
    texts.adopt(index.drain_changes())
    numbers = [
        texts.numbers[[index.rows[world.content_id(n + i)] for i in range(500)]] for n in (0, 500, 1000)
    ]
    assert (
        index.vectors[index.rows[world.content_id(0)]] != index.vectors[index.rows[world.content_id(500)]]
    ).any()
    assert (numbers[0] == numbers[1]).all()
    assert not (numbers[0] == numbers[2]).any()


def test_one_row_stands_for_its_text() -> None:
    config = world.settings()
    index = ContentIndex(config, world.MODEL)
    one, other = np.eye(world.D)[:2]
    for i, (vector, age) in enumerate([(one, 1), (one, 5), (one, 3), (other, 0), (other, 0)]):
        world.put(index, world.content_id(i), vector, world.NOW - age * world.HOUR)
    for i in (5, 6):
        world.put_silent(index, world.content_id(i), world.NOW)
    texts = SameTexts(index)
    texts.adopt(index.drain_changes())
    available, engaged = np.ones(7, np.bool_), np.zeros(7, np.float32)
    later = 3 if index.keys[3] > index.keys[4] else 4
    assert sorted(texts.spare(available, engaged)) == [0, 2, later], "the first created stays"
    engaged[2] = 0.5
    assert sorted(texts.spare(available, engaged)) == [0, 1, later], "or the one engaged with most"
    available[2] = False
    assert sorted(texts.spare(available, engaged)) == [0, later], "among those that may be recommended"


def test_many_copies_of_many_texts_cost_what_they_are() -> None:
    users = np.repeat(np.arange(50), 100)
    config = world.settings(content={"capacity": 1000})
    index, rng = ContentIndex(config, world.MODEL), np.random.default_rng(3)
    said = rng.normal(size=(10, world.D))
    for i in range(1000):
        world.put(index, world.content_id(i), said[i % 10], world.NOW)
    texts = SameTexts(index)
    texts.adopt(index.drain_changes())
    who, rows = texts.with_copies(users, np.tile(np.arange(100), 50))
    assert len(who) == len(rows) == 5000 + 50 * 1000
    assert len(np.unique(who * 1000 + rows)) == 50 * 1000
