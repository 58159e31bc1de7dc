"""Exploration: what may be drawn, that the draw stays, and that propensities are what really happens."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_app.content.index import ContentIndex
from stream_app.ranking import explore
from stream_app.ranking.engine import RankingEngine
from stream_app.ranking.explore import Explorable
from stream_app.ranking.popularity import ContentStatistics
from stream_app.ranking.ranked import Item, Ranked, User
from stream_app.recommendations.readable import Titles, lines
from stream_app.recommendations.slate import SlateMaker, decode, encode, fingerprint
from stream_app.settings import Settings
from tests.ranking import learned_world
from tests.ranking import ranking_world as world

NOTHING = np.zeros(0, np.int64)


def ranking_settings(**values: object) -> Settings:
    return world.settings(ranking={"explore": 0.2, "explore_from": 20, **values})


def pool_of(contents: int, authors: NDArray[np.uint64] | None = None) -> Explorable:
    rng = np.random.default_rng(3)
    own = np.zeros(contents, np.uint64) if authors is None else authors
    keys = rng.integers(2**63, size=contents).astype(np.uint64)
    return Explorable(np.arange(contents), keys, own, own)


def engine_over(config: Settings, index: ContentIndex) -> RankingEngine:
    statistics = ContentStatistics(config, index)
    statistics.stream_time = world.NOW
    return RankingEngine(config, index, statistics)


def explored(slate: Ranked) -> list[Item]:
    return [item for item in slate.items if item.source == "explore"]


def test_what_was_drawn_as_often_as_its_propensity_says() -> None:
    """Over users and spans: for each content, and for every user's own n."""
    pool, spans = pool_of(30), 40
    config = ranking_settings(author_cap=0).ranking
    users = [b"user-%d" % u for u in range(500)]
    rng = np.random.default_rng(5)
    seen = np.arange(len(users)).repeat(12), rng.integers(30, size=12 * len(users))
    ranked = np.full((len(users), 10), -1)
    ranked[:, :8] = rng.integers(30, size=(len(users), 8))
    ranked[:, 9] = 7  # a place that gives way: its content may be drawn
    may = np.ones((len(users), 30), np.bool_)
    may[seen] = False
    may[np.arange(len(users))[:, None], ranked[:, :8]] = False
    n = may.sum(axis=1)
    assert n.min() >= 2
    assert len(set(n.tolist())) > 5
    shown = np.zeros((len(users), 30))
    for span in range(spans):
        now = world.NOW + span * world.HOUR
        drawn = explore.draw(config, pool, users, seen, ranked, now)
        assert drawn.propensity == pytest.approx(np.repeat(2 / n[:, None], 2, axis=1))
        assert (drawn.rows >= 0).all()
        assert (drawn.rows[:, 0] != drawn.rows[:, 1]).all()
        for place in range(2):
            shown[np.arange(len(users)), drawn.rows[:, place]] += 1
    assert (shown[~may] == 0).all()
    expected = np.where(may, 2 / n[:, None], 0) * spans
    # each user's draws of one span are not independent, which only makes the sums steadier
    for axis in (0, None):
        total, mean = shown.sum(axis=axis), expected.sum(axis=axis)
        deviation = np.sqrt((expected * (1 - expected / spans)).sum(axis=axis))
        assert (np.abs(total - mean) <= 4 * deviation).all()
    fewer = n <= np.median(n)  # whose propensities are larger
    assert shown[fewer, 7].sum() == pytest.approx(
        expected[fewer, 7].sum(), abs=4 * np.sqrt(expected[fewer, 7].sum())
    )
    # inverse propensities estimate what a uniform policy would have got, whatever each content is worth
    worth = rng.random(30)
    estimate = (shown * worth / (2 / n[:, None])).sum() / spans
    assert estimate == pytest.approx((may * worth).sum(), rel=0.02)


def test_pairs_are_drawn_alike() -> None:
    """Without replacement, and no content draws another one with it."""
    pool, config = pool_of(6), ranking_settings(author_cap=0).ranking
    users = [b"user-%d" % u for u in range(15_000)]
    found = explore.draw(
        config, pool, users, (NOTHING, NOTHING), np.full((len(users), 10), -1), world.NOW
    ).rows
    pairs = np.bincount(np.sort(found, axis=1) @ [6, 1], minlength=36)
    counts = pairs[pairs > 0]
    assert len(counts) == 15
    assert ((counts - 1000) ** 2 / 1000).sum() < 36.1  # χ², 14 degrees of freedom, 0.1 %


def test_a_draw_stays_for_its_span_and_is_the_same_everywhere() -> None:
    pool, config = pool_of(40), ranking_settings().ranking
    users = [b"user-%d" % u for u in range(200)]
    ranked = np.full((len(users), 10), -1)

    def rows(at: int, some: list[bytes] = users, salt: str = "") -> NDArray[np.int64]:
        own = ranking_settings(explore_salt=salt).ranking
        return explore.draw(own, pool, some, (NOTHING, NOTHING), ranked[: len(some)], at).rows

    first = rows(world.NOW)
    assert (rows(world.NOW, users[50:]) == first[50:]).all()
    minutes = [(rows(world.NOW + m * 60_000) != first).any(axis=1) for m in (0, 15, 30, 45, 60)]
    changed = [int(one.sum()) for one in minutes]
    assert changed[0] == 0
    assert all(20 < b - a < 80 for a, b in itertools.pairwise(changed))  # not all at once
    assert changed[-1] > 180
    assert (rows(world.NOW, salt="another") != first).any(axis=1).sum() > 180
    assert config.explore_span_h == 1.0


def test_the_pool_is_what_is_new_what_rises_and_what_is_little_noticed() -> None:
    config = world.settings(ranking={"explore": 0.1})
    index = ContentIndex(config, world.MODEL)
    rng = np.random.default_rng(1)
    for i in range(40):
        world.put(index, world.content_id(i), rng.normal(size=world.D), world.NOW - i * world.HOUR)
    statistics = ContentStatistics(config, index)
    for i in range(40):
        # the last hour's at 0.5 h and 6 h, the day's, the rest: everything is engaged with but 30 and 31
        day = 0.0 if i in (30, 31) else 50.0 + i
        hours = [20.0, 20.0] if i in (20, 21) else [day / 48, day / 24]
        counts = {"like": [*hours, day, day, day]}
        statistics.apply([(world.content_id(i), world.statistics_value(config, 0, world.NOW, counts))])
    available = np.ones(40, np.bool_)
    available[[0, 21, 31]] = False
    pool = explore.explorable(index, statistics, available, world.NOW, 1)
    assert pool.rows.tolist() == [1, 20, 30]
    assert pool.keys.tolist() == index.keys[[1, 20, 30]].tolist()
    everything = explore.explorable(index, statistics, available, world.NOW, 100)
    assert everything.rows.tolist() == np.flatnonzero(available).tolist()


@pytest.mark.parametrize("ranker", ["blend", "learned"])
def test_explored_contents_stand_last_and_are_none_that_must_not_be_shown(ranker: str) -> None:
    config = learned_world.settings(
        ranking={
            "explore": 0.3,
            "explore_from": 100,
            "max_age_days": 10.0,
            "arms": [{"name": "all", "ranker": ranker, "share": 1.0}],
        }
    )
    index = world.filled_index(config, 150, authors=30)
    engine = learned_world.engine_over(config, index, learned_world.published(2))
    plain = learned_world.engine_over(
        learned_world.settings(
            ranking={"max_age_days": 10.0, "arms": [{"name": "all", "ranker": ranker, "share": 1.0}]}
        ),
        world.filled_index(config, 150, authors=30),
        learned_world.published(2),
    )
    deleted = [world.content_id(i) for i in range(0, 150, 5)]
    for id_ in deleted:
        index.delete(id_)
        plain.index.delete(id_)
    users: list[User] = [*world.some_users(config, index, 40), (b"new", None)]
    drawn = set()
    engine.refresh()
    plain.refresh()
    for slate, without, (_, one) in zip(
        engine.rank_prepared(users), plain.rank_prepared(users), users, strict=True
    ):
        assert [i.source for i in slate.items] == ["ranked"] * 7 + ["explore"] * 3
        assert slate.items[:7] == without.items[:7]
        assert all(i.propensity is None for i in slate.items[:7])
        ids = [i.content_id.encode() for i in slate.items]
        assert len(set(ids)) == 10
        known = set() if one is None else set(one.seen.tolist()) | set(one.interactions["content"].tolist())
        authors = [int(index.authors[index.rows[id_]]) for id_ in ids]  # a deleted one has no row
        assert max(authors.count(a) for a in authors) <= 3
        for item in slate.items[7:]:
            row = index.rows[item.content_id.encode()]
            assert int(index.keys[row]) not in known
            assert world.NOW - index.created_at[row] <= 10 * world.DAY
            assert item.score == 0
            assert item.propensity is not None
            assert 3 / 150 < item.propensity < 1
            drawn.add(row)
    assert len(drawn) > 20
    # another engine, one user at a time: the same
    again = [engine.rank_prepared([user])[0] for user in users]
    assert [[i.content_id for i in explored(s)] for s in again] == [
        [i.content_id for i in explored(s)] for s in engine.rank_prepared(users[::-1])[::-1]
    ]


def test_exploration_is_news_once_a_span() -> None:
    config = ranking_settings()
    index = world.filled_index(config, 300)
    engine = engine_over(config, index)
    users = world.some_users(config, index, 30)
    make = SlateMaker(config, index.model)

    def marks(minutes: int) -> list[int]:
        engine.statistics.stream_time = world.NOW + minutes * 60_000
        ranked = [Ranked(r.user_id, r.record, r.kind, [*explored(r)]) for r in engine.rank(users)]
        return [fingerprint(make.slate(one).items) for one in ranked]

    first = marks(0)
    assert marks(0) == first
    soon = sum(a != b for a, b in zip(first, marks(1), strict=True))
    assert soon <= 5
    assert sum(a != b for a, b in zip(first, marks(60), strict=True)) > 25


def test_few_lots_are_certain_and_slates_stay_full() -> None:
    config = world.settings(ranking={"explore": 0.4, "author_cap": 0})
    index = world.filled_index(config, 12)
    (user,) = world.some_users(config, index, 1)
    left = set(index.rows) - {index.ids[int(np.flatnonzero(index.keys == k)[0])] for k in user[1].seen}
    slate = engine_over(config, index).rank([user])[0]
    assert {i.content_id.encode() for i in slate.items} <= left
    assert len(slate.items) == min(10, len(left))
    assert {i.propensity for i in explored(slate)} <= {1.0}
    some = world.filled_index(config, 0)
    assert engine_over(config, some).rank([(b"new", None)])[0].items == []


def test_authors_have_room_for_what_is_explored() -> None:
    authors = np.array([1] * 10 + [2] * 10 + [0] * 10, np.uint64)
    pool, config = pool_of(30, authors), ranking_settings(author_cap=3).ranking
    users = [b"user-%d" % u for u in range(300)]
    ranked = np.full((len(users), 10), -1)
    ranked[:, :3] = [0, 1, 10]  # two of author 1, one of author 2
    drawn = explore.draw(config, pool, users, (NOTHING, NOTHING), ranked, world.NOW)
    # author 1 has room for one: one of eight lots stays
    assert set(authors[drawn.rows].ravel().tolist()) == {0, 1, 2}
    assert (authors[drawn.rows] == 1).sum(axis=1).max() == 1
    expected = np.where(authors[drawn.rows] == 1, 1 / 8, 1) * 2 / (1 + 9 + 10)
    assert drawn.propensity == pytest.approx(expected)


def test_what_is_explored_keeps_to_the_cap_and_is_drawn_as_often_as_its_propensity_says() -> None:
    """More places than the cap has: once that ended exploration without a word."""
    authors = np.array([1] * 12 + [2] * 3 + [3, 4, 5, 6, 0, 0], np.uint64)
    pool = pool_of(len(authors), authors)
    config = ranking_settings(author_cap=1, explore=0.4).ranking
    users, spans = [b"user-%d" % u for u in range(1000)], 20
    ranked = np.full((len(users), 10), -1)
    ranked[:, 0] = 15  # author 3 has no room
    shown = np.zeros(len(authors))
    for span in range(spans):
        now = world.NOW + span * world.HOUR
        drawn = explore.draw(config, pool, users, (NOTHING, NOTHING), ranked, now)
        assert (drawn.rows >= 0).all()
        for rows in drawn.rows:
            known = authors[rows][authors[rows] != 0]
            assert len(set(known.tolist())) == len(known)
        np.add.at(shown, drawn.rows.ravel(), 1)
    share = np.array([1 / 12] * 12 + [1 / 3] * 3 + [0, 1, 1, 1, 1, 1])
    n = 1 + 1 + 3 + 2
    expected = share * 4 / n * spans * len(users)
    assert (np.abs(shown - expected) <= 5 * np.sqrt(expected)).all()


@pytest.mark.parametrize("share", [0.1, 0.4, 0.5])
def test_everybody_explores_whatever_the_cap_is(share: float) -> None:
    config = ranking_settings(explore=share, author_cap=3)
    index = world.filled_index(config, 600, authors=200)
    for slate in engine_over(config, index).rank(world.some_users(config, index, 30)):
        assert len(explored(slate)) == explore.places(config.ranking)
        names = [index.authors[index.rows[i.content_id.encode()]] for i in slate.items]
        assert max(names.count(name) for name in names) <= 3


def test_off_draws_nothing_and_an_item_shows_its_propensity_only_then() -> None:
    config = world.settings()
    index = world.filled_index(config, 100)
    (slate,) = engine_over(config, index).rank([(b"new", None)])
    assert not explored(slate)
    made = SlateMaker(config, index.model).slate(slate)
    assert b"propensity" not in encode(made)
    assert b"source" not in encode(made)
    config = ranking_settings()
    (slate,) = engine_over(config, world.filled_index(config, 100)).rank([(b"new", None)])
    made = SlateMaker(config, index.model).slate(slate)
    assert decode(encode(made)) == made
    assert encode(made).count(b'"source":"explore"') == 2
    shown = lines(made, Titles())
    assert ["by lot" in line for line in shown] == [False] * 8 + [True] * 2


@pytest.mark.parametrize(
    ("share", "size", "places"), [(0, 10, 0), (0.01, 10, 1), (0.2, 10, 2), (0.5, 5, 2), (0.1, 1, 0)]
)
def test_how_many_places(share: float, size: int, places: int) -> None:
    assert explore.places(world.settings(ranking={"explore": share, "slate_size": size}).ranking) == places
