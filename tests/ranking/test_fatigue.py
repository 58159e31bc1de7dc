"""Fatigue: what was shown again and again in vain goes down, for that user and by what the setting says."""

from __future__ import annotations

import learned_world
import msgspec
import numpy as np
import pytest
import ranking_world as world

from stream_app.events.impressions import ShownList
from stream_app.hashing import key64
from stream_app.learning.shown import ShownContents
from stream_app.ranking.engine import RankingEngine
from stream_app.ranking.ranked import PARTS, Item, User

CONFIG = {"diversity": 0.0, "author_cap": 0, "slate_size": 60, "candidates": 60}
"""Slates that show all candidates."""


def engine_and_users(
    ranker: str, fatigue: float = 0.3, remembers: bool = True
) -> tuple[RankingEngine, list[User], ShownContents]:
    config = learned_world.settings(
        ranking={**CONFIG, "fatigue": fatigue}, impressions={"remembered_users": 100}
    )
    index = learned_world.world.filled_index(config, 60)
    engine = learned_world.engine_over(
        config, index, learned_world.published(2) if ranker == "learned" else None
    )
    memory = ShownContents(config)
    engine._shown = memory if remembers else None
    return engine, list(world.some_users(config, index, 5)), memory


def show(memory: ShownContents, user: bytes, content_id: str, at: int) -> None:
    keys = np.array([key64(content_id)], np.uint64)
    memory.take(ShownList(user, at, keys, np.zeros(1, np.uint16), True))


def scores(items: list[Item]) -> dict[str, float]:
    return {item.content_id: item.score for item in items}


@pytest.mark.parametrize(("ranker", "strength"), [("blend", 0.3), ("learned", 2.0)])
def test_what_was_shown_five_times_in_vain_moves_down_for_that_user(ranker: str, strength: float) -> None:
    engine, users, memory = engine_and_users(ranker, strength)
    before = engine.rank(users)
    assert before[2].ranker.startswith(ranker)
    tired, other = before[2].items[0].content_id, before[2].items[1].content_id
    for hour in range(5):
        show(memory, users[2][0], tired, world.NOW - hour * world.HOUR)
    show(memory, users[2][0], other, world.NOW - 50 * world.DAY)
    show(memory, users[2][0], "never heard of", world.NOW)
    after = engine.rank(users)
    assert after[2].items[0].content_id == other
    assert tired in scores(after[2].items)
    assert any(tired in scores(before[place].items) for place in (0, 1, 3, 4))
    lost = strength * np.log1p(sum(0.5 ** (hour / 24) for hour in range(5)))
    expected = before[2].items[0].score - lost
    left = {**scores(before[2].items), tired: expected}
    for item in after[2].items:
        parts = sum(getattr(item.parts, name) for name in PARTS)
        assert item.score == pytest.approx(parts, abs=1e-5)
        assert item.score == pytest.approx(left.get(item.content_id, item.score), abs=1e-5)
        assert item.parts.fatigue == pytest.approx(-lost if item.content_id == tired else 0, abs=1e-5)
    assert scores(after[2].items).keys() == left.keys()
    for place in (0, 1, 3, 4):
        assert after[place].items == before[place].items
    assert engine.rank([users[2]])[0].items == after[2].items  # whoever else is in the batch


@pytest.mark.parametrize("ranker", ["blend", "learned"])
def test_without_impressions_or_without_fatigue_slates_are_as_ever(ranker: str) -> None:
    slates = []
    for fatigue, remembers in ((0.3, False), (0.3, True), (0.0, True)):
        engine, users, memory = engine_and_users(ranker, fatigue, remembers)
        if not fatigue:
            for one in engine.rank(users):
                show(memory, one.user_id, one.items[0].content_id, world.NOW)
        slates.append(msgspec.json.encode([one.items for one in engine.rank(users)]))
    assert slates[1] == slates[0] == slates[2]
    assert b"fatigue" not in slates[0]
