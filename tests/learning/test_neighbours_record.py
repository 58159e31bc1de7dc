"""Neighbours records come back as they were, and nothing odd comes in."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from stream_app.errors import RecordFormatError
from stream_app.learning.neighbours_record import MOST_NEIGHBOURS, Neighbours, decode, encode


def neighbours(k: int, seed: int = 0) -> Neighbours:
    random = np.random.default_rng(seed)
    keys = np.unique(random.integers(1, 2**64, 2 * k + 2, dtype=np.uint64))[:k]
    return Neighbours(12.0, 3.5, keys, random.exponential(size=(4, k)).astype(np.float32))


@pytest.mark.parametrize("k", [0, 1, 64, MOST_NEIGHBOURS])
def test_a_record_comes_back_as_it_was(k: int) -> None:
    value, given = encode(neighbours(k)), neighbours(k)
    found = decode(value)
    assert (found.users, found.strong_users) == (given.users, given.strong_users)
    np.testing.assert_array_equal(found.keys, given.keys)
    np.testing.assert_array_equal(found.counts, given.counts)
    assert len(value) == 16 + 24 * k


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 17, 40, 55])
def test_records_of_another_length_are_refused(cut: int) -> None:
    value = encode(neighbours(2))
    with pytest.raises(RecordFormatError, match="bytes"):
        decode(value[:cut])
    with pytest.raises(RecordFormatError, match="bytes"):
        decode(value + bytes(cut + 1))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("place", [4, 8, 32, 52])
def test_records_with_numbers_that_count_nothing_are_refused(place: int, number: float) -> None:
    value = bytearray(encode(neighbours(2)))
    struct.pack_into("<f", value, place, number)
    with pytest.raises(RecordFormatError, match="no number"):
        decode(bytes(value))


def test_records_of_another_version_and_with_a_content_twice_are_refused() -> None:
    value = encode(neighbours(2))
    with pytest.raises(RecordFormatError, match="version 1"):
        decode(b"\x01" + value[1:])
    with pytest.raises(RecordFormatError, match="twice"):
        decode(value[:16] + value[16:24] * 2 + value[32:])
