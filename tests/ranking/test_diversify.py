"""Variety and balance of slates, against their definitions written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stream_app.content.index import ContentIndex
from stream_app.interests import record
from stream_app.ranking.diversify import LEAST_VOLUME, SMOOTHING, diversify
from stream_app.ranking.engine import RankingEngine
from stream_app.ranking.popularity import ContentStatistics
from stream_app.ranking.ranked import Ranked, User
from stream_app.ranking.sides import MOST, Sides, sides
from tests.ranking import learned_world
from tests.ranking import ranking_world as world
from tests.ranking.ranking_world import Engagement


def volume(vectors: np.ndarray, chosen: list[int]) -> float:
    """log det of the Gram matrix."""
    return float(np.linalg.slogdet(vectors[chosen] @ vectors[chosen].T)[1]) if chosen else 0.0


def divergence(shares: np.ndarray, own: np.ndarray, chosen: list[int]) -> float:
    """places · KL(p ‖ q) of a slate."""
    q = np.bincount(own[chosen], minlength=len(shares)) / len(chosen)
    q = (1 - SMOOTHING) * q + SMOOTHING * shares
    some = shares > 0
    return len(chosen) * float((shares[some] * np.log(shares[some] / q[some])).sum())


def greedy(scores, valid, vectors, authors, places, diversity, cap, own, shares, weight):  # type: ignore[no-untyped-def]
    """For one user, as the definition reads."""
    chosen: list[int] = []
    for _ in range(places):
        best, best_value = -1, -np.inf
        left = [c for c in range(len(scores)) if valid[c] and c not in chosen]
        same = {c: sum(authors[j] == authors[c] for j in chosen) for c in left}
        under = [c for c in left if not (cap and authors[c] and same[c] >= cap)]
        for c in under or left:
            added = volume(vectors, [*chosen, c]) - volume(vectors, chosen)
            score = scores[c] - weight * divergence(shares, own, [*chosen, c])
            value = (1 - diversity) * score + diversity * added
            if value > best_value:
                best, best_value = c, value
        chosen.append(best)
        if best < 0:
            chosen[-1:] = [-1] * (places - len(chosen) + 1)
            break
    return chosen


@pytest.mark.parametrize(
    ("diversity", "cap", "calibration"),
    [(0.0, 0, 0.0), (0.3, 0, 0.0), (0.3, 2, 0.5), (0.95, 1, 0.0), (0.7, 3, 2.0), (0.0, 0, 5.0)],
)
def test_slates_are_greedy_in_scores_volume_and_balance(
    diversity: float, cap: int, calibration: float
) -> None:
    rng = np.random.default_rng(11)
    b, k = 6, 25
    vectors = rng.normal(size=(b, k, 24)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    scores = rng.normal(size=(b, k)).astype(np.float32)
    authors = rng.integers(0, 5, size=(b, k))
    valid = rng.random((b, k)) < 0.8
    own = rng.integers(0, 3, size=(b, k))
    shares = rng.dirichlet([1.0, 1.0, 1.0], b).astype(np.float32)
    shares[0] = [0.6, 0.4, 0.0]
    tensors = map(torch.from_numpy, (scores, valid, vectors, authors))
    of_user = Sides(torch.from_numpy(own), torch.from_numpy(shares)) if calibration else None
    found = diversify(*tensors, 12, diversity, cap, of_user, calibration)
    for u in range(b):
        expected = greedy(
            scores[u], valid[u], vectors[u], authors[u], 12, diversity, cap, own[u], shares[u], calibration
        )
        assert found[u].tolist() == expected


def test_a_twin_waits_until_nothing_else_is_left() -> None:
    """Also one of several: what two contents make up between them is a repetition."""
    vectors = torch.nn.functional.normalize(
        torch.tensor([[[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]]]), dim=2
    )
    scores = torch.tensor([[5.0, 4.9, 4.8, 4.7, -5.0]])
    authors, valid = torch.zeros(1, 5, dtype=torch.int64), torch.ones(1, 5, dtype=torch.bool)
    assert diversify(scores, valid, vectors, authors, 5, 0.0, 0).tolist() == [[0, 1, 2, 3, 4]]
    assert diversify(scores, valid, vectors, authors, 5, 0.7, 0).tolist() == [[0, 2, 4, 1, 3]]
    gap = 0.7 / 0.3 * -np.log(LEAST_VOLUME)  # what a twin's score must be above the others'
    for more, expected in ((-0.01, [0, 2, 1]), (0.01, [0, 1, 2])):
        scores = torch.tensor([[60.0, 30 + gap + more, 30.0, -50.0, 29.0]])
        assert diversify(scores, valid, vectors, authors, 3, 0.7, 0).tolist() == [expected]


def test_ties_go_to_the_first_and_unknown_authors_are_not_capped() -> None:
    scores = torch.full((1, 6), 0.5)
    vectors = torch.nn.functional.normalize(torch.ones(1, 6, 4), dim=2)
    authors = torch.tensor([[0, 0, 0, 7, 7, 7]])
    for diversity in (0.0, 0.7):
        chosen = diversify(scores, torch.ones(1, 6, dtype=torch.bool), vectors, authors, 6, diversity, 1)
        assert chosen.tolist() == [[0, 1, 2, 3, 4, 5]]
        others = torch.tensor([[7, 7, 8, 7, 9, 9]])
        chosen = diversify(scores, torch.ones(1, 6, dtype=torch.bool), vectors, others, 6, diversity, 1)
        assert chosen.tolist() == [[0, 2, 4, 1, 3, 5]]


def test_sides_are_heaps_of_what_is_alike() -> None:
    rng = np.random.default_rng(4)
    subjects = np.eye(8)[:3]
    about = np.array([1, 0, 2, 1, 0, 1, 0])
    recent = (subjects[about] + 0.05 * rng.normal(size=(7, 8))).astype(np.float32)
    weights = np.array([[2, 1, 1, 0.5, 1, -9, 0], [1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, -1]], np.float32)
    candidates = (subjects[[2, 1, 0, 0]] + 0.05 * rng.normal(size=(4, 8))).astype(np.float32)
    found = sides(
        torch.from_numpy(candidates).expand(3, -1, -1),
        torch.from_numpy(recent).expand(3, -1, -1),
        torch.from_numpy(weights),
        torch.full((8,), 0.1),
    )
    assert found.of[0].tolist() == [2, 0, 1, 1]
    assert found.shares[0, :3].tolist() == pytest.approx([2.5 / 5.5, 2 / 5.5, 1 / 5.5])
    assert found.shares[1].tolist() == [1.0] + [0.0] * MOST
    assert found.of[1].tolist() == [0] * 4
    assert found.shares[2].tolist() == [0.0] * (MOST + 1)  # nothing to calibrate to
    chosen = diversify(
        torch.tensor([[1.0, 3, 2, 4]] * 3),
        torch.ones(3, 4, dtype=torch.bool),
        torch.from_numpy(candidates).expand(3, -1, -1),
        torch.zeros(3, 4, dtype=torch.int64),
        4,
        0.0,
        0,
        found,
        1.0,
    )
    assert chosen[2].tolist() == [3, 1, 2, 0]


def two_topics(calibration: float, ranker: str) -> tuple[RankingEngine, User, np.ndarray]:
    """A reader of 70 parts of one topic and 30 of another, who is offered more of the first; which contents
    are of the second."""
    config = learned_world.settings(
        ranking={
            "calibration": calibration,
            "diversity": 0.0,
            "author_cap": 0,
            "arms": [{"name": "all", "ranker": ranker, "share": 1.0}],
        }
    )
    rng = np.random.default_rng(0)
    index = ContentIndex(config, world.MODEL)
    topics = np.eye(world.D)[:2]
    second = np.arange(80) >= 50
    for i, other in enumerate(second.tolist()):
        vector = topics[int(other)] + 0.08 * rng.normal(size=world.D)
        world.put(index, world.content_id(i), vector, world.NOW - world.HOUR * (2 if other else 1))
    read = [*range(14), *range(50, 56)]
    user = record.decode(
        world.interest_record(
            config,
            index,
            [Engagement(world.content_id(i), world.NOW) for i in read],
            seen=[world.content_id(i) for i in read],
        )
    )
    statistics = ContentStatistics(config, index)
    statistics.stream_time = world.NOW
    engine = RankingEngine(config, index, statistics)
    if ranker == "learned":
        one = learned_world.published(1, strength=0.0)
        one.model.parameters["linear"][one.model.names.index("age")] = -2.0  # what is newer is above
        engine.adopt(one)
    return engine, (b"reader", user), second


def of_second(slate: Ranked, second: np.ndarray) -> int:
    return sum(int(second[int(item.content_id.removeprefix("content-"))]) for item in slate.items)


@pytest.mark.parametrize("ranker", ["blend", "learned"])
def test_a_many_sided_user_gets_a_many_sided_slate(ranker: str) -> None:
    engine, user, second = two_topics(0.0, ranker)
    assert of_second(engine.rank([user])[0], second) == 0
    engine, user, second = two_topics(20.0, ranker)
    (slate,) = engine.rank([user])
    assert len(slate.items) == 10
    assert of_second(slate, second) == 3


@pytest.mark.parametrize("ranker", ["blend", "learned"])
def test_balanced_slates_do_not_depend_on_companions(ranker: str) -> None:
    config = learned_world.settings(
        ranking={"calibration": 0.5, "arms": [{"name": "all", "ranker": ranker, "share": 1.0}]}
    )
    index = world.filled_index(config, 600)
    engine = learned_world.engine_over(config, index, learned_world.published(2))
    users: list[User] = [*world.some_users(config, index, 40), (b"nobody", None)]
    engine.refresh()
    together = engine.rank_prepared(users)
    alone = [engine.rank_prepared([user])[0] for user in users]
    assert [[i.content_id for i in s.items] for s in together] == [
        [i.content_id for i in s.items] for s in alone
    ]
