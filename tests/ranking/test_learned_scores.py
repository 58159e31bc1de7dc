"""The learned ranker on the device is the one that was trained: every feature, every score, every slate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from stream_app.content.index import ContentIndex
from stream_app.interests import record
from stream_app.interests.record import APPLIED, AWAITING, UNDONE, InterestRecord
from stream_app.learning.activity import catalogue_features
from stream_app.learning.features import NAMES, CandidateFeatures, bands
from stream_app.learning.history import LONGEST, NOBODY, UserHistory
from stream_app.ranking import learned
from stream_app.ranking.candidates import Pool, everything, union
from stream_app.ranking.catalogue import live_catalogue
from stream_app.ranking.device import DeviceIndex
from stream_app.ranking.engine import RankingEngine
from stream_app.ranking.histories import Histories, gather
from stream_app.ranking.learned import LearnedModel, Users
from stream_app.ranking.neighbours import NeighbourTable
from stream_app.ranking.popularity import ContentStatistics
from stream_app.settings import Settings
from tests.ranking import learned_world
from tests.ranking import ranking_world as world
from tests.ranking.ranking_world import Engagement

CPU = torch.device("cpu")


def some_index(config: Settings, count: int, seed: int) -> ContentIndex:
    """Contents with and without an author or a text, some of them created after now, some rows free again."""
    rng = np.random.default_rng(seed)
    index = ContentIndex(config, world.MODEL)
    for i in range(count + 3):
        created = world.NOW - int(rng.exponential(20 * world.DAY)) + (2 * world.DAY if i % 11 == 0 else 0)
        author = "" if i % 4 == 0 else f"author-{rng.integers(5)}"
        if rng.random() < 0.2:
            world.put_silent(index, world.content_id(i), created, author)
        else:
            world.put(index, world.content_id(i), rng.normal(size=world.D) + 0.5, created, author)
    for i in range(count, count + 3):
        index.delete(world.content_id(i))
    return index


def somebody(
    config: Settings, index: ContentIndex, length: int, seed: int
) -> tuple[InterestRecord | None, UserHistory]:
    """A user who engaged with so many contents, and the history that follows; without any there is none."""
    if not length:
        return None, NOBODY
    rng = np.random.default_rng(seed)
    ids = [id_ for id_ in index.ids[: index.high] if id_ is not None] + [b"never heard of"]
    time, engagements = world.NOW - length * world.HOUR, []
    for _ in range(length):
        action = config.events.actions[int(rng.integers(len(config.events.actions)))]
        time += int(rng.integers(0, 2 * world.HOUR))
        state = (APPLIED, APPLIED, APPLIED, UNDONE, AWAITING)[int(rng.integers(5))]
        engagements.append(
            Engagement(ids[int(rng.integers(len(ids) - 1))], time, action.weight, action.name, state)
        )
    seen = list(dict.fromkeys([ids[-1], *(e.content_id for e in engagements)]))[-config.interests.seen :]
    value = world.interest_record(config, index, engagements, seen=seen)
    kept = engagements[-config.interests.recent :]
    expected = UserHistory.of_record(
        np.array([index.rows[e.content_id] for e in kept]),
        np.array([e.time for e in kept]),
        np.array([e.weight if e.state == APPLIED else -1 for e in kept], np.float32),
        np.array([index.rows.get(id_, -1) for id_ in seen]),
        len(seen),
    )
    return record.decode(value), expected


class Fixture:
    """One world, from both sides."""

    def __init__(self, config: Settings, count: int, lengths: list[int], seed: int, now: int) -> None:
        self.index = index = some_index(config, count, seed)
        found = learned_world.together(index.high, 8, seed)
        counted = learned_world.statistics(config, index, now, seed)
        self.habits = learned_world.habits(seed)
        # the trainer's side
        people = [somebody(config, index, length, seed + i) for i, length in enumerate(lengths)]
        self.users = [history for _, history in people]
        trained = learned_world.catalogue(index, counted, found, now)
        shared = catalogue_features(trained)
        self.expected = np.stack(
            [CandidateFeatures(shared, trained, found, self.habits).of(user) for user in self.users]
        )
        # the ranker's side
        self.mirror = DeviceIndex(index, CPU)
        changed = self.mirror.refresh()
        self.mirror.copy()
        statistics = ContentStatistics(config, index)
        statistics.apply(counted.records)
        self.table = NeighbourTable(index, 8, CPU)
        self.table.apply(learned_world.neighbour_records(index, found))
        self.table.adopt(changed, self.mirror.rows_of)
        available = index.live[: index.high]
        self.catalogue = live_catalogue(
            index, self.mirror, statistics, self.table.readers, available, now, each=3
        )
        read = Histories.of([one for one, _ in people], self.mirror.rows_of)
        c = self.catalogue
        self.batch = gather(read, now, c.created_at, c.authors, c.readers, self.habits)

    def features(self, pool: Pool) -> torch.Tensor:
        return learned.candidate_features(
            self.catalogue, self.mirror, self.table, pool, Users.of(self.batch, CPU)
        )

    def some_pool(self, seed: int) -> Pool:
        """A part of the rows, one of them twice, some masked."""
        rng = np.random.default_rng(seed)
        b, n = len(self.users), self.index.high
        scores = torch.from_numpy(rng.normal(size=(b, n)).astype(np.float32))
        scores[torch.from_numpy(rng.random((b, n)) < 0.2)] = -torch.inf
        some = torch.from_numpy(rng.integers(0, n, (b, max(n // 3, 1))))
        near = torch.from_numpy(rng.integers(-1, n, (b, 7)))
        return union(scores, some, self.catalogue.popular, near)


def agree(found: np.ndarray, expected: np.ndarray) -> None:
    """Within 1e-4, column by column."""
    for column, name in enumerate(NAMES):
        np.testing.assert_allclose(
            found[..., column], expected[..., column], rtol=1e-4, atol=1e-4, err_msg=name
        )


@hypothesis_settings(deadline=None, derandomize=True, max_examples=25)
@given(
    count=st.integers(1, 60),
    lengths=st.lists(st.sampled_from([0, 1, 2, 7, 30, 45, 150]), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    later=st.sampled_from([0, 60_000, world.DAY, 1000 * world.DAY]),
)
def test_every_feature_is_the_trainers(count: int, lengths: list[int], seed: int, later: int) -> None:
    config = learned_world.settings(interests={"recent": 32, "seen": 60})
    both = Fixture(config, count, lengths, seed, world.NOW + later)
    live = both.index.live[: both.index.high]
    whole = everything(torch.zeros((len(lengths), both.index.high)))
    agree(both.features(whole).numpy()[:, live], both.expected[:, live])
    pool = both.some_pool(seed)
    rows = pool.rows.numpy()
    expected = np.take_along_axis(both.expected, rows[:, :, None], axis=1)
    valid = pool.valid.numpy() & live[rows]
    agree(both.features(pool).numpy()[valid], expected[valid])


def test_scores_are_the_models() -> None:
    config = learned_world.settings()
    both = Fixture(config, 60, [0, 1, 8, 40, 150], 3, world.NOW)
    ranker = learned_world.model(5)
    model = LearnedModel.of(ranker, both.habits, 17, CPU)
    users = Users.of(both.batch, CPU)
    known = both.features(everything(torch.zeros((5, both.index.high))))
    weights = model.weights(users.groups)
    found = model.score(known, weights) + (weights @ model.reference).unsqueeze(1)
    live = both.index.live[: both.index.high]
    for i, user in enumerate(both.users):
        expected = ranker.score(both.expected[i], bands(user, world.NOW))
        np.testing.assert_allclose(found[i, live], expected[live], rtol=1e-4, atol=1e-3)
    parts = model.explained(known, weights)
    np.testing.assert_allclose(parts.sum(dim=2), model.score(known, weights), rtol=1e-4, atol=1e-3)


def test_a_copied_model_learns_no_more() -> None:
    ranker = learned_world.model(1)
    model = LearnedModel.of(ranker, learned_world.habits(1), 1, CPU)
    before = model.linear.clone()
    ranker.parameters["linear"] += 1
    assert torch.equal(model.linear, before)


def test_histories_follow_the_ring_and_leave_out_what_was_taken_back() -> None:
    config = learned_world.settings(interests={"recent": 4, "seen": 4})
    index = world.filled_index(config, 12)
    mirror = DeviceIndex(index, CPU)
    mirror.refresh()
    kept = [
        Engagement(world.content_id(5), world.NOW - 4, 0.3, "view"),
        Engagement(world.content_id(6), world.NOW - 3, 1.0, "like", UNDONE),
        Engagement(world.content_id(7), world.NOW - 2, 1.0, "like"),
        Engagement(world.content_id(8), world.NOW - 1, 0.3, "view", AWAITING),
    ]
    seen = [world.content_id(i) for i in (5, 6, 7, 3)]
    plain = record.decode(world.interest_record(config, index, kept, seen=seen))
    header = plain.header.copy()
    header["total"], header["seen_total"] = 4, 4
    rolled = header.copy()
    rolled["total"], rolled["seen_total"] = 4 + 1, 4 + 3  # slot 1 and seen slot 3 are the oldest
    expected = [([7, 5, 3], 4), ([5, 7, 3], 7)]
    for one, ring, keys in (
        (header, plain.interactions, plain.seen),
        (rolled, plain.interactions, plain.seen),
    ):
        wanted, contents = expected.pop(0)
        found = Histories.of([InterestRecord(one, plain.vector, ring, keys), None], mirror.rows_of)
        rows = [index.rows[world.content_id(i)] for i in wanted]
        assert found.rows[0].tolist() == rows
        assert found.lengths.tolist() == [len(rows), 0]
        assert found.contents.tolist() == [contents, 0]


@pytest.mark.parametrize("seed", range(4))
def test_histories_of_many_are_those_of_each_alone(seed: int) -> None:
    config = learned_world.settings(interests={"recent": 48, "seen": 200})
    index = some_index(config, 400, seed)
    mirror = DeviceIndex(index, CPU)
    mirror.refresh()
    people = [somebody(config, index, n, seed + n) for n in (0, 1, 40, 400, 0, 7)]
    found = Histories.of([one for one, _ in people], mirror.rows_of)
    assert found.lengths.max() == LONGEST
    for i, (_, alone) in enumerate(people):
        assert found.present[i].sum() == found.lengths[i] == len(alone.rows)
        for name in ("rows", "times", "strong"):
            assert getattr(found, name)[i][found.present[i]].tolist() == getattr(alone, name).tolist()
            assert not getattr(found, name)[i][~found.present[i]].any()
        assert found.contents[i] == alone.contents


# -- candidates


def test_a_union_holds_each_candidate_once_and_nothing_that_is_masked() -> None:
    scores = torch.tensor([[1.0, -torch.inf, 3.0, 4.0, 5.0, 0.5], [1.0, 2.0, 3.0, 4.0, -torch.inf, 0.5]])
    pool = union(
        scores,
        torch.tensor([[4, 3], [3, 2]]),
        torch.tensor([1, 3]),
        torch.tensor([[0, -1, 4], [-1, -1, -1]]),
    )
    held = [sorted(rows[ok].tolist()) for rows, ok in zip(pool.rows, pool.valid, strict=True)]
    assert held == [[0, 3, 4], [1, 2, 3]]
    assert pool.rows.shape == (2, 7)


@pytest.mark.parametrize("users", [1, 33])
def test_few_contents_are_all_candidates_and_many_are_a_union_with_much_of_the_same(users: int) -> None:
    slates = {}
    for limit in (0, 10_000):
        config = learned_world.settings(
            ranking={
                "all_up_to": limit,
                "candidates": 60,
                "candidates_popular": 20,
                "diversity": 0.0,
                "calibration": 0.0,
            }
        )
        index = world.filled_index(config, 400)
        engine = learned_world.engine_over(config, index, learned_world.published(2))
        some = world.some_users(config, index, users)
        slates[limit] = [[i.content_id for i in one.items] for one in engine.rank(some)]
        assert all(len(set(one)) == 10 for one in slates[limit])
    common = [len(set(a) & set(b)) for a, b in zip(slates[0], slates[10_000], strict=True)]
    assert np.mean(common) > 3  # the random model likes what nobody would retrieve, too


# -- slates


@pytest.mark.parametrize(("contents", "limit"), [(60, 2000), (900, 2000), (900, 100)])
def test_a_slate_does_not_depend_on_companions(contents: int, limit: int) -> None:
    config = learned_world.settings(ranking={"all_up_to": limit})
    index = world.filled_index(config, contents)
    engine = learned_world.engine_over(config, index, learned_world.published(2))
    users = [*world.some_users(config, index, 22), (b"nobody", None), (b"nobody-2", None)]
    engine.refresh()
    together = engine.rank_prepared(users)
    order = np.random.default_rng(4).permutation(len(users))
    back = dict(zip(order.tolist(), engine.rank_prepared([users[i] for i in order]), strict=True))
    for i, slate in enumerate(together):
        assert slate.ranker == "learned-1"
        assert len(slate.items) == 10
        for other in (engine.rank_prepared([users[i]])[0], back[i]):
            assert [a.content_id for a in other.items] == [a.content_id for a in slate.items]
            assert other.kind == slate.kind
            for a, b in zip(other.items, slate.items, strict=True):
                assert a.score == pytest.approx(b.score, abs=1e-4)
                assert [r.content_id for r in a.reasons] == [r.content_id for r in b.reasons]


def test_scores_are_sums_of_their_parts_and_reasons_need_an_interest_that_speaks_for_the_content() -> None:
    config = learned_world.settings(ranking={"diversity": 0.0, "calibration": 0.0, "author_cap": 0})
    index = world.filled_index(config, 300)
    engine = learned_world.engine_over(config, index, learned_world.published(2))
    slates = engine.rank([*world.some_users(config, index, 20), (b"nobody", None)])
    with_reasons = 0
    for slate in slates:
        scores = [item.score for item in slate.items]
        assert scores == sorted(scores, reverse=True)
        for item in slate.items:
            parts = [getattr(item.parts, name) for name in item.parts.__struct_fields__]
            assert item.score == pytest.approx(sum(parts), abs=1e-5)
            with_reasons += bool(item.reasons)
            if item.reasons:
                assert item.parts.interest + item.parts.match > 0
    assert with_reasons
    assert slates[-1].kind == "cold_start"
    assert all(i.parts.together == i.parts.author == 0 for i in slates[-1].items)


def test_seen_deleted_old_and_future_contents_are_left_out() -> None:
    for limit in (0, 2000):
        config = learned_world.settings(
            ranking={"slate_size": 60, "author_cap": 0, "max_age_days": 10.0, "all_up_to": limit}
        )
        index = world.filled_index(config, 60)
        world.put(index, b"future", np.ones(world.D), world.NOW + world.DAY)
        old = {
            i
            for r, i in enumerate(index.ids[: index.high])
            if world.NOW - index.created_at[r] > 10 * world.DAY
        }
        engine = learned_world.engine_over(config, index, learned_world.published(2))
        user = world.some_users(config, index, 1)[0]
        assert user[1] is not None
        seen = {i for i in index.rows if int(index.keys[index.rows[i]]) in set(user[1].seen.tolist())}
        engine.rank([user])
        gone = next(iter(set(index.rows) - old - seen - {b"future"}))
        index.delete(gone)
        shown = {item.content_id.encode() for item in engine.rank([user])[0].items}
        assert shown == set(index.rows) - old - seen - {b"future"}


def test_diversity_and_the_author_cap_work_on_learned_scores() -> None:
    spread = {}
    for diversity in (0.0, 0.9):
        config = learned_world.settings(ranking={"diversity": diversity, "author_cap": 2})
        index = world.filled_index(config, 500, authors=6)
        engine = learned_world.engine_over(config, index, learned_world.published(2))
        cosines = []
        for slate in engine.rank(world.some_users(config, index, 12)):
            rows = [index.rows[i.content_id.encode()] for i in slate.items]
            authors = [int(a) for a in index.authors[rows]]
            assert max(authors.count(a) for a in authors) <= 2
            cosines.append(np.triu(index.vectors[rows] @ index.vectors[rows].T, 1).sum())
        spread[diversity] = float(np.mean(cosines))
    assert spread[0.9] < spread[0.0] - 1


def test_equals_are_ordered_by_their_keys_in_any_row() -> None:
    slates = []
    rng = np.random.default_rng(1)
    config = learned_world.settings(ranking={"slate_size": 8, "candidates": 40, "author_cap": 0})
    for _ in range(3):
        index = ContentIndex(config, world.MODEL)
        for i in rng.permutation(40).tolist():
            world.put_silent(index, world.content_id(i), world.NOW - world.HOUR)
        counts = ContentStatistics(config, index)
        counts.stream_time = world.NOW
        engine = RankingEngine(config, index, counts)
        engine.adopt(learned_world.published(2))
        slates.append([i.content_id for i in engine.rank([(b"new", None)])[0].items])
    assert slates[0] == slates[1] == slates[2]
    assert len(slates[0]) == 8


def test_the_model_changes_between_rounds_only_and_without_one_the_blend_ranks() -> None:
    config = learned_world.settings()
    index = world.filled_index(config, 200)
    engine = learned_world.engine_over(config, index, None)
    users = world.some_users(config, index, 5)
    assert {one.ranker for one in engine.rank(users)} == {"blend"}
    first, second = learned_world.published(2), replace(learned_world.published(3), version=8)
    engine.adopt(first)
    engine.refresh()
    one = engine.rank_prepared(users)
    assert {slate.ranker for slate in one} == {"learned-1"}
    engine.refresh()
    assert [s.items for s in engine.rank_prepared(users)] == [s.items for s in one]
    engine.adopt(second)
    engine.refresh()
    two = engine.rank_prepared(users)
    assert {slate.ranker for slate in two} == {"learned-8"}
    assert [[i.content_id for i in s.items] for s in one] != [[i.content_id for i in s.items] for s in two]
    engine.adopt(None)
    assert {slate.ranker for slate in engine.rank(users)} == {"blend"}


def test_a_device_failure_is_answered_with_the_cheap_list_and_the_model_so_far_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = learned_world.settings()
    index = world.filled_index(config, 60)
    engine = learned_world.engine_over(config, index, learned_world.published(2))
    users = world.some_users(config, index, 5)

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    for broken in ("choose.masked_scores", "choose.candidate_features", "engine.live_catalogue"):
        with monkeypatch.context() as patched:
            patched.setattr(f"stream_app.ranking.{broken}", fail)
            world.put(index, broken.encode(), np.ones(world.D), world.NOW)  # so that the catalogue is renewed
            assert {(s.kind, s.arm) for s in engine.rank(users)} == {("fallback", "learned")}
    with monkeypatch.context() as patched:
        patched.setattr(LearnedModel, "of", fail)
        newer = learned_world.published(3, version=9)
        engine.adopt(newer)
    world.put(index, b"another", np.ones(world.D), world.NOW)
    assert {(s.kind, s.ranker) for s in engine.rank(users)} == {("personal", "learned-1")}
    engine.adopt(newer)
    assert {(s.kind, s.ranker) for s in engine.rank(users)} == {("personal", "learned-9")}
