"""What users were shown: in vain, before an engagement and not after it, and never without bounds."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from stream_app.events.impressions import ShownList
from stream_app.hashing import key64
from stream_app.learning.shown import ShownContents, fatigue
from stream_app.settings import Settings, build

NOW = 1_700_000_000_000
HOUR = 3_600_000
DAY = 24 * HOUR


def remembered(users: int = 10, contents: int = 64) -> ShownContents:
    return ShownContents(
        build(
            {"impressions": {"remembered_users": users, "remembered_contents": contents, "max_contents": 8}}
        )
    )


def shown(*contents: str, at: int = NOW, user: bytes = b"u", of_slate: bool = True) -> ShownList:
    keys = np.array([key64(content) for content in contents], np.uint64)
    return ShownList(user, at, keys, np.arange(len(keys), dtype=np.uint16), of_slate)


def counts(memory: ShownContents, now: int = NOW, user: bytes = b"u") -> dict[int, float]:
    keys, found = memory.tired(user, now)
    return dict(zip(keys.tolist(), found.tolist(), strict=True))


def test_showings_without_an_engagement_add_up_and_fade() -> None:
    memory = remembered()
    for day in range(3):
        memory.take(shown("a", "b", at=NOW - day * DAY))
    memory.take(shown("a", at=NOW - HOUR))
    assert counts(memory) == pytest.approx({key64("a"): 1.75 + 0.5 ** (1 / 24), key64("b"): 1.75})
    assert memory.answered(b"u", key64("a"), NOW + 1) is not None
    assert counts(memory) == pytest.approx({key64("b"): 1.75})
    assert counts(memory, user=b"v") == {}


def test_the_same_list_twice_is_one_showing() -> None:
    memory = remembered()
    assert memory.take(shown("a", "b")) == 2
    assert memory.take(shown("a", "b", "c")) == 1
    assert counts(memory) == pytest.approx({key64(c): 1.0 for c in "abc"})


def test_an_engagement_answers_the_newest_list_before_it() -> None:
    memory = remembered()
    memory.take(shown("x", "c", at=NOW - 2 * HOUR))
    memory.take(shown("b", "a", "c", at=NOW - HOUR))
    memory.take(shown("a", "z", at=NOW + 1))  # shown only after the engagement
    answered = memory.answered(b"u", key64("a"), NOW)
    assert answered is not None
    found = dict(zip(answered.keys.tolist(), answered.positions.tolist(), strict=True))
    assert found == {key64("b"): 0, key64("a"): 1, key64("c"): 2}
    tired = dict(zip(answered.keys.tolist(), answered.tired.tolist(), strict=True))
    assert tired == pytest.approx({key64("b"): 0, key64("a"): 0, key64("c"): 0.5 ** (1 / 24)})
    assert memory.answered(b"u", key64("a"), NOW) is None  # once
    assert memory.answered(b"u", key64("z"), NOW) is None  # shown later
    assert memory.answered(b"u", key64("q"), NOW) is None  # never shown


def test_that_it_was_chosen_does_not_show_in_how_often_it_had_been_shown_in_vain() -> None:
    memory = remembered()
    for hour in (3, 2, 1):
        memory.take(shown("a", "b", at=NOW - hour * HOUR))
    answered = memory.answered(b"u", key64("a"), NOW)
    assert answered is not None
    assert answered.tired[0] == answered.tired[1] > 1.9


def test_what_was_shown_too_long_before_is_not_answered() -> None:
    memory = remembered()
    memory.take(shown("a", at=NOW - DAY - 1))
    assert memory.answered(b"u", key64("a"), NOW) is None
    assert memory.answered(b"u", key64("a"), NOW - 1) is not None


def test_only_the_newest_showings_and_users_are_remembered() -> None:
    memory = remembered(users=3, contents=8)
    for number in range(20):
        memory.take(shown(f"c{number}", f"d{number}", at=NOW + number))
    assert sorted(counts(memory, NOW + 20)) == sorted(key64(f"{c}{n}") for n in range(16, 20) for c in "cd")
    for user in (b"v", b"w", b"u", b"x"):  # u was shown something after v
        memory.take(shown("x", at=NOW + 30, user=user))
    assert len(memory) == 3
    assert counts(memory, user=b"v") == {}
    assert len(counts(memory, user=b"u")) == 8
    # a row that is given to another user begins empty
    memory.take(shown("y", at=NOW + 31, user=b"z"))
    assert list(counts(memory, user=b"z")) == [key64("y")]
    assert len(memory) == 3


def test_asking_remembers_nobody() -> None:
    memory = remembered()
    assert memory.answered(b"u", key64("a"), NOW) is None
    assert counts(memory) == {}
    memory.forget(b"u")
    assert len(memory) == 0


def test_users_and_partitions_are_forgotten() -> None:
    memory = remembered(users=4)
    for user, partition in ((b"u", 0), (b"v", 1), (b"w", 1), (b"x", 0)):
        memory.take(shown("a", user=user), partition)
    memory.forget_partition(1)
    memory.forget(b"x")
    assert [len(counts(memory, user=u)) for u in (b"u", b"v", b"w", b"x")] == [1, 0, 0, 0]
    for user in (b"a", b"b", b"c"):
        memory.take(shown("a", user=user))
    assert len(memory) == 4


def test_fatigue_is_a_power_of_the_odds() -> None:
    np.testing.assert_allclose(
        np.exp(-fatigue(np.array([0.0, 1.0, 5.0], np.float32), 0.5)), [1, 2**-0.5, 6**-0.5], rtol=1e-6
    )


def test_memory_is_what_was_promised() -> None:
    settings = Settings()
    small = replace(settings.impressions, remembered_users=1_000)
    memory = ShownContents(replace(settings, impressions=small))
    arrays = [value for value in vars(memory).values() if isinstance(value, np.ndarray) and value.ndim == 2]
    assert sum(array.nbytes for array in arrays) == 20 * 1_000 * small.remembered_contents


def test_an_engagement_is_counted_once_and_only_where_a_slate_was_shown() -> None:
    memory = remembered()
    memory.take(shown("a", "b", "c", at=NOW))
    memory.take(shown("d", at=NOW, of_slate=False))
    names = ("z", "a", "d", "a", "b")
    contents, times = np.array([key64(n) for n in names], np.uint64), NOW + np.array([1, 1, 1, 2, -1])
    assert memory.answers(b"u", contents, times) == 1  # a; of d no slate was named, b was before
    assert memory.answers(b"u", contents, times) == 0
    assert memory.answers(b"v", contents, times) == 0
    assert memory.answers(b"u", contents[-1:], times[1:2]) == 1
