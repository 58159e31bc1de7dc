"""What counts of an event id that is sent, taken back and sent again, and of a user who acts repeatedly."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.hashing import action_mask, key64
from stream_app.interests.record import APPLIED, COUNTED, decode, states
from stream_app.interests.slab import Slab
from stream_app.interests.statistics import PartitionStatistics
from stream_app.interests.statistics_record import decode as decode_statistics
from stream_app.interests.update import GONE, REPEATED, TAKEN, Columns, Update, Vectors, apply

HOUR = 3_600_000
NOW = 1_700_000_000_000
HALF_LIFE = 24.0 * HOUR
D, N = 8, 6
MATRIX = np.random.default_rng(1).standard_normal((N, D)).astype(np.float32)
KEYS = np.array([key64(b"c%d" % n) for n in range(N)], np.uint64)
ROWS = {key: row for row, key in enumerate(KEYS.tolist())}
VECTORS = Vectors(MATRIX, ROWS.get, np.ones(N, np.uint8), lambda key, _: ROWS.get(key))
WEIGHTS = {9: 1.0, 10: 3.0, 11: 0.1}
"""By action code; the last one is light"""


@dataclass(frozen=True)
class Act:
    """One event of an action."""

    user: bytes
    content: int
    event: int
    time: int
    action: int = 9
    undo: bool = False
    named: bool = True


class Path:
    """A slab and the statistics that its batches make."""

    def __init__(self, recent: int = 256, **more: float) -> None:
        self.slab = Slab(64, D, recent, 256, model=1, light_weight=0.5, **more)  # type: ignore[arg-type]
        self.statistics = PartitionStatistics(0, list(WEIGHTS), [24.0])
        self.ids: list[bytes | None] = [b"c%d" % n for n in range(N)]
        self.records: dict[bytes, bytes] = {}
        self.vectors = VECTORS
        self.last: Update

    def take(self, acts: list[Act]) -> list[int]:
        slab, n = self.slab, len(acts)
        contents = np.array([a.content for a in acts], np.int64)
        known = [self.vectors.row_of_key(int(KEYS[c])) is not None for c in contents.tolist()]
        columns = Columns(
            rows=np.array(
                [slab.index.get(a.user, -1) if a.user in slab.index else slab.add(a.user, None) for a in acts]
            ),
            contents=np.where(known, contents, -1),
            keys=KEYS[contents],
            events=np.array([a.event for a in acts], np.uint64),
            times=np.array([a.time for a in acts], np.int64),
            received=np.full(n, NOW, np.int64),
            partitions=np.zeros(n, np.int64),
            offsets=np.arange(n),
            weights=np.array([WEIGHTS[a.action] for a in acts], np.float32),
            actions=np.array([a.action for a in acts], np.uint16),
            undo=np.array([a.undo for a in acts], np.bool_),
            named=np.array([a.named for a in acts], np.bool_),
        )
        self.last = apply(slab, columns, self.vectors, HALF_LIFE)
        self.records |= self.statistics.add(self.last.contributions, self.ids)
        return self.last.outcomes.tolist()

    def run(self, acts: list[Act], size: int) -> list[int]:
        return [o for at in range(0, len(acts), size) for o in self.take(acts[at : at + size])]

    def counts(self) -> dict[tuple[int, int], float]:
        """(content, action) → people, decayed to NOW."""
        found = {}
        for name, value in self.records.items():
            one = decode_statistics(value)
            for a, action in enumerate(one.actions.tolist()):
                left = float(one.counts[a, 0]) * 2.0 ** (-(NOW - one.t_ref) / HALF_LIFE)
                found[int(name[1:]), action] = left
        return found


def standing(acts: list[Act]) -> dict[tuple[bytes, int], Act]:
    """By definition: of each id of a user the act that counts."""
    originals: dict[tuple[bytes, int], list[Act]] = defaultdict(list)
    undos: dict[tuple[bytes, int], list[int]] = defaultdict(list)
    for act in acts:
        if act.undo:
            undos[act.user, act.event].append(act.time)
        else:
            originals[act.user, act.event].append(act)
    found = {}
    for name, sent in originals.items():
        newest = max(sent, key=lambda act: act.time)
        again = len({act.time for act in sent}) > 1 and newest.time > max(undos[name], default=0)
        if not undos[name] or again:
            found[name] = newest
    return found


def check(path: Path, acts: list[Act]) -> None:
    """The sums are those over what stands, and contents' counts are of people."""
    people: dict[tuple[bytes, int, int], int] = {}
    for act in standing(acts).values():
        who = (act.user, act.content, act.action)
        people[who] = max(act.time, people.get(who, 0))
    for user in {act.user for act in acts}:
        row = path.slab.index[user]
        mine = [act for act in standing(acts).values() if act.user == user]
        t_ref = max(act.time for act in acts if act.user == user)
        total, mass = np.zeros(D), 0.0
        for act in mine:
            left = WEIGHTS[act.action] * 2.0 ** (-(t_ref - act.time) / HALF_LIFE)
            total += left * MATRIX[act.content]
            mass += left
        assert path.slab.header["t_ref"][row] == t_ref
        assert path.slab.header["live"][row] == len(mine)
        assert path.slab.header["mass"][row] == pytest.approx(mass, rel=1e-6, abs=1e-12)
        np.testing.assert_allclose(path.slab.vector[row], total, rtol=1e-4, atol=1e-5 * max(mass, 1e-6))
    expected: dict[tuple[int, int], float] = defaultdict(float)
    for (_, content, action), time in people.items():
        expected[content, action] += 2.0 ** (-(NOW - time) / HALF_LIFE)
    found = path.counts()
    for key in found.keys() | expected.keys():
        assert found.get(key, 0.0) == pytest.approx(expected[key], rel=1e-4, abs=1e-5)


ids = st.lists(
    st.tuples(
        st.integers(0, 2),  # user
        st.integers(0, 2),  # content
        st.sampled_from(list(WEIGHTS)),
        st.lists(st.integers(0, 6), min_size=1, max_size=3),  # when it was sent
        st.lists(st.integers(0, 6), max_size=3),  # when it was taken back
    ),
    min_size=1,
    max_size=8,
)


@given(ids, st.integers(0, 2**32), st.integers(1, 30))
@settings(max_examples=500, deadline=None, derandomize=True)
def test_any_order_and_batching_of_sends_and_undos_gives_what_the_definition_says(drawn, seed, size) -> None:  # type: ignore[no-untyped-def]
    acts = []
    for number, (user, content, action, sent, undone) in enumerate(drawn):
        one = Act(b"u%d" % user, content, number + 1, 0, action)
        acts += [replace(one, time=NOW - (8 - t) * HOUR) for t in sent]
        acts += [replace(one, time=NOW - (8 - t) * HOUR, undo=True) for t in undone]
    random.Random(seed).shuffle(acts)
    path = Path()
    path.run(acts, size)
    check(path, acts)


def test_the_same_id_is_a_new_engagement_when_it_is_later_than_its_undo() -> None:
    path, like = Path(), Act(b"u", 1, 5, NOW - 3 * HOUR)
    unlike, again = replace(like, time=NOW - 2 * HOUR, undo=True), replace(like, time=NOW - HOUR)
    assert path.run([like, unlike, like, again, again], 1) == [TAKEN, TAKEN, REPEATED, TAKEN, REPEATED]
    check(path, [like, unlike, again])
    assert path.take([replace(unlike, time=NOW)]) == [TAKEN], "it takes the new one"
    assert path.slab.header["live"][path.slab.index[b"u"]] == 0
    assert path.counts()[1, 9] == pytest.approx(0, abs=1e-6)


def test_an_undo_whose_clock_is_behind_takes_back_all_the_same() -> None:
    path, like = Path(), Act(b"u", 1, 5, NOW)
    assert path.run([like, replace(like, time=NOW - HOUR, undo=True)], 1) == [TAKEN, TAKEN]
    assert path.slab.header["live"][path.slab.index[b"u"]] == 0


def test_one_account_is_one_person_however_often_it_acts() -> None:
    path = Path(recent=32)
    bot = [Act(b"bot", 1, 100 + n, NOW - 1000 + n) for n in range(1000)]
    rotating = [Act(b"other", n % 3 + 3, 2000 + n, NOW - 1000 + n) for n in range(300)]
    for size in (1000, 7, 1):
        path = Path(recent=32)
        path.run(bot, size)
        path.run(rotating, size)
        counts = path.counts()
        assert counts[1, 9] == pytest.approx(1, rel=1e-3), size
        assert [counts[n, 9] for n in (3, 4, 5)] == pytest.approx([1, 1, 1], rel=1e-3), size


def test_different_actions_count_side_by_side_and_long_histories_keep_what_is_recent() -> None:
    path = Path(recent=8)
    path.take([Act(b"u", n % 4, n + 1, NOW - HOUR) for n in range(40)])
    path.take([Act(b"u", 5, 100, NOW), Act(b"u", 5, 101, NOW, action=10)])
    path.take([Act(b"u", 5, 102, NOW, action=11)])
    assert [path.counts()[5, action] for action in WEIGHTS] == pytest.approx([1, 1, 1])


@given(st.integers(0, 2**32), st.integers(2, 40))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_beyond_the_horizon_batching_changes_nothing_either(seed, size) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(seed)
    acts = [
        Act(
            b"u%d" % rng.randrange(2),
            rng.randrange(N),
            n + 1,
            NOW - rng.randrange(99) * HOUR,
            rng.choice((9, 11)),
        )
        for n in range(120)
    ]
    one, many = Path(recent=6), Path(recent=6)
    one.run(acts, 1)
    many.run(acts, size)
    for user, row in one.slab.index.items():
        other = many.slab.index[user]
        assert (one.slab.interactions[row] == many.slab.interactions[other]).all()
        np.testing.assert_allclose(one.slab.vector[row], many.slab.vector[other], rtol=1e-4, atol=1e-4)
    assert one.counts() == pytest.approx(many.counts(), rel=1e-4, abs=1e-5)


# -- light actions


def test_views_do_not_push_a_share_out_of_what_is_remembered() -> None:
    path = Path(recent=32, kept=32)
    share = Act(b"u", 2, 1, NOW - 99 * HOUR, action=10)
    views = [Act(b"u", n % N, 100 + n, NOW - 50 * HOUR + n, action=11) for n in range(200)]
    early = Act(b"u", 1, 900, NOW, action=10, undo=True)
    for size in (1, 17, 300):
        path = Path(recent=32, kept=32)
        path.run([share, *views], size)
        assert path.take([share]) == [REPEATED]
        assert path.take([replace(share, time=NOW, undo=True)]) == [TAKEN]
        assert path.take([share]) == [REPEATED]
        assert path.take([early]) == [TAKEN], (
            "no share has been forgotten: this one's original is still to come"
        )
        assert path.take([replace(early, undo=False)]) == [TAKEN]
        assert path.counts()[2, 10] == pytest.approx(0, abs=1e-6)
        assert path.slab.header["live"][path.slab.index[b"u"]] == 200
        assert path.take([Act(b"u", 1, 901, NOW, action=11, undo=True)]) == [GONE], "a view may have been"


def test_without_a_light_action_nothing_is_kept_and_records_survive_other_settings() -> None:
    path = Path(recent=8, kept=8)
    acts = [Act(b"u", n % N, n + 1, NOW + n * HOUR, action=10) for n in range(12)]
    path.run([*acts, replace(acts[9], undo=True, time=NOW + 99 * HOUR)], 5)
    (value,) = path.slab.encode(np.array([path.slab.index[b"u"]]))
    record = decode(value)
    assert (len(record.interactions), len(record.kept), len(record.undone_at)) == (8, 4, 12)
    same = Path(recent=8, kept=8)
    same.slab.add(b"u", value)
    (again,) = same.slab.encode(np.array([same.slab.index[b"u"]]))
    assert again == value
    for other in (Path(recent=4, kept=2), Path(recent=16, kept=16), Path(recent=8)):
        other.slab.add(b"u", value)
        assert other.take([acts[11]]) == [REPEATED]
        assert other.take([acts[9]]) == [REPEATED], "taken back, and remembered so"


# -- what is gone


def test_an_undo_needs_no_content_but_the_one_in_the_record() -> None:
    path = Path()
    like, other = Act(b"u", 1, 5, NOW - HOUR), Act(b"u", 2, 6, NOW)
    path.take([like, other])
    rows = {key: row for key, row in ROWS.items() if row != 1}
    path.vectors = Vectors(MATRIX, rows.get, VECTORS.versions, lambda key, _: ROWS.get(key))
    path.ids[1] = None
    assert path.take([replace(like, undo=True, time=NOW)]) == [TAKEN]
    row = path.slab.index[b"u"]
    np.testing.assert_allclose(path.slab.vector[row], MATRIX[2], rtol=1e-6)
    assert path.counts()[1, 9] == pytest.approx(0, abs=1e-6)
    assert path.last.residues == 0
    unnamed = Act(b"u", 2, 77, NOW, undo=True, named=False)
    path.vectors = Vectors(MATRIX, {}.get, VECTORS.versions, lambda key, _: ROWS.get(key))
    assert path.take([unnamed]) == [TAKEN]
    assert not path.slab.vector[row].any()


def test_the_vector_that_was_added_is_subtracted_after_the_content_was_encoded_anew() -> None:
    path = Path(recent=2)
    path.take([Act(b"u", n % N, n + 1, NOW) for n in range(4)])
    anew = MATRIX.copy()
    anew[3] = -MATRIX[3]
    former = np.concatenate([anew, MATRIX[3:4]])
    versions = np.ones(N + 1, np.uint8)
    versions[3] = 2
    path.vectors = Vectors(
        former, ROWS.get, versions, lambda key, v: N if (key, v) == (KEYS[3], 1) else ROWS.get(key)
    )
    path.take([Act(b"u", 3, 4, NOW, undo=True)])
    np.testing.assert_allclose(path.slab.vector[path.slab.index[b"u"]], MATRIX[:3].sum(axis=0), rtol=1e-4)


@pytest.mark.parametrize("recent", [64, 2])
def test_where_the_former_vector_is_nowhere_all_but_the_vector_is_taken_back(recent: int) -> None:
    path = Path(recent=recent)
    path.take([Act(b"u", n, n + 1, NOW) for n in range(4)])
    path.vectors = Vectors(
        MATRIX, ROWS.get, VECTORS.versions, lambda key, _: None if key == KEYS[3] else ROWS.get(key)
    )
    assert path.take([Act(b"u", 3, 4, NOW, undo=True)]) == [TAKEN]
    row = path.slab.index[b"u"]
    assert path.slab.header["live"][row] == 3
    assert path.slab.header["mass"][row] == pytest.approx(3)
    assert path.counts()[3, 9] == pytest.approx(0, abs=1e-6)
    assert path.last.residues == 1
    left = MATRIX[:3].sum(axis=0) if recent == 64 else MATRIX[:4].sum(axis=0)
    np.testing.assert_allclose(path.slab.vector[row], left, rtol=1e-4, atol=1e-5)


def test_a_content_without_vector_adds_none_and_takes_none_back_when_it_has_one() -> None:
    path, none = Path(), np.ones(N, np.uint8)
    none[3] = 0
    matrix = MATRIX.copy()
    matrix[3] = 0
    path.vectors = Vectors(matrix, ROWS.get, none, lambda key, _: ROWS.get(key))
    path.take([Act(b"u", 3, 4, NOW), Act(b"u", 1, 5, NOW)])
    path.vectors = VECTORS
    path.take([Act(b"u", 3, 4, NOW, undo=True)])
    np.testing.assert_allclose(path.slab.vector[path.slab.index[b"u"]], MATRIX[1], rtol=1e-6)


# -- records of before


def test_a_record_of_version_1_is_read_and_its_acts_count_one_by_one() -> None:
    path = Path(recent=8)
    path.take([Act(b"u", n % 2, n + 1, NOW - HOUR + n) for n in range(6)])
    (value,) = path.slab.encode(np.array([path.slab.index[b"u"]]))
    first = bytearray(value)
    first[0], first[92:96] = 1, bytes(4)
    ring = np.frombuffer(first, "u1", offset=96 + 4 * D)[: 32 * 6].reshape(6, 32)
    ring[:, 30], ring[:, 31] = APPLIED, 0
    record = decode(bytes(first))
    assert (record.interactions["state"] == APPLIED | COUNTED).all()
    assert (states(record.interactions) == APPLIED).all()
    later = Path(recent=8)
    row = later.slab.add(b"u", bytes(first))
    np.testing.assert_array_equal(later.slab.vector[row], path.slab.vector[path.slab.index[b"u"]])
    named = [event ^ action_mask(9) for event in (1, 3)]  # versions before named events by their ids alone
    later.take([Act(b"u", 0, event, NOW, undo=True) for event in named])
    gone = later.last.contributions.signs.tolist()
    assert gone == [-1, -1], "each was counted, each is taken back"
