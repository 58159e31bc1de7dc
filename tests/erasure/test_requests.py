"""A request's time: it may come from any clock, and locks nobody out."""

from __future__ import annotations

import json
from dataclasses import dataclass

import msgspec
import pytest

from stream_app.events.faults import UnfitError
from stream_app.events.reasons import Reason
from stream_app.hashing import key64
from stream_app.interests.erasure import ErasurePreparation
from stream_app.interests.receipts import Fences, Receipt, Removed, receipt_key
from stream_app.settings import Settings

NOW_MS = 1_780_000_000_000
FAR_MS = 7_000_000_000_000  # 2191
ERASURES = ErasurePreparation(Settings())


@dataclass
class Record:
    value: bytes
    timestamp: int
    key: bytes = b"u"
    offset: int = 3
    headers: tuple[tuple[str, bytes], ...] = ()


def requested(stamped: int, **fields: object) -> int:
    value = json.dumps({"user_id": "u", **fields}).encode()
    return ERASURES.request(Record(value, stamped), NOW_MS).requested_ms  # type: ignore[arg-type]


def test_without_a_time_it_is_kafkas_but_not_in_the_future() -> None:
    assert requested(NOW_MS - 5) == NOW_MS - 5
    assert requested(FAR_MS) == NOW_MS


@pytest.mark.parametrize("stamped", [NOW_MS, FAR_MS])
def test_a_time_in_the_future_is_refused_whatever_kafka_says(stamped: int) -> None:
    assert requested(stamped, requested_at=NOW_MS + 300_000) == NOW_MS + 300_000
    with pytest.raises(UnfitError) as fault:
        requested(stamped, requested_at=FAR_MS)
    assert fault.value.reason is Reason.TIMESTAMP_IN_FUTURE


def test_half_an_emoji_and_a_whole_float_are_read() -> None:
    assert requested(NOW_MS, requested_at=float(NOW_MS), note="\ud83d") == NOW_MS


def test_a_fence_that_an_earlier_version_put_in_the_future_locks_nobody_out() -> None:
    fences = Fences()
    receipt = Receipt(
        requested_at=FAR_MS, request_offset=0, erased_at=NOW_MS, fence=FAR_MS, removed=Removed()
    )
    fences.load(receipt_key(key64("u")), msgspec.json.encode(receipt))
    assert fences.covers(b"u", NOW_MS)
    assert not fences.covers(b"u", NOW_MS + 2 * 86_400_000)
