"""A content's counts are taken back from its record as they were written."""

from __future__ import annotations

import numpy as np
import pytest

from stream_app.errors import RecordFormatError
from stream_app.interests.statistics import PartitionStatistics
from stream_app.interests.update import Contributions

ACTIONS, HALF_LIVES_H = [3, 9], [0.5, 24.0, 168.0]
HOUR_MS = 3_600_000


def counted(actions: list[int] = ACTIONS, half_lives_h: list[float] = HALF_LIVES_H) -> dict[bytes, bytes]:
    """Records of two contents after 40 events."""
    rng = np.random.default_rng(5)
    n = 40
    moved = Contributions(
        contents=rng.integers(0, 2, n),
        actions=rng.choice(np.array(actions, np.uint16), n),
        times=rng.integers(0, 100 * HOUR_MS, n),
        signs=rng.choice(np.array([1, 1, -1], np.int8), n),
    )
    return dict(PartitionStatistics(1, actions, half_lives_h).add(moved, [b"a", b"b"]))


def taken(records: dict[bytes, bytes], actions: list[int], half_lives_h: list[float]) -> PartitionStatistics:
    statistics = PartitionStatistics(1, actions, half_lives_h)
    for content, value in records.items():
        statistics.load(content, value)
    return statistics


def written(statistics: PartitionStatistics) -> dict[bytes, bytes]:
    used = len(statistics._ids)
    return dict(statistics._records(statistics._ids, statistics._t_ref[:used], statistics._counts[:used]))


def test_a_record_comes_back_bit_by_bit() -> None:
    records = counted()
    assert records.keys() == {b"a", b"b"}
    assert written(taken(records, ACTIONS, HALF_LIVES_H)) == records


def test_what_is_still_configured_is_kept_whatever_its_order() -> None:
    records = counted()
    there_and_back = written(
        taken(written(taken(records, ACTIONS[::-1], HALF_LIVES_H[::-1])), ACTIONS, HALF_LIVES_H)
    )
    assert there_and_back == records
    fewer = taken(records, [9], [24.0])
    whole = taken(records, ACTIONS, HALF_LIVES_H)
    for content in records:
        assert fewer._counts[fewer.rows[content], 0, 0] == whole._counts[whole.rows[content], 1, 1]
    assert not taken(records, [4], HALF_LIVES_H)._counts.any()


@pytest.mark.parametrize("value", [b"", b"\x01", b"\x02" + bytes(40)], ids=["empty", "short", "version"])
def test_what_is_no_record_is_refused_and_leaves_nothing(value: bytes) -> None:
    statistics = PartitionStatistics(1, ACTIONS, HALF_LIVES_H)
    with pytest.raises(RecordFormatError):
        statistics.load(b"a", value)
    for size in range(len(next(iter(counted().values())))):
        with pytest.raises(RecordFormatError):
            statistics.load(b"a", next(iter(counted().values()))[:size])
    assert not statistics.rows
