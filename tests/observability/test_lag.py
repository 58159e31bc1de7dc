"""The gauge that shows a worker's lag."""

from __future__ import annotations

from prometheus_client import REGISTRY

from stream_app.observability import metrics
from stream_app.observability.lag import LagGauge


def shown(partition: str) -> float | None:
    return REGISTRY.get_sample_value("stream_app_consumer_lag", {"topic": "lag-test", "partition": partition})


def test_partitions_given_away_disappear() -> None:
    gauge = LagGauge(metrics.CONSUMER_LAG)
    gauge.show({("lag-test", 0): 3, ("lag-test", 1): 4})
    assert (shown("0"), shown("1")) == (3, 4)
    gauge.show({("lag-test", 1): 0})
    assert (shown("0"), shown("1")) == (None, 0)
    gauge.show({})
    assert shown("1") is None
