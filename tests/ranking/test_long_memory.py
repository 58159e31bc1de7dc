"""Contents that a user had long ago, of which only fingerprints are left, are not recommended again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import ranking_world as world
from ranking_world import Engagement

from stream_app.hashing import key64
from stream_app.interests import record
from stream_app.interests.seen import fingerprints
from stream_app.ranking.engine import RankingEngine
from stream_app.ranking.popularity import ContentStatistics


def test_what_a_user_had_long_ago_does_not_come_back() -> None:
    config = world.settings(ranking={"slate_size": 30, "author_cap": 0})
    index = world.filled_index(config, 60)
    statistics = ContentStatistics(config, index)
    statistics.stream_time = world.NOW
    engine = RankingEngine(config, index, statistics)
    ids = [world.content_id(n) for n in range(60)]
    value = world.interest_record(config, index, [Engagement(ids[0], world.NOW)], seen=ids[:5])
    keys = np.array([key64(name) for name in ids[5:40]], np.uint64)
    user = (b"ana", replace(record.decode(value), long=fingerprints(keys)))
    for ranked in (engine.rank([user])[0], engine.fallback([user], "test")[0]):
        assert {item.content_id.encode() for item in ranked.items} == set(ids[40:])
