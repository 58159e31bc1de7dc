"""Reading a log and one pass over it: what is a target, what may be recommended, and what a rank is."""

from __future__ import annotations

import numpy as np
import pytest

from stream_app.evaluation import metrics
from stream_app.evaluation.baselines import DecayedPopularity, Popularity, Random
from stream_app.evaluation.prequential import run
from stream_app.evaluation.scorer import Scores, Touch, World
from tests.evaluation.small_logs import BEGIN_MS, MINUTE_MS, content, deletion, event, read, walks


class Fixed:
    """Scores given in advance."""

    def __init__(self, *scores: float) -> None:
        self.scores = np.array(scores)
        self.asked: list[tuple[int, int, int]] = []
        self.updates: list[Touch] = []
        self.known_when_asked: list[int] = []

    def score(self, now: int, user: int, count: int) -> Scores:
        self.asked.append((now, user, count))
        self.known_when_asked.append(len(self.updates))
        return self.scores[:count]

    def update(self, touch: Touch) -> None:
        self.updates.append(touch)


def test_a_target_is_a_first_touch_that_did_not_publish_the_content() -> None:
    log = read(
        [
            content("a"),
            event("author", "a", 0),  # publishes it
            event("ann", "a", 1),
            event("ann", "a", 2),  # again
            event("ann", "a", 2),  # the same row twice
            event("bob", "a", 3, "likes", event_id="e"),
            event("bob", "a", 4, "likes", event_id="e", undo=True),
            event("cid", "unheard of", 5),
        ]
    )
    assert log.touch.tolist() == [False, True, False, True, False]
    assert log.first.tolist() == [True, True, False, True, False]
    assert log.history.tolist() == [0, 0, 1, 0, 1]
    assert log.skipped == 1


@pytest.mark.parametrize(
    ("days", "topic", "strong"), [(6, "likes", True), (8, "likes", False), (1, "views", False)]
)
def test_strong_is_what_turns_into_more_than_a_view_within_a_week(
    days: int, topic: str, strong: bool
) -> None:
    log = read(
        [
            content("a"),
            event("author", "a", 0),
            event("ann", "a", 5),
            event("ann", "a", 5 + days * 1440, topic),
        ]
    )
    assert log.strong.tolist() == [False, strong, False]


def test_only_what_is_out_may_be_recommended() -> None:
    records = [content("old"), content("late", 30), content("early bird", 90), content("never", 10**7)]
    records += [event("author", "old", 0), event("ann", "old", 10), event("author", "late", 30)]
    # touched before it was published: it is out from then on
    records += [event("author", "early bird", 40), event("bob", "late", 50)]
    log = read(records)
    assert [name.decode() for name in log.catalogue.ids] == ["old", "late", "early bird", "never"]
    scorer = Fixed(1.0, 1.0, 5.0, 9.0)
    outcome = run(log, scorer, begin=0.0)
    assert [count for _, _, count in scorer.asked] == [1, 3]
    assert outcome.ranks[1] >= 1
    assert set(outcome.lists[1].tolist()) == {0, 1, 2, -1}


def test_ranks_leave_out_what_the_user_knows_and_what_was_deleted() -> None:
    records = [content(name) for name in "abcd"]
    records += [event("author", name, 1) for name in "abcd"]
    records += [event("ann", "a", 2), event("ann", "d", 3)]
    log = read(records)
    outcome = run(log, Fixed(4.0, 3.0, 2.0, 1.0), begin=0.0)
    assert outcome.ranks.tolist() == [0, 2]  # for d: b and c stand above, a is known
    assert outcome.lists[1][:4].tolist() == [1, 2, 3, -1]
    assert outcome.candidates.tolist() == [4, 3]

    gone = read([*records[:-1], deletion("b", 2), records[-1]])
    assert run(gone, Fixed(4.0, 3.0, 2.0, 1.0), begin=0.0).ranks.tolist() == [0, 1]


def test_updates_come_after_their_score_and_end_when_frozen() -> None:
    log = walks(events=300)
    whole, frozen = Fixed(*range(200)), Fixed(*range(200))
    outcome = run(log, whole, begin=0.5)
    assert [touch.place for touch in whole.updates] == list(range(len(log)))
    assert whole.known_when_asked == outcome.at.tolist()
    assert outcome.at.min() >= len(log) // 2
    run(log, frozen, begin=0.5, frozen_after=0.8)
    assert len(frozen.updates) == int(len(log) * 0.8)
    assert len(frozen.asked) == len(whole.asked)


def test_equals_are_ordered_by_lot_the_same_lot_every_time() -> None:
    log = walks()
    first, again = (run(log, Random(World.of(log)), seed=3) for _ in range(2))
    other = run(log, Random(World.of(log)), seed=4)
    assert np.array_equal(first.ranks, again.ranks)
    assert np.array_equal(first.lists, again.lists)
    assert not np.array_equal(first.ranks, other.ranks)
    # a lot is fair: every rank is equally likely
    expected = float(np.mean(10 / first.candidates))
    hits = metrics.gains(first)[1]
    assert hits.mean() == pytest.approx(expected, abs=4 * hits.std() / np.sqrt(len(hits)))
    # and the list and the rank tell the same
    assert np.array_equal((first.lists == log.contents[first.at][:, None]).any(axis=1), hits > 0)


def test_a_score_that_is_no_number_stops_the_run() -> None:
    # nothing compares greater than NaN: it would stand at the top of every list
    log = read([content("a"), event("author", "a", 0), event("ann", "a", 1)])
    with pytest.raises(AssertionError, match="Fixed gave no number"):
        run(log, Fixed(np.nan), begin=0.0)


def test_what_is_not_recommended_is_no_hit() -> None:
    log = read([content("a"), event("author", "a", 0), event("ann", "a", 1)])
    outcome = run(log, Fixed(-np.inf), begin=0.0)
    assert metrics.gains(outcome).tolist() == [[0.0], [0.0], [0.0]]
    assert (outcome.lists == -1).all()


@pytest.mark.parametrize(
    ("rank", "ndcg", "mrr"), [(0, 1.0, 1.0), (1, 0.6309, 0.5), (9, 0.2891, 0.1), (10, 0.0, 0.0)]
)
def test_gains(rank: int, ndcg: float, mrr: float) -> None:
    names = [f"c{i:02}" for i in range(12)]
    records = [content(name) for name in names] + [event("author", name, 0) for name in names]
    log = read([*records, event("ann", names[rank], 1)])
    scored = metrics.gains(run(log, Fixed(*range(12, 0, -1)), begin=0.0))
    assert scored[:, 0] == pytest.approx([ndcg, float(rank < 10), mrr], abs=1e-4)


def test_popularity_counts_each_user_once_and_forgets_at_its_half_life() -> None:
    log = read([content(name) for name in "ab"])
    world = World.of(read([content("a"), content("b"), event("x", "a", 0), event("x", "b", 0)]))
    assert len(log) == 0
    touches = [(0, 0, True), (0, 1, True), (0, 2, False), (1, 60, True)]  # content, minute, first
    plain, decayed = Popularity(world), DecayedPopularity(world, half_life_h=0.5)
    for name, minute, first in touches:
        time = BEGIN_MS + minute * MINUTE_MS
        for scorer in (plain, decayed):
            scorer.update(Touch(0, time, time, 0, name, 0, 0.3, False, first))
    now = BEGIN_MS + 60 * MINUTE_MS
    assert plain.score(now, 0, 2).tolist() == [2.0, 1.0]
    # 1 now, against 2^-2 + 2^(-59/30): the logarithms differ by as much
    scores = decayed.score(now, 0, 2)
    assert float(scores[1] - scores[0]) == pytest.approx(-np.log2(2**-2.0 + 2 ** (-59 / 30)))


def test_intervals_hold_the_mean_and_depend_on_users() -> None:
    log = walks()
    outcome = run(log, Random(World.of(log)))
    hit = metrics.gains(outcome)[1]
    everything = np.ones(len(hit), np.bool_)
    bootstrap = metrics.Bootstrap(outcome)
    estimate = bootstrap.estimate(hit, everything)
    assert estimate is not None
    assert estimate.low < hit.mean() < estimate.high
    # a constant has no spread, whoever is drawn
    assert bootstrap.estimate(everything.astype(float), everything) == metrics.Estimate(1.0, 1.0, 1.0)
    assert bootstrap.estimate(hit, ~everything) is None


def test_diversity_of_lists() -> None:
    log = read([*(content(n) for n in "abc"), *(event("author", n, 0) for n in "abc"), event("ann", "a", 1)])
    outcome = run(log, Fixed(3.0, 2.0, 1.0), begin=0.0)
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert metrics.intra_list_diversity(outcome, vectors) == pytest.approx(2 / 3)
    assert metrics.coverage(outcome) == 1.0
