"""Slates: independent of companions, exact shares, masks, cold start, fallback."""

from __future__ import annotations

import numpy as np
import pytest
import ranking_world as world
import torch
from prometheus_client import REGISTRY
from ranking_world import Engagement

from stream_app.content.index import ContentIndex
from stream_app.errors import DeviceError
from stream_app.hashing import key64
from stream_app.interests import record
from stream_app.interests.record import APPLIED, AWAITING, UNDONE, InterestRecord
from stream_app.ranking.engine import FAILURES_IN_A_ROW, RankingEngine
from stream_app.ranking.popularity import ContentStatistics
from stream_app.ranking.ranked import Ranked, User
from stream_app.settings import Settings
from tests.ranking import learned_world


def engine_over(config: Settings, index: ContentIndex) -> RankingEngine:
    """An engine at NOW, with some statistics."""
    statistics = ContentStatistics(config, index)
    rng = np.random.default_rng(9)
    for i in range(0, index.high, 3):
        counts = {"like": rng.exponential(5, size=5).tolist()}
        value = world.statistics_value(config, int(rng.integers(4)), world.NOW, counts)
        statistics.apply([(world.content_id(i), value)])
    statistics.stream_time = world.NOW
    return RankingEngine(config, index, statistics)


def user_of(config: Settings, index: ContentIndex, *engagements: Engagement, **more: object) -> User:
    return b"u", record.decode(world.interest_record(config, index, engagements, **more))  # type: ignore[arg-type]


def ids(slate: Ranked) -> list[bytes]:
    return [item.content_id.encode() for item in slate.items]


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"stream_app_{name}_total", labels) or 0.0


@pytest.mark.parametrize("contents", [60, 900, 4000])
def test_a_slate_does_not_depend_on_companions(contents: int) -> None:
    config = world.settings()
    index = world.filled_index(config, contents)
    engine = engine_over(config, index)
    users: list[User] = [*world.some_users(config, index, 62), (b"nobody", None), (b"nobody-2", None)]
    engine.refresh()
    together = engine.rank_prepared(users)
    order = np.random.default_rng(4).permutation(len(users))
    shuffled = engine.rank_prepared([users[i] for i in order])
    alone = [engine.rank_prepared([user])[0] for user in users]
    back = {int(i): slate for i, slate in zip(order, shuffled, strict=True)}
    for i, slate in enumerate(together):
        for other in (alone[i], back[i]):
            assert ids(other) == ids(slate)
            assert other.kind == slate.kind
            for a, b in zip(other.items, slate.items, strict=True):
                assert a.score == pytest.approx(b.score, abs=1e-5)
                assert [r.content_id for r in a.reasons] == [r.content_id for r in b.reasons]


def test_half_precision_retrieval_gives_the_same_slates() -> None:
    """What CUDA does, on the CPU: halves only choose the candidates, scores are computed in float32."""
    config = world.settings()
    index = world.filled_index(config, 900)
    users = world.some_users(config, index, 20)
    halved = engine_over(config, index)
    halved._mirror.dtype, halved._mirror.vectors = torch.float16, halved._mirror.vectors.half()
    found = halved.rank(users)
    same = world.filled_index(config, 900)  # an index has one mirror: each of its changes is drained once
    for a, b in zip(found, engine_over(config, same).rank(users), strict=True):
        assert ids(a) == ids(b)
        assert [i.score for i in a.items] == pytest.approx([i.score for i in b.items], abs=1e-5)


def test_equal_contents_are_ordered_by_key_in_any_row() -> None:
    config = world.settings(ranking={"slate_size": 8, "candidates": 8, "author_cap": 0})
    rng = np.random.default_rng(1)
    slates = []
    for _ in range(3):
        index = world.filled_index(config, 0)
        for i in rng.permutation(40):
            world.put_silent(index, world.content_id(int(i)), world.NOW)
        statistics = ContentStatistics(config, index)
        statistics.stream_time = world.NOW
        user = user_of(config, index, Engagement(world.content_id(0), world.NOW), seen=[world.content_id(0)])
        slates.append(ids(RankingEngine(config, index, statistics).rank([user, (b"new", None)])[0]))
    assert slates[0] == slates[1] == slates[2]
    assert len(slates[0]) == 8


@pytest.mark.parametrize("method", ["blend", "learned", "fallback"])
@pytest.mark.parametrize("contents", [60, 3000])
def test_equals_beyond_the_candidates_are_the_same_on_every_worker(method: str, contents: int) -> None:
    """A catalogue that was imported at once, in another order on each worker."""
    config = learned_world.settings(
        ranking={
            "arms": [{"name": "all", "ranker": "learned" if method == "learned" else "blend", "share": 1.0}],
            "candidates": 20,
            "all_up_to": 1000,
            "explore": 0.2,
        }
    )
    rng = np.random.default_rng(3)
    texts = rng.normal(size=(contents, world.D))
    slates = []
    for _ in range(3):
        index = ContentIndex(config, world.MODEL)
        for i in rng.permutation(contents).tolist():
            if i % 2:
                world.put(index, world.content_id(i), texts[i], world.NOW)
            else:
                world.put_silent(index, world.content_id(i), world.NOW)
        statistics = ContentStatistics(config, index)
        statistics.stream_time = world.NOW + world.HOUR
        engine = RankingEngine(config, index, statistics)
        engine.adopt(learned_world.published(2))
        engine.refresh()
        user = user_of(config, index, Engagement(world.content_id(2), world.NOW))
        users = [(b"new", None), user]
        ranked = engine.fallback(users, "queue_full") if method == "fallback" else engine.rank_prepared(users)
        slates.append([ids(slate) for slate in ranked])
    assert slates[0] == slates[1] == slates[2]
    assert len(slates[0][0]) == 10


def test_what_is_deleted_while_the_device_ranks_is_no_reason_either() -> None:
    config = world.settings()
    index = world.filled_index(config, 300)
    engine = engine_over(config, index)
    engine.refresh()
    ranked = engine.rank_prepared(world.some_users(config, index, 20))
    gone = ranked[0].items[0].reasons[0].content_id
    index.delete(gone.encode())
    for slate, left in zip(ranked, engine.without_deleted(ranked), strict=True):
        assert gone not in {i.content_id for i in left.items}
        assert gone not in {reason.content_id for item in left.items for reason in item.reasons}
        assert sum(len(i.reasons) for i in left.items) >= sum(len(i.reasons) for i in slate.items) - 13


def test_shares_of_a_complete_history_add_up_to_one() -> None:
    config = world.settings(ranking={"reasons": 16, "slate_size": 20, "weight_match": 0.0})
    index = world.filled_index(config, 300)
    rng = np.random.default_rng(6)
    # one subject, so that every share is positive and thereby a reason
    subject = index.vectors[0]
    close = np.argsort(-(index.vectors[:300] @ subject))[:12]
    engagements = [
        Engagement(index.ids[row] or b"", world.NOW - int(rng.integers(9 * world.DAY)), *choice)
        for row in close.tolist()
        for choice in [[(1.0, "like"), (2.0, "comment"), (3.0, "share")][int(rng.integers(3))]]
    ]
    slate = engine_over(config, index).rank([user_of(config, index, *engagements)])[0]
    assert slate.kind == "personal"
    near = [i for i in slate.items if len(i.reasons) == len(engagements)]
    assert near
    for item in near:
        assert sum(r.share for r in item.reasons) == pytest.approx(1.0, abs=1e-4)


def test_reasons_are_the_exact_shares_in_order() -> None:
    config = world.settings(ranking={"reasons": 2})
    index = world.filled_index(config, 200)
    half_life = config.interests.half_life_days * world.DAY
    engagements = [
        Engagement(world.content_id(3), world.NOW - world.DAY, 3.0, "share"),
        Engagement(world.content_id(4), world.NOW - 2 * world.DAY, 1.0, "like"),
        Engagement(world.content_id(5), world.NOW, 9.0, "like", state=UNDONE),
        Engagement(world.content_id(6), world.NOW - world.HOUR, 2.0, "comment"),
    ]
    user = user_of(config, index, *engagements)
    assert user[1] is not None
    s = user[1].vector
    for item in engine_over(config, index).rank([user])[0].items:
        c = index.vectors[index.rows[item.content_id.encode()]]
        expected = {
            e.content_id.decode(): (
                e.action,
                e.weight
                * 2.0 ** ((e.time - user[1].t_ref) / half_life)
                * float(index.vectors[index.rows[e.content_id]] @ c)
                / float(s @ c),
            )
            for e in engagements
            if e.state == APPLIED
        }
        positive = sorted(expected.items(), key=lambda kv: -kv[1][1])
        positive = [kv for kv in positive if kv[1][1] > 1e-6][:2] if float(s @ c) > 1e-3 else []
        assert [(r.content_id, r.action) for r in item.reasons] == [(k, a) for k, (a, _) in positive]
        assert [r.share for r in item.reasons] == pytest.approx([x for _, (_, x) in positive], abs=1e-4)


def test_contents_that_have_left_and_actions_that_are_unknown_give_no_reason() -> None:
    config = world.settings()
    index = world.filled_index(config, 100)
    user = user_of(
        config,
        index,
        Engagement(world.content_id(1), world.NOW, 2.0, "waved_at"),
        Engagement(world.content_id(2), world.NOW - 5, 2.0),
        Engagement(world.content_id(3), world.NOW - 9, 2.0),
    )
    index.delete(world.content_id(2))
    slate = engine_over(config, index).rank([user])[0]
    assert {r.content_id for i in slate.items for r in i.reasons} == {"content-3"}


def test_parts_follow_their_definitions_and_add_up() -> None:
    config = world.settings(ranking={"slate_size": 50})
    index = world.filled_index(config, 80)
    engine = engine_over(config, index)
    half_life = config.interests.half_life_days * world.DAY
    liked = [
        Engagement(world.content_id(1), world.NOW - world.DAY, 3.0, "share"),
        Engagement(world.content_id(2), world.NOW - 3 * world.DAY, 1.0, "like"),
        Engagement(world.content_id(7), world.NOW - world.HOUR, -2.0, "like"),
    ]
    user = user_of(config, index, *liked)
    assert user[1] is not None
    direction = user[1].vector / np.linalg.norm(user[1].vector)
    popularity = engine.statistics.popularity(2, world.NOW)
    slate = engine.rank([user])[0]
    assert slate.items
    for item in slate.items:
        row = index.rows[item.content_id.encode()]
        c = index.vectors[row]
        match = max(
            0.0,
            *(
                float(index.vectors[index.rows[e.content_id]] @ c)
                * (e.weight / 3.0 * 2.0 ** ((e.time - world.NOW) / half_life) if e.weight > 0 else 0.0)
                for e in liked
            ),
        )
        assert item.parts.interest == pytest.approx(float(direction @ c), abs=1e-5)
        age = world.NOW - int(index.created_at[row])
        assert item.parts.recency == pytest.approx(0.3 * 2.0 ** (-age / world.DAY), abs=1e-5)
        assert item.parts.popularity == pytest.approx(0.3 * popularity[row], abs=1e-5)
        assert item.parts.match == pytest.approx(0.2 * match, abs=1e-5)
        parts = item.parts
        assert item.score == pytest.approx(
            parts.interest + parts.recency + parts.popularity + parts.match, abs=1e-9
        )


def test_seen_deleted_and_expired_contents_are_left_out() -> None:
    config = world.settings(ranking={"slate_size": 30, "max_age_days": 10.0, "author_cap": 0})
    index = world.filled_index(config, 60)
    expired = {
        i for r, i in enumerate(index.ids[: index.high]) if world.NOW - index.created_at[r] > 10 * world.DAY
    }
    ages = [i for i in index.rows if i not in expired]
    seen, deleted, waiting = ages[:5], ages[5:8], ages[8]
    user = user_of(
        config,
        index,
        Engagement(ages[9], world.NOW),
        Engagement(waiting, world.NOW, state=AWAITING),
        seen=[*seen, b"never heard of"],
    )
    engine = engine_over(config, index)
    engine.rank([user])
    for id_ in deleted:
        index.delete(id_)
    slate = engine.rank([user])[0]
    left = set(ages) - set(seen) - set(deleted) - {waiting, ages[9]}
    assert set(ids(slate)) <= left
    assert len(slate.items) == min(30, len(left))
    fallback = engine.fallback([user], "test")[0]
    assert set(ids(fallback)) <= left
    assert len(fallback.items) == min(30, len(left))


def test_a_replay_does_not_know_its_future() -> None:
    """Contents created after stream time are nobody's candidates until it has reached them."""
    config = world.settings(
        events={"max_future_s": 300.0}, ranking={"slate_size": 60, "candidates": 60, "author_cap": 0}
    )
    index = world.filled_index(config, 0)
    rng = np.random.default_rng(8)
    for i in range(60):
        world.put(index, world.content_id(i), rng.normal(size=world.D), world.NOW + (i - 30) * world.HOUR)
    skewed = world.NOW + 300_000
    world.put(index, b"a little ahead", rng.normal(size=world.D), skewed)
    world.put(index, b"further ahead", rng.normal(size=world.D), skewed + 1)
    statistics = ContentStatistics(config, index)
    engine = RankingEngine(config, index, statistics)
    user = user_of(config, index, Engagement(world.content_id(0), world.NOW))
    engine.observe([user])
    for hours in (0, 10):
        statistics.stream_time = engine.now + hours * world.HOUR
        known = {id_ for id_, row in index.rows.items() if index.created_at[row] <= engine.now + 300_000}
        assert (b"further ahead" in known) == (hours > 0)
        personal, cold = engine.rank([user, (b"new", None)])
        assert set(ids(personal)) == known - {world.content_id(0)}
        assert set(ids(cold)) == known
        assert set(ids(engine.fallback([(b"new", None)], "test")[0])) == known


def test_author_cap_holds_in_every_kind_of_slate() -> None:
    config = world.settings(ranking={"author_cap": 2})
    index = world.filled_index(config, 200, authors=6)
    engine = engine_over(config, index)
    users: list[User] = [*world.some_users(config, index, 3), (b"new", None)]
    for slate in [*engine.rank(users), *engine.fallback(users, "test")]:
        authors = [int(index.authors[index.rows[i]]) for i in ids(slate)]
        assert len(authors) == 10
        assert max(authors.count(a) for a in authors) == 2


@pytest.mark.parametrize("why", ["no record", "faded", "other model", "other dimensions", "nothing left"])
def test_who_is_not_known_gets_the_cold_start_slate(why: str) -> None:
    config = world.settings()
    index = world.filled_index(config, 100)
    engine = engine_over(config, index)
    at = world.NOW - (40 * world.DAY if why == "faded" else 0)
    value = bytearray(
        world.interest_record(
            config,
            index,
            [Engagement(world.content_id(1), at, state=UNDONE if why == "nothing left" else APPLIED)],
            model="another" if why == "other model" else world.MODEL,
        )
    )
    found: InterestRecord | None = record.decode(bytes(value))
    if why == "other dimensions":
        other = world.settings(content={"dimensions": 16})
        small = world.filled_index(other, 3)
        found = record.decode(
            world.interest_record(other, small, [Engagement(world.content_id(1), world.NOW)])
        )
    slate = engine.rank([(b"u", None if why == "no record" else found)])[0]
    cold = engine.rank_prepared([(b"nobody", None)])[0]
    assert slate.kind == cold.kind == "cold_start"
    known = {key64(world.content_id(1))} if why != "no record" else set()
    assert all(key64(i) not in known for i in ids(slate))
    if why == "no record":
        assert ids(slate) == ids(cold)
    assert all(i.parts.interest == i.parts.match == 0 and not i.reasons for i in slate.items)
    assert len(slate.items) == 10


def test_stream_time_is_what_was_observed_and_never_goes_back() -> None:
    config = world.settings()
    index = world.filled_index(config, 30)
    engine = RankingEngine(config, index, ContentStatistics(config, index))
    assert engine.now == int(index.created_at.max())  # no event yet
    users = world.some_users(config, index, 4)
    engine.observe(users)
    newest = max(r.t_ref for _, r in users)
    assert engine.now == newest
    engine.observe(users[:1])
    engine.observe([(b"nobody", None)])
    assert engine.now == newest
    engine.statistics.stream_time = newest + 5
    assert engine.now == newest + 5


def test_contents_too_old_for_the_index_are_evicted_at_stream_time() -> None:
    config = world.settings(content={"max_age_days": 30.0})
    index = world.filled_index(config, 10)
    engine = engine_over(config, index)
    engine.refresh()
    assert len(index) == 10
    engine.statistics.stream_time = world.NOW + 60 * world.DAY
    engine.refresh()
    assert len(index) == 0
    assert engine.rank(world.some_users(config, world.filled_index(config, 5), 2))[0].items == []


def test_an_empty_index_gives_empty_slates() -> None:
    config = world.settings()
    index = world.filled_index(config, 0)
    engine = RankingEngine(config, index, ContentStatistics(config, index))
    assert engine.rank([(b"u", None)])[0].items == []
    assert engine.fallback([(b"u", None)], "test")[0].items == []
    assert engine.rank([]) == []


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory"),
        (RuntimeError("CUDA error: unspecified launch failure"), "device"),
    ],
)
def test_a_device_failure_is_counted_and_answered_with_the_cheap_list(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError, cause: str
) -> None:
    config = world.settings()
    index = world.filled_index(config, 100)
    engine = engine_over(config, index)
    users = world.some_users(config, index, 5)

    def fail(*_: object) -> None:
        raise error

    before = counted("fallbacks", cause=cause)
    with monkeypatch.context() as patched:
        patched.setattr("stream_app.ranking.choose.retrieve", fail)
        slates = engine.rank(users)
    assert [s.kind for s in slates] == ["fallback"] * 5
    assert all(len(s.items) == 10 and s.record is not None for s in slates)
    with monkeypatch.context() as patched:
        world.put(index, b"new", np.ones(world.D), world.NOW)
        patched.setattr(engine._mirror, "copy", fail)
        assert [s.kind for s in engine.rank(users)] == ["fallback"] * 5
        assert [s.kind for s in engine.rank(users)] == ["fallback"] * 5
    assert counted("fallbacks", cause=cause) - before == 15
    # the device is back: so are personal slates, and the content that it missed
    assert [s.kind for s in engine.rank(users)] == ["personal"] * 5
    assert (engine._mirror.vectors[: index.high].numpy() == index.vectors[: index.high]).all()


def test_a_device_that_fails_again_and_again_stops_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    config = world.settings()
    index = world.filled_index(config, 50)
    engine = engine_over(config, index)
    user = world.some_users(config, index, 1)

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    before = counted("device_failures", cause="device")
    with monkeypatch.context() as patched:
        patched.setattr("stream_app.ranking.choose.retrieve", fail)
        for _ in range(FAILURES_IN_A_ROW - 1):
            assert engine.rank(user)[0].kind == "fallback"
    assert engine.rank(user)[0].kind == "personal"  # and the count begins anew
    monkeypatch.setattr("stream_app.ranking.choose.retrieve", fail)
    monkeypatch.setattr(engine._mirror, "copy", fail)
    for _ in range(FAILURES_IN_A_ROW - 1):
        assert engine.rank(user)[0].kind == "fallback"
    with pytest.raises(DeviceError, match="10 times in a row"):
        engine.rank(user)
    assert counted("device_failures", cause="device") - before == 2 * FAILURES_IN_A_ROW - 1


def test_a_fault_in_the_code_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    config = world.settings()
    index = world.filled_index(config, 10)
    engine = engine_over(config, index)

    def fail(*_: object) -> None:
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    monkeypatch.setattr("stream_app.ranking.choose.retrieve", fail)
    with pytest.raises(RuntimeError, match="size of tensor"):
        engine.rank([(b"u", None)])


def test_a_slate_loses_what_was_deleted_while_it_was_made() -> None:
    config = world.settings()
    index = world.filled_index(config, 50)
    engine = engine_over(config, index)
    slate = engine.rank([(b"u", None)])[0]
    assert list(engine.without_deleted([slate])) == [slate]
    index.delete(ids(slate)[2])
    (left,) = engine.without_deleted([slate])
    assert ids(left) == ids(slate)[:2] + ids(slate)[3:]


def test_what_gives_way_to_a_newer_content_while_the_device_ranks_is_left_out() -> None:
    config = world.settings(content={"capacity": 10})
    index = world.filled_index(config, 10)
    engine = engine_over(config, index)
    slate = engine.rank([(b"u", None)])[0]
    oldest = index.ids[int(np.argmin(index.created_at))]
    world.put(index, b"newer", np.ones(world.D), world.NOW)
    assert oldest not in index.rows
    (left,) = engine.without_deleted([slate])
    assert ids(left) == [one for one in ids(slate) if one != oldest]
    engine.refresh()
    (again,) = engine.rank([(b"u", None)])
    assert list(engine.without_deleted([again])) == [again]
