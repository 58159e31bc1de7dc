"""Similar and trending contents, compared with the obvious computation."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
import pytest

from stream_app.content.model import model_id
from stream_app.content.vectors import ContentVector, encode
from stream_app.hashing import action_code
from stream_app.interests import statistics_record
from stream_app.serving.catalogue import BusyError, Catalogue
from stream_app.settings import Settings, build
from tests.interests.workers import NOW_MS, unit_vectors

SETTINGS = build({"content": {"dimensions": 16, "capacity": 50}})
VECTORS = unit_vectors(40, 16)


@dataclass
class Read:
    key: bytes | None
    value: bytes | None


def vectors(count: int, settings: Settings = SETTINGS) -> list[Read]:
    return [
        Read(b"c%d" % n, encode(ContentVector(model_id(settings), "", NOW_MS, NOW_MS, VECTORS[n])))
        for n in range(count)
    ]


def counted(content: bytes, likes: float, partition: int = 0) -> Read:
    half_lives = np.array(SETTINGS.interests.stats_half_lives_h, np.float32)
    start, middle = statistics_record.prefix(
        partition, np.array([action_code("like")], np.uint16), half_lives
    )
    counts = np.full(len(half_lives), likes, "<f4").tobytes()
    return Read(content, start + NOW_MS.to_bytes(8, "little", signed=True) + middle + counts)


def catalogue(count: int = 40, settings: Settings = SETTINGS) -> Catalogue:
    made = Catalogue(settings)
    made.learn(vectors(count, settings))  # type: ignore[arg-type]  # what is read of a record
    return made


def test_similar_are_the_nearest_by_cosine() -> None:
    made = catalogue()
    found = asyncio.run(made.similar("c3", 5))
    assert found is not None
    wide = VECTORS.astype(np.float32)
    cosines = wide @ wide[3]
    order = [n for n in np.argsort(-cosines).tolist() if n != 3][:5]
    assert [one.content_id for one in found.items] == [f"c{n}" for n in order]
    assert [one.score for one in found.items] == pytest.approx([float(cosines[n]) for n in order], abs=1e-5)
    assert asyncio.run(made.similar("c99", 5)) is None
    made.close()


def test_more_than_there_are() -> None:
    made = catalogue(3)
    found = asyncio.run(made.similar("c0", 100))
    assert found is not None
    assert {one.content_id for one in found.items} == {"c1", "c2"}
    made.close()


def test_deleted_contents_are_gone_at_once() -> None:
    made = catalogue()
    nearest = asyncio.run(made.similar("c3", 1))
    assert nearest is not None
    gone = nearest.items[0].content_id
    made.count([counted(gone.encode(), 9.0), counted(b"c3", 5.0)])  # type: ignore[list-item]
    assert [one.content_id for one in made.trending(10).items] == [gone, "c3"]
    made.learn([Read(gone.encode(), None)])  # type: ignore[list-item]
    found = asyncio.run(made.similar("c3", 40))
    assert found is not None
    assert gone not in {one.content_id for one in found.items}
    assert [one.content_id for one in made.trending(10).items] == ["c3"]
    assert asyncio.run(made.similar(gone, 1)) is None
    made.close()


def test_trending_adds_up_the_partitions() -> None:
    made = Catalogue(SETTINGS)
    made.count([counted(b"c1", 2.0), counted(b"c2", 3.0), counted(b"c1", 2.5, 1)])  # type: ignore[list-item]
    assert made.trending(10).items == [], "statistics may come before their contents"
    made.learn(vectors(5))  # type: ignore[arg-type]
    assert [(one.content_id, one.score) for one in made.trending(10).items] == [("c1", 4.5), ("c2", 3.0)]
    assert len(made.trending(1).items) == 1
    made.close()


def test_searches_wait_in_a_bounded_queue() -> None:
    async def run() -> int:
        made = catalogue(
            settings=build({"content": {"dimensions": 16, "capacity": 50}, "serving": {"queue": 2}})
        )
        asked = await asyncio.gather(*(made.similar("c1", 3) for _ in range(5)), return_exceptions=True)
        made.close()
        return sum(isinstance(answer, BusyError) for answer in asked)

    assert asyncio.run(run()) == 3


def test_what_says_the_same_comes_once_and_not_as_similar_to_itself() -> None:
    made = catalogue()
    again = (
        VECTORS.astype(np.float32) + np.random.default_rng(1).uniform(-1e-5, 1e-5, VECTORS.shape)
    ).astype(np.float16)

    def copy(of: int, name: bytes, later: int) -> Read:
        return Read(name, encode(ContentVector(model_id(SETTINGS), "", NOW_MS + later, NOW_MS, again[of])))

    near = asyncio.run(made.similar("c3", 5))
    assert near is not None
    best = int(near.items[0].content_id.removeprefix("c"))
    copies = [copy(3, b"c3-again", 1), copy(best, b"later", 1), copy(best, b"latest", 2)]
    made.learn(copies)  # type: ignore[arg-type]
    found = asyncio.run(made.similar("c3", 5))
    assert found is not None
    assert [one.content_id for one in found.items] == [one.content_id for one in near.items]
    of_copy = asyncio.run(made.similar("c3-again", 5))
    assert of_copy is not None
    assert [one.content_id for one in of_copy.items] == [one.content_id for one in near.items]
    made.count([counted(b"later", 3.0), counted(b"latest", 5.0), counted(b"c%d" % best, 4.0)])  # type: ignore[list-item]
    assert [one.content_id for one in made.trending(10).items] == ["latest"]
    made.learn([Read(b"latest", None)])  # type: ignore[list-item]
    assert [one.content_id for one in made.trending(10).items] == [f"c{best}"]
    made.close()


def test_nothing_is_similar_to_a_content_without_text() -> None:
    made = catalogue(5)
    nothing = np.zeros(0, np.float16)
    silent = encode(ContentVector(model_id(SETTINGS), "", NOW_MS, NOW_MS, nothing))
    made.learn([Read(b"image-1", silent), Read(b"image-2", silent)])  # type: ignore[list-item]
    found = asyncio.run(made.similar("image-1", 5))
    assert found is not None
    assert found.items == []
    found = asyncio.run(made.similar("c1", 10))
    assert found is not None
    assert {one.content_id for one in found.items} == {"c0", "c2", "c3", "c4"}
    made.count([counted(b"image-1", 3.0), counted(b"image-2", 2.0)])  # type: ignore[list-item]
    assert [one.content_id for one in made.trending(10).items] == ["image-1", "image-2"]
    made.close()


def test_equals_trend_in_the_same_order_on_every_replica() -> None:
    answers = []
    for seed in (1, 2):
        made = Catalogue(SETTINGS)
        rng = np.random.default_rng(seed)
        made.learn([vectors(40)[n] for n in rng.permutation(40)])  # type: ignore[arg-type]
        made.count([counted(b"c%d" % n, 1.0) for n in range(40)])  # type: ignore[arg-type]
        answers.append(made.trending(7))
        made.close()
    assert answers[0] == answers[1]
