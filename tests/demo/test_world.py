"""The demo's world is deterministic, in time order, and its people change their minds."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from stream_app.demo.world import Step, World, read_posts

START_MS = 1_700_000_000_000


def world(seed: int = 7, **changes: float) -> World:
    arguments = {"users": 400, "rate": 80.0, "seconds": 60.0} | changes
    return World(seed, **arguments)  # type: ignore[arg-type]  # users is a whole number


def all_steps(seed: int = 7) -> list[Step]:
    it = world(seed)
    return [*it.first_posts(START_MS), *it.steps(START_MS)]


@pytest.fixture(scope="module")
def steps() -> list[Step]:
    return all_steps()


def test_posts_are_many_distinct_and_short() -> None:
    posts = read_posts()
    assert 300 <= len(posts) <= 400
    assert len({post.content_id for post in posts}) == len({post.text for post in posts}) == len(posts)
    assert len({post.subject for post in posts}) == 12
    assert 55 <= len({post.author for post in posts}) <= 65
    assert {post.lang for post in posts} == {"en", "de", "es", "pt"}
    assert all(20 <= len(post.text) <= 400 for post in posts)


def test_same_seed_same_steps(steps: list[Step]) -> None:
    assert all_steps() == steps
    assert all_steps(seed=8) != steps


def test_steps_are_in_time_order_and_at_the_rate(steps: list[Step]) -> None:
    events = [step for step in steps if step.kind != "content"]
    assert all(a.at_ms <= b.at_ms for a, b in pairwise(steps))
    assert abs(len(events) / (60 * 80) - 1) < 0.1


def test_every_post_is_published_before_anyone_engages_with_it(steps: list[Step]) -> None:
    published: set[str] = set()
    for step in steps:
        if step.kind == "content":
            published.add(step.content_id)
        elif step.kind in ("event", "undo", "duplicate"):
            assert step.content_id in published
    assert len(published) == len(read_posts())


def test_what_real_producers_send_is_there(steps: list[Step]) -> None:
    kinds = Counter(step.kind for step in steps)
    assert kinds.keys() == {"content", "event", "undo", "duplicate", "malformed", "unknown"}
    sent = Counter((step.kind == "duplicate", step.value) for step in steps)
    assert all(sent[False, step.value] == 1 for step in steps if step.kind == "duplicate")
    undone = {msgspec.json.decode(step.value)["event_id"] for step in steps if step.kind == "undo"}
    liked = {
        msgspec.json.decode(s.value)["event_id"] for s in steps if s.kind == "event" and s.action == "like"
    }
    assert undone <= liked


@pytest.mark.parametrize(("drift", "low", "high"), [("steady", 0.45, 0.95), ("abrupt", 0.0, 0.15)])
def test_interests_drift_as_the_person_does(steps: list[Step], drift: str, low: float, high: float) -> None:
    """Share of a person's late engagements that still fall on the favourite subject of the start."""
    subject = {post.content_id: post.subject for post in read_posts()}
    people = {p.user_id: p for p in world().people if p.drift == drift}
    late = [
        (people[s.key].before[0], subject[s.content_id])
        for s in steps
        if s.kind == "event" and s.key in people and s.at_ms > START_MS + 45_000
    ]
    share = sum(favourite == engaged for favourite, engaged in late) / len(late)
    assert len(late) > 100
    assert low <= share <= high


def test_gradual_mixture_moves_with_time() -> None:
    person = next(p for p in world().people if p.drift == "gradual")
    early, middle, late = (person.mixture(progress) for progress in (0.0, 0.5, 1.0))
    assert early[person.before[0]] > middle[person.before[0]] > late.get(person.before[0], 0.0)
    assert late[person.after[0]] > middle[person.after[0]] > early.get(person.after[0], 0.0)


def test_posts_file_is_packaged() -> None:
    import stream_app.demo

    assert (Path(stream_app.demo.__file__).parent / "posts.jsonl").is_file()
