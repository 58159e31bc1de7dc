"""A/B arms: the same user in the same arm, shares as configured, and each arm with its own ranker."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import REGISTRY

from stream_app.errors import ConfigurationError
from stream_app.ranking.arms import Arms
from stream_app.ranking.engine import User
from stream_app.settings import Arm, load
from tests.ranking import learned_world
from tests.ranking import ranking_world as world

THREE = (
    Arm(name="learned", ranker="learned", share=6),
    Arm(name="blend", ranker="blend", share=3),
    Arm(name="more", ranker="learned", share=1),
)


def test_shares_are_as_configured_and_independent_of_other_salts() -> None:
    users = [b"user-%d" % i for i in range(20_000)]
    drawn = {}
    for salt in ("", "spring"):
        arms = Arms(THREE, salt)
        drawn[salt] = [arms.of(user).name for user in users]
        assert [Arms(THREE, salt).of(user).name for user in users[:100]] == drawn[salt][:100]
        for arm, share in zip(THREE, (0.6, 0.3, 0.1), strict=True):
            deviation = np.sqrt(share * (1 - share) / len(users))
            assert drawn[salt].count(arm.name) / len(users) == pytest.approx(share, abs=4 * deviation)
    # whoever is in an arm by one salt is in any by the other
    both = [b == "learned" for a, b in zip(*drawn.values(), strict=True) if a == "learned"]
    assert np.mean(both) == pytest.approx(0.6, abs=4 * np.sqrt(0.24 / len(both)))


def test_one_arm_has_everybody_and_reserved_keys_are_in_the_first() -> None:
    assert {Arms(THREE[:1], "").of(b"user-%d" % i).name for i in range(100)} == {"learned"}
    assert {Arms(THREE, str(salt)).of(b"\x00cold-start").name for salt in range(50)} == {"learned"}


def test_arms_come_from_the_environment_and_have_names_of_their_own() -> None:
    found = load(environment={"STREAM_APP_RANKING_ARMS": "a:learned:0.9,b:blend:0.1"})
    assert found.ranking.arms == (
        Arm(name="a", ranker="learned", share=0.9),
        Arm(name="b", ranker="blend", share=0.1),
    )
    for wrong in ("a:learned", "a:learned:0", "a:best:1", "a:blend:1,a:learned:1", "A:blend:1", ""):
        with pytest.raises(ConfigurationError, match=r"ranking\.arms"):
            load(environment={"STREAM_APP_RANKING_ARMS": wrong})


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"stream_app_{name}_total", labels) or 0.0


def test_each_arm_is_ranked_by_its_ranker_and_counted() -> None:
    arms = [{"name": a.name, "ranker": a.ranker, "share": a.share} for a in THREE]
    config = learned_world.settings(ranking={"arms": arms})
    index = world.filled_index(config, 200)
    users: list[User] = [*world.some_users(config, index, 60), (b"\x00cold-start", None)]
    engine = learned_world.engine_over(config, index, learned_world.published(2, version=7))
    before = {
        key: counted("arm_users", arm=key[0], ranker=key[1])
        for key in (("learned", "learned"), ("blend", "blend"), ("more", "learned"), ("blend", "learned"))
    }
    found = engine.rank(users)
    assert [user for user, _ in users] == [one.user_id for one in found]
    expected = Arms(config.ranking.arms, "")
    for one in found:
        arm = expected.of(one.user_id)
        assert one.arm == arm.name
        assert one.ranker == ("learned-7" if arm.ranker == "learned" else "blend")
    assert {one.arm for one in found} == {"learned", "blend", "more"}
    assert found[-1].arm == "learned"
    for key, count in before.items():
        wanted = sum((one.arm, one.ranker.partition("-")[0]) == key for one in found)
        assert counted("arm_users", arm=key[0], ranker=key[1]) - count == wanted
    # the arms share nothing: each user's slate is what an engine with that one ranker makes
    for ranker in ("learned", "blend"):
        alone = learned_world.settings(ranking={"arms": [{"name": "a", "ranker": ranker, "share": 1}]})
        same = world.filled_index(alone, 200)
        slates = learned_world.engine_over(alone, same, learned_world.published(2)).rank(users)
        for one, other in zip(found, slates, strict=True):
            if one.ranker.startswith(ranker):
                assert [i.content_id for i in one.items] == [i.content_id for i in other.items]


def test_without_a_model_the_blend_ranks_for_every_arm_and_that_is_counted() -> None:
    config = learned_world.settings()
    index = world.filled_index(config, 50)
    engine = learned_world.engine_over(config, index, None)
    before = counted("fallbacks", cause="no_model")
    found = engine.rank(world.some_users(config, index, 40))
    assert {(one.arm, one.ranker, one.kind) for one in found} == {("learned", "blend", "personal")}
    assert counted("fallbacks", cause="no_model") - before == 40


def test_statistics_at_other_half_lives_leave_the_ranking_to_the_blend(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = world.settings()  # five half-lives
    index = world.filled_index(config, 50)
    engine = learned_world.RankingEngine(config, index, learned_world.ContentStatistics(config, index))
    assert "stats_half_lives_h" in caplog.text
    engine.adopt(learned_world.published(2))
    assert {one.ranker for one in engine.rank(world.some_users(config, index, 3))} == {"blend"}
