"""Any permutation, duplication and batching of a user's events, with undos, gives the closed form."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.hashing import action_mask
from stream_app.interests.record import AWAITING, decode
from stream_app.interests.slab import Slab
from stream_app.interests.update import GONE, REPEATED, TAKEN, Columns, Vectors, apply
from tests.interests.closed_form import Sent, closed_form

HOUR = 3_600_000
NOW = 1_700_000_000_000
HALF_LIFE = 24.0 * HOUR
D = 16
RNG = np.random.default_rng(7)
MATRIX = RNG.standard_normal((12, D)).astype(np.float32)
MATRIX /= np.linalg.norm(MATRIX, axis=1, keepdims=True)
ROWS = {1000 + i: i for i in range(12)}
VECTORS = Vectors(MATRIX, ROWS.get, np.ones(12, np.uint8), lambda key, _: ROWS.get(key))


def slab(capacity: int = 64, recent: int = 64, seen: int = 64) -> Slab:
    return Slab(capacity, D, recent, seen, model=1)


def columns(where: Slab, sent: list[Sent], first_offset: int = 0) -> Columns:
    rows = [where.index[e.user] if e.user in where.index else where.add(e.user, None) for e in sent]
    n = len(sent)
    contents = np.array([e.content for e in sent], np.int64)
    return Columns(
        rows=np.array(rows, np.int64),
        contents=contents,
        keys=(contents + 1000).astype(np.uint64),
        events=np.array([e.event for e in sent], np.uint64),
        times=np.array([e.time for e in sent], np.int64),
        received=np.full(n, NOW, np.int64),
        partitions=np.zeros(n, np.int64),
        offsets=np.arange(first_offset, first_offset + n),
        weights=np.array([e.weight for e in sent], np.float32),
        actions=np.full(n, 9, np.uint16),
        undo=np.array([e.undo for e in sent], np.bool_),
        named=np.ones(n, np.bool_),
    )


def run(where: Slab, batches: list[list[Sent]]) -> list[int]:
    outcomes: list[int] = []
    for batch in batches:
        update = apply(where, columns(where, batch, len(outcomes)), VECTORS, HALF_LIFE)
        outcomes += update.outcomes.tolist()
    return outcomes


def relative_error(where: Slab, sent: list[Sent]) -> float:
    """Largest error over the users, relative to |S|, or to the mass where weights of both signs cancel."""
    worst = 0.0
    signed = any(e.weight < 0 for e in sent)
    for user, (t_ref, mass, total) in closed_form(sent, MATRIX, HALF_LIFE).items():
        row = where.index[user]
        assert where.header["t_ref"][row] == t_ref
        if total.any():
            scale = mass if signed else float(np.linalg.norm(total))
            worst = max(worst, float(np.linalg.norm(where.vector[row] - total)) / scale)
        assert where.header["mass"][row] == pytest.approx(mass, rel=1e-6, abs=1e-300)
        if not total.any():
            assert not where.vector[row].any()
    return worst


event_lists = st.lists(
    st.builds(
        lambda user, content, age, weight, undone, copies: (user, content, age, weight, undone, copies),
        st.integers(0, 3),
        st.integers(0, 11),
        st.integers(0, 60 * 24 * HOUR),
        st.sampled_from([1.0, 2.0, 3.0, -1.0]),
        st.booleans() | st.just(False),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=30,
)


@given(event_lists, st.integers(0, 2**32), st.integers(1, 40))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_any_order_duplication_and_batching_gives_the_closed_form(drawn, seed, batch_size) -> None:  # type: ignore[no-untyped-def]
    sent: list[Sent] = []
    for number, (user, content, age, weight, undone, copies) in enumerate(drawn):
        event = Sent(b"user-%d" % user, content, number + 1, NOW - age, weight)
        sent += [event] * copies
        if undone:
            sent += [Sent(event.user, content, number + 1, NOW - age // 2, weight, undo=True)] * copies
    random.Random(seed).shuffle(sent)
    where = slab(recent=256, seen=256)
    outcomes = run(where, [sent[i : i + batch_size] for i in range(0, len(sent), batch_size)])
    assert relative_error(where, sent) <= 1e-5
    distinct = {(e.event, e.undo) for e in sent}
    assert outcomes.count(TAKEN) == len(distinct)
    assert outcomes.count(REPEATED) == len(sent) - len(distinct)


def test_many_events_of_many_users_in_large_and_in_single_batches() -> None:
    rng = random.Random(3)
    sent = [
        Sent(b"u%d" % rng.randrange(20), rng.randrange(12), n + 1, NOW - rng.randrange(30 * 24 * HOUR), 1.0)
        for n in range(3000)
    ]
    large, single = slab(), slab()
    run(large, [sent[:2500], sent[2500:]])
    run(single, [[e] for e in sent])
    assert relative_error(large, sent) <= 1e-5
    assert relative_error(single, sent) <= 1e-5
    for user, row in large.index.items():
        other = single.index[user]
        assert (large.interactions[row] == single.interactions[other]).all(), "the ring is the same"
        assert large.header["total"][row] == single.header["total"][other]


def test_an_undo_of_an_original_that_left_the_record_is_gone_not_guessed() -> None:
    where = slab(recent=4, seen=4)
    sent = [Sent(b"u", i % 12, i + 1, NOW + i) for i in range(6)]
    run(where, [sent])
    before = where.vector[where.index[b"u"]].copy()
    assert run(where, [[Sent(b"u", 0, 1, NOW + 10, undo=True)]]) == [GONE]
    assert (where.vector[where.index[b"u"]] == before).all()


def test_an_early_undo_waits_and_cancels_its_original_once() -> None:
    where = slab()
    undo, event = Sent(b"u", 3, 5, NOW + 5, undo=True), Sent(b"u", 3, 5, NOW)
    assert run(where, [[undo]]) == [TAKEN]
    assert where.interactions["state"][where.index[b"u"], 0] == AWAITING
    assert run(where, [[event], [event, undo]]) == [TAKEN, REPEATED, REPEATED]
    assert where.header["live"][where.index[b"u"]] == 0
    assert not where.vector[where.index[b"u"]].any()


def test_an_undo_without_event_id_takes_the_latest_of_that_action_on_that_content() -> None:
    where = slab()
    first, second = Sent(b"u", 3, 1, NOW), Sent(b"u", 3, 2, NOW + HOUR)
    run(where, [[second, first]])
    c = columns(where, [Sent(b"u", 3, 99, NOW + 2 * HOUR, undo=True)])
    c.named[:] = False
    assert apply(where, c, VECTORS, HALF_LIFE).outcomes.tolist() == [TAKEN]
    row = where.index[b"u"]
    left = 2.0 ** (-2 * HOUR / HALF_LIFE)
    np.testing.assert_allclose(where.vector[row], left * MATRIX[3], rtol=1e-5)
    c.keys[:] = 1004
    assert apply(where, c, VECTORS, HALF_LIFE).outcomes.tolist() == [GONE], "no such engagement"


def test_records_survive_encoding_and_other_ring_sizes() -> None:
    where = slab(recent=8, seen=8)
    sent = [Sent(b"u", i % 12, i + 1, NOW + i * HOUR) for i in range(11)]
    run(where, [sent])
    (value,) = where.encode(np.array([where.index[b"u"]]))
    record = decode(value)
    assert len(record.interactions) == 8
    assert len(record.seen) == 8
    same, smaller, larger = slab(recent=8, seen=8), slab(recent=4, seen=4), slab(recent=16, seen=16)
    for other in (same, smaller, larger):
        row = other.add(b"u", value)
        np.testing.assert_array_equal(other.vector[row], record.vector)
        known = Sent(b"u", 10, 11, NOW + 10 * HOUR)  # the newest event: in every ring
        assert run(other, [[known]]) == [REPEATED]
    assert same.encode(np.array([same.index[b"u"]])) == [value]


@pytest.mark.parametrize("recent", [8, 4])
def test_events_of_an_earlier_versions_record_are_keyed_by_action_when_it_is_loaded(recent: int) -> None:
    """They were named by the id alone; a repeat is recognised, an undo finds its original all the same."""
    where, mask = slab(recent=8, seen=8), action_mask(9)
    run(where, [[Sent(b"u", i, i + 1, NOW + i * HOUR) for i in range(3)]])
    (value,) = where.encode(np.array([where.index[b"u"]]))
    old = value[:1] + b"\0" + value[2:]  # no flags
    other = slab(recent=recent, seen=8)
    row = other.add(b"u", old)
    assert set(other.interactions["event"][row].tolist()) == {(i + 1) ^ mask for i in range(3)} | {0}
    assert run(other, [[Sent(b"u", 2, 3 ^ mask, NOW + 2 * HOUR)]]) == [REPEATED]
    assert run(other, [[Sent(b"u", 2, 3 ^ mask, NOW + 9 * HOUR, undo=True)]]) == [TAKEN]
    (written,) = other.encode(np.array([row]))
    again = slab(recent=recent, seen=8)
    again.add(b"u", written)
    assert again.interactions.tolist() == other.interactions.tolist(), "once"


def test_a_repeat_within_the_batch_and_one_hot_user_beyond_the_ring() -> None:
    where = slab(recent=16, seen=16)
    sent = [Sent(b"hot", n % 12, n + 1, NOW + n) for n in range(500)]
    outcomes = run(where, [[*sent, sent[-1], sent[499]]])
    assert outcomes.count(REPEATED) == 2
    assert relative_error(where, sent) <= 1e-5
    assert where.header["total"][where.index[b"hot"]] == 500
