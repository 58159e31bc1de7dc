"""Co-engagement beside the index: aligned to its rows whatever comes first, goes, or comes back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from stream_app.content.index import ContentIndex
from stream_app.hashing import key64
from stream_app.learning import neighbours_record
from stream_app.learning.coengagement import CHANNELS
from stream_app.learning.neighbours_record import Neighbours
from stream_app.ranking.device import DeviceIndex
from stream_app.ranking.neighbours import NeighbourTable
from tests.ranking import learned_world
from tests.ranking import ranking_world as world

CPU = torch.device("cpu")


def value(users: float, *neighbours: tuple[bytes, float]) -> bytes:
    """A record; each neighbour with the same count in every channel."""
    keys = np.array([key64(name) for name, _ in neighbours], np.uint64)
    counts = np.array([[count for _, count in neighbours]] * len(CHANNELS), np.float32)
    return neighbours_record.encode(Neighbours(users, users / 2, keys, counts))


class Followed:
    """An index, its mirror and the table."""

    def __init__(self, capacity: int = 20, neighbours: int = 4) -> None:
        config = learned_world.settings(content={"capacity": capacity})
        self.index = ContentIndex(config, world.MODEL)
        self.mirror = DeviceIndex(self.index, CPU)
        self.table = NeighbourTable(self.index, neighbours, CPU)
        self._rng = np.random.default_rng(0)

    def put(self, *names: bytes) -> None:
        for name in names:
            world.put(self.index, name, self._rng.normal(size=world.D), world.NOW)

    def refresh(self) -> None:
        self.table.adopt(self.mirror.refresh(), self.mirror.rows_of)

    def read(self, name: bytes) -> dict[bytes, float]:
        """Neighbours of a content that are in the index, with their counts."""
        row = self.index.rows[name]
        found = {}
        for near, count in zip(
            self.table.rows[row].tolist(), self.table.counts[row, 0].tolist(), strict=True
        ):
            if near:
                id_ = self.index.ids[near - 1]
                assert id_ is not None
                assert id_ not in found
                found[id_] = count
        return found

    def readers(self, name: bytes) -> list[float]:
        return self.table.readers[:, self.index.rows[name]].tolist()


def test_records_are_written_by_row_strongest_first_and_the_newest_counts() -> None:
    followed = Followed(neighbours=2)
    followed.put(b"a", b"b", b"c", b"d")
    followed.table.apply([(b"a", value(9, (b"b", 1)))])
    followed.table.apply([(b"a", value(4, (b"b", 1), (b"c", 3), (b"d", 2)))])
    followed.refresh()
    assert followed.read(b"a") == {b"c": 3, b"d": 2}
    assert followed.table.rows[followed.index.rows[b"a"]].tolist() == [
        followed.index.rows[b"c"] + 1,
        followed.index.rows[b"d"] + 1,
    ]
    assert followed.readers(b"a") == [4, 2]
    assert followed.read(b"b") == {}
    followed.table.apply([(b"a", None)])
    followed.refresh()
    assert (followed.read(b"a"), followed.readers(b"a")) == ({}, [0, 0])


def test_contents_may_come_after_their_records_and_after_being_named() -> None:
    followed = Followed()
    followed.put(b"a")
    followed.table.apply([(b"a", value(3, (b"late", 2))), (b"late", value(5, (b"a", 1)))])
    followed.refresh()
    assert followed.read(b"a") == {}
    followed.put(b"x", b"late")
    followed.refresh()
    assert followed.read(b"a") == {b"late": 2}
    assert followed.read(b"late") == {b"a": 1}
    assert followed.readers(b"late") == [5, 2.5]


def test_a_newer_record_does_not_get_what_an_older_one_waited_for() -> None:
    followed = Followed()
    followed.put(b"a", b"b")
    followed.table.apply([(b"a", value(3, (b"late", 2), (b"b", 1)))])
    followed.refresh()
    followed.table.apply([(b"a", value(3, (b"b", 7)))])
    followed.refresh()
    followed.put(b"late")
    followed.refresh()
    assert followed.read(b"a") == {b"b": 7}


def test_a_row_that_is_given_to_another_content_has_nothing_of_the_former() -> None:
    followed = Followed()
    followed.put(b"a", b"b")
    followed.table.apply([(b"a", value(3, (b"b", 2))), (b"b", value(3, (b"a", 2)))])
    followed.refresh()
    followed.index.delete(b"b")
    followed.put(b"other")
    assert followed.index.rows[b"other"] == 1
    followed.refresh()
    assert followed.read(b"a") == {}
    assert (followed.read(b"other"), followed.readers(b"other")) == ({}, [0, 0])


def test_what_waits_is_bounded() -> None:
    followed = Followed(capacity=8)
    followed.put(b"a")
    followed.table.apply([(b"a", value(1, *((b"named-%d" % i, 1.0) for i in range(4))))])
    for i in range(40):
        followed.table.apply([(b"unknown-%d" % i, value(1, (b"a", 1)))])
        followed.table.apply([(b"a", value(1, (b"later-%d" % i, 1.0)))])
        followed.refresh()
    assert len(followed.table._early) == len(followed.table._awaited) == 8
    followed.put(*(b"unknown-%d" % i for i in range(33, 40)))
    followed.refresh()
    assert all(followed.read(b"unknown-%d" % i) == {b"a": 1} for i in range(33, 40))


def test_unreadable_records_are_counted_and_cost_nothing_else() -> None:
    def rejected() -> float:
        labels = {"topic": "co-engagement"}
        return REGISTRY.get_sample_value("stream_app_ranker_rejected_total", labels) or 0.0

    followed, before = Followed(), rejected()
    followed.put(b"a", b"b")
    followed.table.apply([(b"a", b"?"), (None, value(1)), (b"a", value(2, (b"b", 1))), (b"a", b"")])
    followed.refresh()
    assert followed.read(b"a") == {b"b": 1}
    assert rejected() - before == 3


def test_what_a_failing_device_left_undone_is_done_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    followed = Followed()
    followed.put(b"a", b"b", b"c")
    followed.table.apply([(b"a", value(3, (b"b", 2))), (b"late", value(2, (b"a", 1)))])
    followed.refresh()
    followed.index.delete(b"b")
    followed.put(b"other", b"late")
    followed.table.apply([(b"c", value(6, (b"a", 5)))])

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    for step in ("_disown", "_write"):
        with monkeypatch.context() as patched:
            patched.setattr(NeighbourTable, step, fail)
            with pytest.raises(RuntimeError, match="CUDA"):
                followed.refresh()
    followed.refresh()
    assert followed.read(b"c") == {b"a": 5}
    assert followed.read(b"late") == {b"a": 1}
    assert followed.read(b"a") == followed.read(b"other") == {}


@hypothesis_settings(deadline=None, derandomize=True, max_examples=60)
@given(st.data())
def test_any_order_ends_with_what_the_newest_records_say(data: st.DataObject) -> None:
    names = [b"c%d" % i for i in range(6)]
    followed = Followed(capacity=6)
    newest: dict[bytes, dict[bytes, float]] = {}
    left = set[bytes]()
    for _ in range(data.draw(st.integers(1, 25))):
        name = data.draw(st.sampled_from(names))
        match data.draw(st.sampled_from(["put", "delete", "record", "record", "refresh"])):
            case "put":
                followed.put(name)
            case "delete":
                if followed.index.delete(name):
                    left.add(name)
                    newest.pop(name, None)
            case "record":
                others = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=4))
                named = {other: float(1 + i) for i, other in enumerate(others) if other != name}
                followed.table.apply([(name, value(1, *named.items()))])
                newest[name] = named
            case "refresh":
                followed.refresh()
    followed.refresh()
    for name in followed.index.rows:
        found = followed.read(name)
        # a neighbour that left the index and came back is known again with the next record
        expected = {n: c for n, c in newest.get(name, {}).items() if n in followed.index.rows}
        assert found.items() <= expected.items() or name in left
        assert expected.keys() - found.keys() <= left
