"""What is new in interests records: each engagement once, in its order, with what was known before it."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from stream_app.interests.record import decode
from stream_app.learning.engagements import RememberedUsers
from stream_app.learning.online import Engagement, Recounted
from tests.interests.test_batch import CONTENTS, NOW_MS, WEIGHTS, World, configured

USERS = ("ann", "bob", "cem")
MINUTE = 60_000


class Truth:
    """What every user did, one after the other."""

    def __init__(self) -> None:
        self.done: dict[str, list[list[object]]] = {user: [] for user in USERS}
        self.expected: list[tuple[object, ...]] = []

    def engage(self, user: str, content: int, time: int, weight: float, event: str) -> None:
        before = self.done[user]
        first = content not in [done[0] for done in before]
        newest: list[object] = []
        for done in reversed(before):
            if done[0] not in newest:
                newest.append(done[0])
        liked = [c for c in newest if any(d[3] and float(str(d[2])) >= 0 for d in before if d[0] == c)]
        known = {done[0] for done in before}
        self.expected.append((user, content, time, weight, first, tuple(liked), frozenset(known)))
        before.append([content, time, weight, True, event])

    def undo(self, user: str, event: str) -> None:
        for done in self.done[user]:
            if done[4] == event:
                done[3] = False

    def counted(self) -> Counter[tuple[object, ...]]:
        """Each user's newest standing engagement with a content by an action."""
        newest: dict[tuple[object, ...], int] = {}
        for user, engagements in self.done.items():
            for content, time, weight, stands, _ in engagements:
                if stands:
                    who = (user, content, weight)
                    newest[who] = max(int(str(time)), newest.get(who, 0))
        return Counter((*who, time) for who, time in newest.items())


def read(
    world: World,
    users: RememberedUsers,
    changed: set[str],
    counted: Counter[tuple[object, ...]] | None = None,
) -> list[tuple[object, ...]]:
    """What the records of these users say that is new; ``counted`` follows who counts."""
    counted = Counter() if counted is None else counted
    found: list[tuple[object, ...]] = []
    index = world.contents.index
    names = {row: int(name[1:]) for name, row in index.rows.items()}
    for user in sorted(changed):
        for news in users.news(user.encode(), decode(world.table[user.encode()]), index):
            if news.counts or isinstance(news, Recounted):
                counted[user, names[news.row], news.weight, news.time] += 1 if news.counts else -1
            if isinstance(news, Recounted):
                continue
            history = tuple(names[row] for row in news.history.rows.tolist())
            known = frozenset(names[row] for row in news.known.tolist())
            content = names[news.row]
            found.append((user, content, news.time, news.weight, news.first, history, known))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_each_engagement_comes_once_and_knows_only_what_was_before_it(seed: int, tmp_path: Path) -> None:
    world, users, truth, rng = (
        World(configured(), tmp_path),
        RememberedUsers(10),
        Truth(),
        random.Random(seed),
    )
    world.know(*range(CONTENTS))
    found: list[tuple[object, ...]] = []
    counted: Counter[tuple[object, ...]] = Counter()
    for user in USERS:  # someone who is not remembered has but one interaction that is new
        world.take("likes", [world.event(user, 0, 10_000 * MINUTE, event_id=f"{user}-0")])
        truth.engage(user, 0, NOW_MS - 10_000 * MINUTE, 1.0, f"{user}-0")
    found += read(world, users, set(USERS), counted)
    for number in range(1, 60):
        topic = rng.choice(list(WEIGHTS))
        records, changed = [], set()
        for place in range(rng.randint(1, 4)):
            user, content = rng.choice(USERS), rng.randrange(CONTENTS)
            age = (10_000 - 10 * number - place) * MINUTE
            event = f"{number}-{place}"
            records.append(world.event(user, content, age, event_id=event))
            truth.engage(user, content, NOW_MS - age, WEIGHTS[topic], event)
            changed.add(user)
        world.take(topic, records)
        found += read(world, users, changed, counted)
        standing = [(u, d) for u in USERS for d in truth.done[u] if d[3] and str(d[4]).endswith("-0")]
        if number % 5 == 0 and len(standing) > 1:
            user, done = rng.choice(standing)
            topic = next(t for t, weight in WEIGHTS.items() if weight == done[2])
            content = int(str(done[0]))
            world.take(topic, [world.event(user, content, 0, event_id=done[4], undo=True)])
            truth.undo(user, str(done[4]))
            found += read(world, users, {user}, counted)
        assert +counted == truth.counted(), "people count, not acts"
    key = [(user, *rest) for user in USERS for user_, *rest in found if user_ == user]
    expected = [(user, *rest) for user in USERS for user_, *rest in truth.expected if user_ == user]
    assert key == expected
    assert not read(world, users, set(USERS))  # and nothing is new a second time


def test_of_somebody_who_is_not_remembered_only_the_newest_interaction_is_new(tmp_path: Path) -> None:
    world = World(configured(), tmp_path)
    world.know(*range(CONTENTS))
    for content in (0, 1, 2, 1):
        world.take(
            "likes", [world.event("ann", content, (9 - content) * MINUTE, event_id=f"e{world.offset}")]
        )
    record, index = decode(world.table[b"ann"]), world.contents.index
    (again,) = RememberedUsers(10).news(b"ann", record, index)
    assert isinstance(again, Engagement)
    assert (again.row, again.first) == (index.rows[b"c1"], False)
    world.take("likes", [world.event("ann", 5, 0)])
    (new,) = RememberedUsers(10).news(b"ann", decode(world.table[b"ann"]), index)
    assert isinstance(new, Engagement)
    assert (new.row, new.first) == (index.rows[b"c5"], True)
    assert new.history.contents == 3


def test_users_beyond_the_bound_are_forgotten_and_so_are_those_who_begin_anew(tmp_path: Path) -> None:
    world = World(configured(), tmp_path)
    world.know(*range(CONTENTS))
    users, index = RememberedUsers(2), world.contents.index
    for user in USERS:
        world.take("likes", [world.event(user, content, 10 - content) for content in range(3)])
        assert len(list(users.news(user.encode(), decode(world.table[user.encode()]), index))) == 1
    records = {user: decode(world.table[user.encode()]) for user in USERS}
    assert not list(users.news(b"cem", records["cem"], index))
    assert len(list(users.news(b"ann", records["ann"], index))) == 1
    users.forget(b"ann")
    assert len(list(users.news(b"ann", records["ann"], index))) == 1


def test_more_interactions_than_a_record_holds_and_contents_that_are_not_known(tmp_path: Path) -> None:
    world = World(configured(recent=4, seen=4), tmp_path)
    world.know(*range(CONTENTS))
    users, index = RememberedUsers(2), world.contents.index
    world.take("likes", [world.event("ann", 0, 100)])
    list(users.news(b"ann", decode(world.table[b"ann"]), index))
    world.take("likes", [world.event("ann", content, 90 - content) for content in (1, 2, 3, 4, 5, 6)])
    record = decode(world.table[b"ann"])
    world.forget(5)
    found = [news for news in users.news(b"ann", record, index) if isinstance(news, Engagement)]
    assert [(index.ids[news.row], news.first) for news in found] == [
        (b"c3", True),
        (b"c4", True),
        (b"c6", True),
    ]
    assert {index.ids[row] for row in found[-1].known.tolist()} == {b"c3", b"c4"}
    assert found[0].history.contents == 3
