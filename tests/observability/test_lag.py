"""Lag from positions and ends, and the gauge that shows it."""

from __future__ import annotations

from prometheus_client import REGISTRY

from stream_app.observability.lag import LagGauge, lag


def shown(partition: str) -> float | None:
    return REGISTRY.get_sample_value("stream_app_consumer_lag", {"topic": "lag-test", "partition": partition})


def test_lag_is_known_where_position_and_end_are() -> None:
    positions = {("t", 0): 5, ("t", 1): None, ("t", 2): 7, ("t", 3): 9}
    ends = {("t", 0): 12, ("t", 1): 4, ("t", 2): 7, ("t", 4): 1}
    assert lag(positions, ends) == {("t", 0): 7, ("t", 2): 0}
    assert lag({("t", 0): 9}, {("t", 0): 3}) == {("t", 0): 0}, "an end seen earlier than the position"
    assert lag({("t", 0): 9}, {("t", 0): None}) == {}


def test_partitions_given_away_disappear() -> None:
    gauge = LagGauge()
    gauge.show({("lag-test", 0): 3, ("lag-test", 1): 4})
    assert (shown("0"), shown("1")) == (3, 4)
    gauge.show({("lag-test", 1): 0})
    assert (shown("0"), shown("1")) == (None, 0)
    gauge.show({})
    assert shown("1") is None
