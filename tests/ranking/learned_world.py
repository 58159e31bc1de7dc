"""Worlds for the learned ranker: statistics, co-engagement and models beside contents and users, by seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_app.content.index import ContentIndex
from stream_app.learning import neighbours_record
from stream_app.learning.activity import HALF_LIVES_H, WEIGHTED, Catalogue
from stream_app.learning.coengagement import CoEngagement
from stream_app.learning.features import BANDS, NAMES
from stream_app.learning.habits import AgeHabits
from stream_app.learning.model import SoftmaxRanker
from stream_app.learning.neighbours_record import Neighbours
from stream_app.ranking.engine import RankingEngine
from stream_app.ranking.popularity import ContentStatistics
from stream_app.ranking.published import Published
from stream_app.settings import Settings
from tests.ranking import ranking_world as world

ACTIONS = [
    {"name": "like", "topic": "likes", "weight": 1.0},
    {"name": "view", "topic": "views", "weight": 0.3},
    {"name": "rate", "topic": "rates", "weight": 0.0},
    {"name": "hide", "topic": "hides", "weight": -2.0},
]


def settings(**sections: dict[str, object]) -> Settings:
    """As :func:`ranking_world.settings`, with the half-lives of the learned ranker and a dislike."""
    tree: dict[str, dict[str, object]] = {
        "interests": {"stats_half_lives_h": list(HALF_LIVES_H)},
        "events": {"actions": ACTIONS},
        "ranking": {"max_age_days": 10_000.0},
    }
    for name, values in sections.items():
        tree.setdefault(name, {}).update(values)
    return world.settings(**tree)


@dataclass(frozen=True)
class Counted:
    """Random statistics records of an index, and what they add up to, in float64."""

    records: list[tuple[bytes, bytes]]
    engaged: np.ndarray
    """[H, N]"""
    weighted: np.ndarray
    """[len(WEIGHTED), N]"""
    engaged_at: np.ndarray
    """[N]"""


def statistics(config: Settings, index: ContentIndex, now: int, seed: int) -> Counted:
    """Of two contents in three, in up to three partitions."""
    rng = np.random.default_rng(seed)
    h = len(HALF_LIVES_H)
    weights = np.array([a.weight for a in config.events.actions])
    engaged, weighted = np.zeros((h, index.high)), np.zeros((len(WEIGHTED), index.high))
    engaged_at, records = np.zeros(index.high, np.int64), []
    for row, id_ in enumerate(index.ids[: index.high]):
        if row % 3 == 0 or id_ is None:
            continue
        for partition in rng.choice(config.kafka.partitions, size=int(rng.integers(1, 4)), replace=False):
            counts = np.sort(rng.exponential(3, (len(weights), h)), axis=1).astype(np.float32)
            t_ref = now - int(rng.integers(0, 5 * world.DAY))
            by_action = {a.name: c.tolist() for a, c in zip(config.events.actions, counts, strict=True)}
            records.append((id_, world.statistics_value(config, int(partition), t_ref, by_action)))
            left = 2.0 ** (-(now - t_ref) / (np.array(HALF_LIVES_H) * world.HOUR))
            engaged[:, row] += counts[weights >= 0].sum(axis=0) * left
            weighted[:, row] += ((weights @ counts) * left)[list(WEIGHTED)]
            engaged_at[row] = max(engaged_at[row], t_ref)
    return Counted(records, np.maximum(engaged, 0), np.maximum(weighted, 0), engaged_at)


def together(count: int, neighbours: int, seed: int) -> CoEngagement:
    """Co-engagement of ``count`` rows: users who read six of them each."""
    rng = np.random.default_rng(seed)
    found = CoEngagement(count, neighbours)
    for _ in range(min(count, 300)):
        read = rng.choice(count, min(6, count), replace=False)
        for place in range(len(read)):
            before = read[:place][::-1]
            found.learn(int(read[place]), bool(rng.integers(2)), before, before % 2 == 0)
    return found


def neighbour_records(index: ContentIndex, found: CoEngagement) -> list[tuple[bytes, bytes]]:
    """What the trainer publishes of it."""
    records = []
    for row, id_ in enumerate(index.ids[: index.high]):
        rows, counts = found.row(row)
        live = index.live[rows]
        record = Neighbours(
            float(found.users[row]),
            float(found.strong_users[row]),
            index.keys[rows[live]],
            counts[:, live],
        )
        if id_ is not None:
            records.append((id_, neighbours_record.encode(record)))
    return records


def catalogue(index: ContentIndex, counted: Counted, found: CoEngagement, now: int) -> Catalogue:
    """What the trainer's side makes of the same world."""
    high = index.high
    return Catalogue(
        now=now,
        engaged=counted.engaged.astype(np.float32),
        weighted=counted.weighted.astype(np.float32),
        engaged_at=counted.engaged_at,
        readers=found.users[:high],
        created_at=index.created_at[:high],
        authors=index.authors[:high],
        vectors=index.vectors[:high],
        mean=index.vectors[:high].sum(axis=0)
        / np.float32(max(np.count_nonzero(index.vectors[:high].any(axis=1)), 1)),
    )


def habits(seed: int) -> AgeHabits:
    """Of somebody who reads what is some hours old."""
    found = AgeHabits()
    for age in np.random.default_rng(seed).normal(5, 1, 50):
        found.learn(float(age))
    return found


def model(seed: int, strength: float = 0.3) -> SoftmaxRanker:
    """Random weights; means and deviations as of real features."""
    rng = np.random.default_rng(seed)
    ranker = SoftmaxRanker(NAMES, BANDS, 64, seed)
    for name in ("linear", "groups", "output"):
        parameter = ranker.parameters[name]
        parameter += rng.normal(scale=strength, size=parameter.shape).astype(np.float32)
    ranker.mean += rng.normal(2, 1, len(NAMES)).astype(np.float32)
    ranker.variance *= rng.uniform(0.5, 4, len(NAMES)).astype(np.float32)
    return ranker


def published(seed: int, version: int = 1, strength: float = 0.3) -> Published:
    """A model as it stands on ``models``."""
    return Published(version, model(seed, strength), habits(seed))


def engine_over(
    config: Settings, index: ContentIndex, one: Published | None, seed: int = 9, now: int = world.NOW
) -> RankingEngine:
    """An engine at ``now`` with statistics and co-engagement, which ranks with ``one``."""
    counts = ContentStatistics(config, index)
    counts.apply(statistics(config, index, now, seed).records)
    counts.stream_time = now
    engine = RankingEngine(config, index, counts)
    if engine.neighbours is not None and index.high:
        engine.neighbours.apply(neighbour_records(index, together(index.high, 16, seed)))
    engine.adopt(one)
    return engine
