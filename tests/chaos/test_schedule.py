"""Schedule and workload are pure functions of the seed, and hold what they promise."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from stream_app.chaos.faults import Faults
from stream_app.chaos.schedule import KINDS, LONGEST_GAP_S, SHORTEST_GAP_S, schedule
from stream_app.chaos.workload import CONTENT_TOPIC, CONTENTS, TOPICS, Sent, Workload
from stream_app.errors import ConfigurationError

BASE_MS = 1_750_000_000_000


def stream(seed: int, steps: int) -> list[Sent]:
    workload = Workload(seed, BASE_MS)
    return workload.first_contents() + [sent for _ in range(steps) for sent in workload.take()]


def test_the_schedule_is_the_seed_alone() -> None:
    assert schedule(7, 100) == schedule(7, 100)
    assert schedule(7, 100) != schedule(8, 100)


@pytest.mark.parametrize("count", [1, 17, 24, 200])
def test_each_kind_comes_equally_often(count: int) -> None:
    faults = schedule(3, count)
    found = Counter(fault.kind for fault in faults)
    assert [fault.number for fault in faults] == list(range(1, count + 1))
    assert max(found.values()) - min(found[kind] for kind in KINDS) <= 1 + (count % len(KINDS) > 0)
    assert all(SHORTEST_GAP_S <= fault.gap_s <= LONGEST_GAP_S for fault in faults)


def test_two_hundred_faults_have_eight_of_each_kind() -> None:
    assert min(Counter(fault.kind for fault in schedule(1, 200)).values()) >= 8


@pytest.mark.parametrize("seed", range(5))
def test_workers_are_added_and_removed_in_turn(seed: int) -> None:
    turns = [fault.kind for fault in schedule(seed, 200) if fault.kind.startswith("worker_")]
    assert turns == ["worker_added", "worker_removed"] * (len(turns) // 2) + ["worker_added"] * (
        len(turns) % 2
    )


def test_chosen_kinds_and_no_others() -> None:
    assert {fault.kind for fault in schedule(1, 9, ["kill", "compacted"])} == {"kill", "compacted"}


@pytest.mark.parametrize(("count", "kinds"), [(5, ["kill", "kil"]), (0, ["kill"]), (3, [])])
def test_nonsense_is_refused(count: int, kinds: list[str]) -> None:
    with pytest.raises(ConfigurationError):
        schedule(1, count, kinds)


def test_every_kind_is_done_by_something() -> None:
    assert all(hasattr(Faults, f"_{kind}") for kind in KINDS)


def test_the_workload_is_the_seed_alone() -> None:
    assert stream(5, 2_000) == stream(5, 2_000)
    assert stream(5, 2_000) != stream(6, 2_000)


def test_the_workload_has_everything_that_it_should_have() -> None:
    sent = stream(1, 20_000)
    contents = [json.loads(s.value)["content_id"] for s in sent if s.topic == CONTENT_TOPIC]
    assert len(contents) > CONTENTS + 20
    assert len(set(contents)) == len(contents)
    events = [s for s in sent if s.topic != CONTENT_TOPIC]
    assert {s.topic for s in events} == set(TOPICS)
    good, broken = [], 0
    for event in events:
        try:
            fields = json.loads(event.value)
            assert fields["user_id"].encode() == event.key
            assert fields["content_id"]
            good.append((event.topic, fields))
        except (ValueError, KeyError, AssertionError, AttributeError):
            broken += 1
    assert broken > 50
    named = Counter((t, f["event_id"], f.get("undo", False)) for t, f in good if "event_id" in f)
    assert sum(count > 1 for count in named.values()) > 200, "repeats"
    assert sum("event_id" not in f for _, f in good) > 500
    assert sum("occurred_at" not in f for _, f in good) > 200
    assert sum(f["content_id"].startswith("never") for _, f in good) > 20
    assert sum(f["content_id"] not in contents and f["content_id"].startswith("content") for _, f in good) > 0
    assert overtaken(good) > 20


def overtaken(good: list[tuple[str, dict[str, object]]]) -> int:
    """Undos that come before the event that they undo."""
    first: dict[object, bool] = {}
    for _, fields in good:
        if "event_id" in fields:
            first.setdefault(fields["event_id"], bool(fields.get("undo")))
    return sum(first.values())


def test_a_burst_of_late_events_is_late_and_out_of_order() -> None:
    workload = Workload(2, BASE_MS)
    workload.first_contents()
    for _ in range(1_000):
        list(workload.take())
    numbers = [
        int(f["event_id"][1:])
        for s in workload.shuffled(300)
        if s.topic != CONTENT_TOPIC and b'"event_id":"e' in s.value
        for f in [json.loads(s.value)]
        if f["event_id"] > "e1000"
    ]
    assert len(numbers) > 100
    assert numbers != sorted(numbers)


def test_repeats_were_sent_before() -> None:
    workload = Workload(2, BASE_MS)
    workload.first_contents()
    sent = [s for _ in range(500) for s in workload.take()]
    assert set(workload.repeats(200)) <= set(sent)
