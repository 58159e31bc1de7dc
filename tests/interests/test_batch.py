"""What a batch causes, without Kafka: accounts, retries, bounds of memory, statistics, other encoders."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from stream_app.content.index import ContentIndex
from stream_app.content.vectors import ContentVector, encode
from stream_app.events.reasons import Reason
from stream_app.hashing import action_code, model_code
from stream_app.interests.batch import BatchPreparation, PartitionState
from stream_app.interests.contents import IndexedContents
from stream_app.interests.record import InterestRecord, decode
from stream_app.interests.slab import Slab
from stream_app.interests.statistics import PartitionStatistics
from stream_app.interests.statistics_record import OUTCOMES_KEY, Outcomes
from stream_app.interests.statistics_record import decode as decode_statistics
from stream_app.interests.store import PartitionStore
from stream_app.kafka.transactions import Output
from stream_app.kafka.unreadable import UNREADABLE, Damage, UnreadableRange
from stream_app.settings import Settings, build
from stream_app.topics import is_retry_topic, try_of

D = 16
CONTENTS = 8
HOUR_MS = 3_600_000
NOW_MS = 1_750_000_000_000
DELAYS_S = (1.0, 5.0, 25.0)
WEIGHTS = {"likes": 1.0, "comments": 2.0, "hides": -1.5}
NAMES = {"likes": "like", "comments": "comment", "hides": "hide"}


def make_vectors() -> np.ndarray[Any, np.dtype[np.float16]]:
    drawn = np.random.default_rng(3).standard_normal((CONTENTS, D))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)


VECTORS = make_vectors()


def configured(**interests: Any) -> Settings:
    return build(
        {
            "kafka": {"partitions": 1, "shared_partitions": 1},
            "events": {
                "actions": [
                    {"name": NAMES[topic], "topic": topic, "weight": weight}
                    for topic, weight in WEIGHTS.items()
                ],
                "retry_delays_s": list(DELAYS_S),
            },
            "interests": {"recent": 64, "seen": 64, "slab_rows": 64, **interests},
            "content": {"dimensions": D, "capacity": 64},
        }
    )


@dataclass
class Record:
    """What is used of aiokafka's ConsumerRecord."""

    key: bytes | None
    value: bytes | None
    offset: int
    timestamp: int = NOW_MS
    headers: Sequence[tuple[str, bytes]] = ()


@dataclass
class World:
    """One partition with a clock of its own, and what its batches produced."""

    settings: Settings
    directory: Path
    model: str = "m1"
    now_ms: int = NOW_MS
    table: dict[bytes, bytes] = field(default_factory=dict)
    statistics: dict[bytes, bytes] = field(default_factory=dict)
    retries: list[Output] = field(default_factory=list)
    letters: list[Output] = field(default_factory=list)
    committed: Outcomes = field(default_factory=Outcomes)
    offset: int = 0

    def __post_init__(self) -> None:
        settings = self.settings
        self.contents = IndexedContents(ContentIndex(settings, self.model))
        self.preparation = BatchPreparation(settings, self.contents, now_ms=lambda: self.now_ms)
        interests = settings.interests
        self.state = PartitionState(
            0,
            Slab.configured(settings, model_code(self.model)),
            PartitionStore(self.directory),
            PartitionStatistics(
                0, [action_code(a.name) for a in settings.events.actions], interests.stats_half_lives_h
            ),
        )

    def know(self, *numbers: int, vectors: Any = VECTORS) -> None:
        for number in numbers:
            record = ContentVector(self.model, "", NOW_MS, NOW_MS, vectors[number])
            self.contents.receive([Record(b"c%d" % number, encode(record), 0)])

    def forget(self, number: int) -> None:
        self.contents.receive([Record(b"c%d" % number, None, 0)])

    def event(self, user: str, content: int, age_ms: int = 0, **fields: Any) -> Record:
        value = {"user_id": user, "content_id": f"c{content}", "occurred_at": NOW_MS - age_ms, **fields}
        self.offset += 1
        return Record(user.encode(), json.dumps(value).encode(), self.offset)

    def take(self, topic: str, records: Sequence[Record]) -> list[Output]:
        """One batch, committed."""
        outputs = self.preparation.prepare(self.state, topic, records)
        for out in outputs:
            if out.topic == "interests":
                assert out.key is not None
                assert out.value is not None
                self.table[out.key] = out.value
            elif is_retry_topic(out.topic):
                assert try_of(out.topic) == int(dict(out.headers)["stream-app-attempts"])
                self.retries.append(out)
            elif out.topic == "events-dlq":
                self.letters.append(out)
            elif out.key == OUTCOMES_KEY:
                self.committed = msgspec.json.decode(out.value or b"", type=Outcomes)
            else:
                assert out.key is not None
                self.statistics[out.key] = out.value or b""
        return outputs

    def take_retries(self, *, due: bool = True) -> int:
        """The retries written so far come back as one batch; how many they were."""
        batch = [
            Record(out.key, out.value, number, self.now_ms, out.headers)
            for number, out in enumerate(self.retries)
        ]
        self.retries.clear()
        if due:
            self.now_ms += int(1000 * max(DELAYS_S))
        if batch:
            self.take("events-retry", batch)
        return len(batch)

    def flush(self) -> None:
        """As the partition does between batches."""
        slab = self.state.slab
        rows = np.flatnonzero(slab.dirty)
        users = [slab.users[row] for row in rows.tolist()]
        self.state.store.write(list(zip(users, slab.encode(rows), strict=True)), 1)  # type: ignore[arg-type]
        slab.dirty[rows] = False

    def record(self, user: str) -> InterestRecord:
        return decode(self.table[user.encode()])

    def close(self) -> None:
        self.state.store.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(configured(), tmp_path / "state")
    made.know(*range(CONTENTS))
    yield made
    made.close()


def headers_of(out: Output) -> dict[str, str]:
    return {name.removeprefix("stream-app-"): value.decode() for name, value in out.headers}


def expected_sum(events: list[tuple[int, float, int]], half_life_ms: float) -> Any:
    """Σ over (content, weight, age) at the newest event, in float64."""
    newest = min(age for _, _, age in events)
    return sum(
        weight * 2.0 ** (-(age - newest) / half_life_ms) * VECTORS[content].astype(np.float64)
        for content, weight, age in events
    )


# -- accounts


def test_a_range_among_retries_is_one_letter_and_counts_as_its_records(world: World) -> None:
    world.take("likes", [world.event("ana", CONTENTS + 1), world.event("ben", CONTENTS + 1)])
    assert world.committed == Outcomes(retrying=2)
    damage = Damage(3, 9, 2, NOW_MS, UNREADABLE, "its checksum does not fit")
    unread = UnreadableRange.of("events-retry", 0, damage)
    forged = Record(b"eve", b"{", 10)
    world.take("events-retry", [unread, forged])
    assert world.committed == Outcomes(dead_lettered=3)
    letter, other = world.letters
    assert (letter.key, letter.value) == (None, None)
    headers = headers_of(letter)
    assert {name: headers[name] for name in ("topic", "offset", "last-offset", "records", "reason")} == {
        "topic": "events-retry",
        "offset": "3",
        "last-offset": "9",
        "records": "2",
        "reason": "unreadable_batch",
    }
    assert "last-offset" not in headers_of(other)


kinds = st.sampled_from(["good", "malformed", "unknown", "repeat", "undo", "early undo", "lost undo", "late"])
draws = st.lists(
    st.tuples(kinds, st.integers(0, 3), st.integers(0, 5), st.sampled_from(list(WEIGHTS))),
    min_size=1,
    max_size=40,
)


@given(draws, st.integers(1, 12), st.integers(0, 2**16))
@hypothesis_settings(max_examples=60, deadline=None, derandomize=True)
def test_every_record_ends_in_exactly_one_place(tmp_path_factory, drawn, size, seed) -> None:  # type: ignore[no-untyped-def]
    directory = tmp_path_factory.mktemp("accounts") / "state"
    world = World(configured(), directory)
    world.know(*range(6))  # c6 comes later, c7 never
    rng = random.Random(seed)
    sent: list[tuple[str, Record]] = []
    expected: Counter[str] = Counter()
    for number, (kind, user, content, topic) in enumerate(drawn):
        name, age = f"u{user}", rng.randrange(48) * HOUR_MS
        event_id = f"e{number}"
        original = world.event(name, content, age, event_id=event_id)
        undo = world.event(name, content, age, event_id=event_id, undo=True)
        batches = {
            "good": ([original], {"applied": 1}),
            "malformed": ([Record(b"u", b"{" + bytes([seed % 256]), 0)], {"dead": 1}),
            "unknown": ([world.event(name, 7, age)], {"dead": 1}),
            "repeat": ([original, original], {"applied": 1, "repeated": 1}),
            "undo": ([original, undo], {"applied": 2}),
            "early undo": ([undo, original], {"applied": 2}),
            "lost undo": ([Record(b"ghost", json.dumps(
                {"user_id": "ghost", "content_id": "c0", "undo": True}).encode(), 0)], {"dead": 1}),
            "late": ([world.event(name, 6, age)], {"applied": 1}),
        }  # fmt: skip
        records, outcome = batches[kind]
        sent += [(topic, record) for record in records]
        expected.update(outcome)
    for topic in WEIGHTS:  # each topic in order, in batches of any size
        records = [record for where, record in sent if where == topic]
        for first in range(0, len(records), size):
            world.take(topic, records[first : first + size])
            assert world.committed.accounted == world.state.outcomes.accounted
    accounts = world.committed
    assert accounts.accounted == len(sent)
    assert accounts.retrying == len(world.retries)
    world.know(6)
    rounds = 0
    while world.take_retries():
        rounds += 1
        assert world.committed.accounted == len(sent), "a retry is neither lost nor counted twice"
        assert world.committed.retrying == len(world.retries)
    assert rounds <= len(DELAYS_S)
    assert world.committed == Outcomes(
        applied=expected["applied"], duplicates=expected["repeated"], dead_lettered=expected["dead"]
    )
    assert len(world.letters) == expected["dead"]
    assert b"ghost" not in world.state.slab.index, "nothing was recorded of this user"
    world.close()
    shutil.rmtree(directory)


def test_foreign_records_on_the_retry_topic_are_not_taken_for_waiting_ones(world: World) -> None:
    world.take("events-retry", [Record(b"u", b"{}", 0), world.event("u", 1)])
    assert [headers_of(letter)["reason"] for letter in world.letters] == [Reason.BAD_ORIGIN] * 2
    assert world.committed == Outcomes(dead_lettered=2)


def test_the_same_id_on_two_actions_is_two_events_and_each_is_taken_back_by_itself(world: World) -> None:
    world.know(0, 1)
    for topic in WEIGHTS:
        world.take(topic, [world.event("u", 1, event_id="post-1")])
    assert world.committed == Outcomes(applied=3)
    for topic in WEIGHTS:
        world.take(topic, [world.event("u", 1, event_id="post-1")])
    assert world.committed == Outcomes(applied=3, duplicates=3)
    world.take("comments", [world.event("u", 1, event_id="post-1", undo=True)])
    assert world.committed.applied == 4
    assert world.record("u").header["live"] == 2
    assert world.record("u").mass == pytest.approx(1.0 + 1.5)


def test_an_event_without_id_is_undone_by_its_default_id(world: World) -> None:
    world.know(0, 1)
    world.take("likes", [world.event("u", 1)])
    name = f"likes-0-{world.offset}-{NOW_MS}"
    world.take("likes", [world.event("u", 1, event_id=name, undo=True)])
    assert world.record("u").header["live"] == 0


# -- retries


def test_unknown_content_is_tried_with_growing_delays_and_then_dead_lettered(world: World) -> None:
    world.forget(3)
    sent = world.event("u", 3, event_id="e")
    world.take("likes", [sent])
    for attempt, delay in enumerate(DELAYS_S, start=1):
        (retry,) = world.retries
        headers = headers_of(retry)
        assert (retry.key, retry.value) == (sent.key, sent.value)
        assert headers["attempts"] == str(attempt)
        assert int(headers["not-before"]) == world.now_ms + int(1000 * delay)
        assert (headers["topic"], headers["offset"]) == ("likes", str(sent.offset))
        assert world.committed == Outcomes(retrying=1)
        world.take_retries()
    (letter,) = world.letters
    assert (letter.key, letter.value) == (sent.key, sent.value)
    headers = headers_of(letter)
    assert headers["reason"] == "unknown_content"
    assert (headers["topic"], headers["offset"]) == ("likes", str(sent.offset))
    assert world.committed == Outcomes(dead_lettered=1)
    assert not world.table
    assert not world.state.slab.index


def test_a_retried_event_counts_as_the_one_it_was(world: World) -> None:
    """Same state as if its content had been known: action, time, identity and place of arrival."""
    world.forget(3)
    first = world.event("u", 3, 5 * HOUR_MS)  # without an event id: its place identifies it
    world.take("comments", [first, world.event("u", 1)])
    world.know(3)
    world.take_retries()
    half_life = world.settings.interests.half_life_days * 24 * HOUR_MS
    record = world.record("u")
    total = expected_sum([(3, 2.0, 5 * HOUR_MS), (1, 2.0, 0)], half_life)
    np.testing.assert_allclose(record.vector, total, rtol=1e-5, atol=1e-6)
    assert int(record.header["offset"]) == first.offset
    world.take("comments", [first])
    assert world.committed == Outcomes(applied=2, duplicates=1)


def test_an_undo_whose_original_left_the_record_is_retried_and_then_gone(tmp_path: Path) -> None:
    world = World(configured(recent=2), tmp_path / "state")
    world.know(*range(CONTENTS))
    world.take("likes", [world.event("u", n, event_id=f"e{n}") for n in range(4)])
    before = world.record("u").vector.copy()
    world.take("likes", [world.event("u", 0, event_id="e0", undo=True)])
    assert world.committed == Outcomes(applied=4, retrying=1)
    while world.take_retries():
        pass
    assert [headers_of(letter)["reason"] for letter in world.letters] == ["undo_target_gone"]
    assert world.committed == Outcomes(applied=4, dead_lettered=1)
    np.testing.assert_array_equal(world.record("u").vector, before)
    world.close()


def test_an_undo_works_after_its_content_was_deleted(world: World) -> None:
    world.take(
        "likes", [world.event("u", 3, event_id="a"), world.event("u", 4, event_id="b"), world.event("u", 5)]
    )
    for number in (3, 4, 5):
        world.forget(number)
    world.take("likes", [world.event("u", 3, event_id="a", undo=True), world.event("u", 5, undo=True)])
    assert world.committed == Outcomes(applied=5)
    assert not world.retries
    assert not world.letters
    record = world.record("u")
    assert (record.header["live"], record.mass) == (1, pytest.approx(1.0))
    for content, people in ((3, 0), (4, 1), (5, 0)):
        counts = decode_statistics(world.statistics[b"c%d" % content]).counts[0]
        np.testing.assert_allclose(counts, people, atol=1e-6)


def test_an_undo_waits_for_an_original_whose_content_is_not_known_yet(world: World) -> None:
    world.forget(3)
    like, undo = world.event("u", 3, event_id="a"), world.event("u", 3, event_id="a", undo=True)
    world.take("likes", [like, undo])
    assert world.committed == Outcomes(applied=1, retrying=1)
    world.know(3)
    world.take_retries()
    assert world.committed == Outcomes(applied=2)
    assert world.record("u").header["live"] == 0
    assert b"c3" not in world.statistics


def test_of_an_undo_without_id_whose_original_waits_nothing_is_lost(world: World) -> None:
    world.forget(3)
    world.take("likes", [world.event("u", 3), world.event("u", 3, undo=True)])
    assert world.committed == Outcomes(retrying=2)
    world.know(3)
    world.take_retries()
    assert world.committed == Outcomes(applied=2)
    assert world.record("u").header["live"] == 0


# -- state in memory and on disk


def test_users_with_nothing_but_rejected_events_have_no_row(world: World) -> None:
    world.take(
        "likes", [Record(b"bad", b"no json", 1), world.event("other", 99), world.event("gone", 1, undo=True)]
    )
    assert not world.state.slab.index
    assert world.state.slab.free == world.state.slab.capacity
    assert not world.table
    world.flush()
    assert world.state.store.get([b"bad", b"other", b"gone"]) == [None, None, None]


def test_more_users_than_rows_evicts_and_reloads_the_same_records(tmp_path: Path) -> None:
    """A slab of 64 rows and one of 4,096 give the same records for 600 users."""
    rng = random.Random(9)
    small = World(configured(slab_rows=64), tmp_path / "small")
    large = World(configured(slab_rows=4096), tmp_path / "large")
    for batch in range(60):
        events = []
        for number in range(40):
            user, content, age = f"u{rng.randrange(600)}", rng.randrange(CONTENTS), rng.randrange(10**9)
            event_id = f"e{batch}-{number}"
            events.append((user, content, age, {"event_id": event_id}))
            if rng.random() < 0.1:
                events.append((user, content, age, {"event_id": event_id, "undo": True}))
        for world in (small, large):
            if batch == 0:
                world.know(*range(CONTENTS))
            world.take("likes", [world.event(user, content, age, **f) for user, content, age, f in events])
            world.flush()
        assert len(small.state.slab) <= 64
    assert small.table.keys() == large.table.keys()
    assert len(small.table) > 500
    assert small.table == large.table
    assert small.committed == large.committed
    small.close()
    large.close()


def test_negative_weights_push_the_vector_away_and_still_count_as_mass(world: World) -> None:
    world.take("likes", [world.event("u", 1)])
    world.take("hides", [world.event("u", 2, event_id="h")])
    record = world.record("u")
    one, two = VECTORS[1].astype(np.float64), VECTORS[2].astype(np.float64)
    np.testing.assert_allclose(record.vector, one - 1.5 * two, rtol=1e-5, atol=1e-6)
    assert record.mass == pytest.approx(2.5)
    assert float(record.vector @ two) < float(one @ two)
    world.take("hides", [world.event("u", 2, event_id="h", undo=True)])
    record = world.record("u")
    np.testing.assert_allclose(record.vector, one, rtol=1e-5, atol=1e-6)
    assert record.mass == pytest.approx(1.0)


# -- statistics


def test_statistics_count_people_order_free_undone_and_equal_a_recomputation(world: World) -> None:
    rng = random.Random(4)
    sent: list[tuple[str, Record, int, int]] = []
    for number in range(300):
        topic = rng.choice(list(WEIGHTS))
        content, age = rng.randrange(3), rng.randrange(200 * HOUR_MS)
        sent.append((topic, world.event(f"u{number % 7}", content, age, event_id=f"e{number}"), content, age))
    undone = set(range(0, 300, 11))
    shuffled = list(range(300))
    rng.shuffle(shuffled)
    for at in range(0, 300, 40):
        for topic in WEIGHTS:
            chosen = [n for n in shuffled[at : at + 40] if sent[n][0] == topic]
            world.take(topic, [sent[n][1] for n in chosen])
            takebacks = [
                world.event(f"u{n % 7}", sent[n][2], sent[n][3], event_id=f"e{n}", undo=True)
                for n in chosen
                if n in undone
            ]
            world.take(topic, takebacks)
    assert world.committed.applied == 300 + len(undone)
    for content in range(3):
        found = decode_statistics(world.statistics[b"c%d" % content])
        assert found.t_ref == NOW_MS - min(age for *_, c, age in sent if c == content)
        for a, topic in enumerate(WEIGHTS):
            assert found.actions[a] == action_code(NAMES[topic])
            for h, hours in enumerate(found.half_lives_h.tolist()):
                newest: dict[int, int] = {}
                for n, (where, _, c, age) in enumerate(sent):
                    if c == content and where == topic and n not in undone:
                        newest[n % 7] = min(age, newest.get(n % 7, age))
                exact = sum(
                    2.0 ** (-(found.t_ref - (NOW_MS - age)) / (hours * HOUR_MS)) for age in newest.values()
                )
                assert found.counts[a, h] == pytest.approx(exact, rel=1e-5, abs=1e-6)


def test_a_batch_writes_each_content_once_and_recovery_goes_on_from_it(world: World) -> None:
    outputs = world.take("likes", [world.event(f"u{n}", n % 2, n * HOUR_MS) for n in range(40)])
    written = [out.key for out in outputs if out.topic == "content-stats" and out.key != OUTCOMES_KEY]
    assert sorted(key for key in written if key is not None) == [b"c0", b"c1"]
    statistics = world.state.statistics
    recovered = PartitionStatistics(0, statistics.actions.tolist(), statistics.half_lives_h.tolist())
    for content, value in world.statistics.items():
        recovered.load(content, value)
    assert recovered.stream_time == statistics.stream_time == NOW_MS
    world.state.statistics = recovered
    world.take("likes", [world.event("late", 1, 7 * HOUR_MS)])
    found = decode_statistics(world.statistics[b"c1"])
    ages = [*range(1, 40, 2), 7]
    for h, hours in enumerate(found.half_lives_h.tolist()):
        exact = sum(2.0 ** (-(age - 1) / hours) for age in ages)
        assert found.counts[0, h] == pytest.approx(exact, rel=1e-5)


def test_faded_statistics_of_deleted_contents_can_be_dropped_but_never_the_stream_time(world: World) -> None:
    longest = int(4 * max(world.settings.interests.stats_half_lives_h) * HOUR_MS)
    ages = [0, HOUR_MS, longest + HOUR_MS, longest + 2 * HOUR_MS]
    world.take("likes", [world.event("u", number, age) for number, age in enumerate(ages)])
    for number in range(3):
        world.forget(number)
    with world.contents.still() as index:
        faded = world.state.statistics.dispensable(index.rows, 1000)
    assert faded == [b"c2"], "c0 is the newest, c1 has not faded, c3 is still there"
    assert world.state.statistics.forget(b"c2")
    assert not world.state.statistics.forget(b"c2")
    assert world.state.stream_time == NOW_MS
    world.take("likes", [world.event("v", 3, HOUR_MS)])
    assert decode_statistics(world.statistics[b"c3"]).counts[0, -1] == pytest.approx(1 + 1 / 16, rel=1e-2)
