"""Statistics of all partitions add up, whatever the order; popularity depends on the catalogue alone."""

from __future__ import annotations

import numpy as np
import pytest
import ranking_world as world
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from stream_app.interests.statistics_record import OUTCOMES_KEY
from stream_app.learning.activity import HALF_LIVES_H
from stream_app.ranking.popularity import ContentStatistics
from tests.ranking import learned_world

H = 2  # 24 h among the default half-lives
LIKE = [1.0, 1.0, 1.0, 1.0, 1.0]


def rejected() -> float:
    return REGISTRY.get_sample_value("stream_app_ranker_rejected_total", {"topic": "content-stats"}) or 0.0


def test_partitions_add_up_decayed_to_now() -> None:
    config = world.settings()
    index = world.filled_index(config, 3)
    statistics = ContentStatistics(config, index)
    id_ = world.content_id(1)
    statistics.apply(
        [
            (id_, world.statistics_value(config, 0, world.NOW - world.DAY, {"like": LIKE, "share": LIKE})),
            (id_, world.statistics_value(config, 3, world.NOW, {"comment": LIKE})),
        ]
    )
    x = statistics.engagement(H, world.NOW)
    assert x == pytest.approx(
        [0.0, 0.5 * (1 + 3) + 2, 0.0]
    )  # like 1, comment 2, share 3; a day is one half-life
    assert statistics.stream_time == world.NOW


@hypothesis_settings(deadline=None, derandomize=True, max_examples=50)
@given(st.data())
def test_interleaving_of_partitions_does_not_matter(data: st.DataObject) -> None:
    config = world.settings()
    index = world.filled_index(config, 2)
    logs = {
        p: [
            (
                world.content_id(data.draw(st.integers(0, 3))),  # 2 and 3 are not in the index
                world.statistics_value(
                    config, p, world.NOW + i * world.HOUR, {"like": [float(data.draw(st.integers(0, 9)))] * 5}
                ),
            )
            for i in range(4)
        ]
        for p in range(3)
    }
    one_by_one = [r for p in logs for r in logs[p]]
    order = data.draw(st.permutations([p for p in logs for _ in logs[p]]))
    queues = {p: iter(log) for p, log in logs.items()}
    mixed = [next(queues[p]) for p in order]
    sums = []
    for records in (one_by_one, mixed):
        statistics = ContentStatistics(config, index)
        statistics.apply(records)
        sums.append(statistics.engagement(H, world.NOW + 5 * world.HOUR))
    assert sums[0] == pytest.approx(sums[1], rel=1e-6)


def test_a_newer_record_replaces_the_older_of_its_partition() -> None:
    config = world.settings()
    index = world.filled_index(config, 1)
    statistics = ContentStatistics(config, index)
    for count in (5.0, 2.0):
        statistics.apply(
            [(world.content_id(0), world.statistics_value(config, 1, world.NOW, {"like": [count] * 5}))]
        )
    assert statistics.engagement(H, world.NOW) == pytest.approx([2.0])


def test_contents_not_in_the_index_yet_are_held_and_adopted() -> None:
    config = world.settings()
    index = world.filled_index(config, 1)
    statistics = ContentStatistics(config, index)
    index.drain_changes()
    statistics.apply([(b"later", world.statistics_value(config, 0, world.NOW, {"like": LIKE}))])
    world.put(index, b"later", np.ones(world.D), world.NOW)
    statistics.adopt(index.drain_changes())
    assert statistics.engagement(H, world.NOW)[index.rows[b"later"]] == pytest.approx(1.0)


def test_what_is_held_is_bounded() -> None:
    config = world.settings(content={"capacity": 8})
    index = world.filled_index(config, 0)
    statistics = ContentStatistics(config, index)
    value = world.statistics_value(config, 0, world.NOW, {"like": LIKE})
    statistics.apply([(b"c%d" % i, value) for i in range(20)])
    for i in range(12, 20):  # the eight heard of last
        world.put(index, b"c%d" % i, np.ones(world.D), world.NOW)
    statistics.adopt(index.drain_changes())
    assert statistics.engagement(H, world.NOW).tolist() == [1.0] * 8


def test_a_reused_row_does_not_inherit_counts() -> None:
    config = world.settings()
    index = world.filled_index(config, 1)
    statistics = ContentStatistics(config, index)
    statistics.apply([(world.content_id(0), world.statistics_value(config, 0, world.NOW, {"like": LIKE}))])
    index.delete(world.content_id(0))
    world.put(index, b"other", np.ones(world.D), world.NOW)
    assert index.rows[b"other"] == 0
    assert statistics.engagement(H, world.NOW).tolist() == [0.0]
    statistics.apply([(b"other", world.statistics_value(config, 1, world.NOW, {"comment": LIKE}))])
    assert statistics.engagement(H, world.NOW).tolist() == [2.0]


def test_unreadable_records_are_counted_and_cost_nothing_else() -> None:
    config = world.settings()
    index = world.filled_index(config, 1)
    statistics = ContentStatistics(config, index)
    before = rejected()
    good = world.statistics_value(config, 0, world.NOW, {"like": LIKE})
    statistics.apply(
        [
            (b"x", b""),
            (world.content_id(0), good[:-1]),
            (world.content_id(0), world.statistics_value(config, 99, world.NOW, {"like": LIKE})),
            (OUTCOMES_KEY, b"{}"),
            (world.content_id(0), None),
            (None, good),
            (world.content_id(0), good),
        ]
    )
    assert rejected() - before == 3
    assert statistics.engagement(H, world.NOW).tolist() == [1.0]


def test_unknown_actions_and_half_lives_count_nothing() -> None:
    writer = world.settings(interests={"stats_half_lives_h": [24.0, 99.0]})
    reader = world.settings()
    index = world.filled_index(reader, 1)
    statistics = ContentStatistics(reader, index)
    value = world.statistics_value(writer, 0, world.NOW, {"like": [7.0, 8.0], "waved_at": [100.0, 100.0]})
    statistics.apply([(world.content_id(0), value)])
    assert [float(statistics.engagement(h, world.NOW)[0]) for h in range(5)] == [0, 0, 7, 0, 0]


def test_negative_actions_count_against_and_popularity_is_between_0_and_1() -> None:
    actions = [
        {"name": "like", "topic": "likes", "weight": 1.0},
        {"name": "hide", "topic": "hides", "weight": -2.0},
    ]
    config = world.settings(events={"actions": actions})
    index = world.filled_index(config, 3)
    statistics = ContentStatistics(config, index)
    for i, counts in enumerate(({"like": [8.0] * 5}, {"like": [8.0] * 5, "hide": [2.0] * 5}, {"hide": LIKE})):
        statistics.apply([(world.content_id(i), world.statistics_value(config, 0, world.NOW, counts))])
    popularity = statistics.popularity(H, world.NOW)
    assert popularity == pytest.approx([1.0, np.log1p(4) / np.log1p(8), 0.0])


def test_next_to_nothing_is_not_popular() -> None:
    config = world.settings()
    index = world.filled_index(config, 1)
    statistics = ContentStatistics(config, index)
    statistics.apply([(world.content_id(0), world.statistics_value(config, 0, world.NOW, {"like": LIKE}))])
    assert statistics.popularity(H, world.NOW + 10 * world.DAY)[0] < 0.01


def test_nearest_half_life_is_logarithmic() -> None:
    config = world.settings()
    statistics = ContentStatistics(config, world.filled_index(config, 1))
    assert [statistics.nearest_half_life(h) for h in (0.1, 2.0, 10.0, 24.0, 1e6)] == [0, 1, 1, 2, 4]


def test_engagements_are_counted_beside_their_weights() -> None:
    config = learned_world.settings()
    index = world.filled_index(config, 3)
    statistics = ContentStatistics(config, index)
    assert statistics.fit_learning
    h = len(HALF_LIVES_H)
    ago = world.NOW - world.DAY
    counts = {"like": [4.0] * h, "view": [2.0] * h, "rate": [1.0] * h, "hide": [0.5] * h}
    statistics.apply(
        [
            (world.content_id(1), world.statistics_value(config, 0, ago, counts)),
            (world.content_id(1), world.statistics_value(config, 1, world.NOW, {"hide": [9.0] * h})),
            (world.content_id(2), world.statistics_value(config, 1, world.NOW, {"waved_at": [9.0] * h})),
        ]
    )
    found = statistics.activity(world.NOW)
    left = 2.0 ** (-24 / np.array(HALF_LIVES_H))
    np.testing.assert_allclose(found.engaged[:, 1], 7 * left, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.weighted[:, 1], 0)  # the dislikes of partition 1 prevail
    assert not found.engaged[:, [0, 2]].any()
    assert found.engaged_at.tolist() == [0, world.NOW, world.NOW]


def test_a_reused_row_was_never_engaged_with() -> None:
    config = learned_world.settings()
    index = world.filled_index(config, 1)
    statistics = ContentStatistics(config, index)
    like = {"like": [1.0] * len(HALF_LIVES_H)}
    statistics.apply([(world.content_id(0), world.statistics_value(config, 0, world.NOW, like))])
    index.delete(world.content_id(0))
    world.put(index, b"other", np.ones(world.D), world.NOW)
    assert statistics.activity(world.NOW).engaged_at.tolist() == [0]
    old = world.NOW - world.DAY
    statistics.apply([(b"other", world.statistics_value(config, 1, old, like))])
    assert statistics.activity(world.NOW).engaged_at.tolist() == [old]
