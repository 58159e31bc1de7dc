"""Lag as a gauge, by partition."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Gauge


class LagGauge:
    """Shows the lag of the partitions assigned now, and no longer that of those given away."""

    def __init__(self, gauge: Gauge) -> None:
        """``gauge`` has the labels topic and partition."""
        self._gauge = gauge
        self._shown: set[tuple[str, int]] = set()

    def show(self, lags: Mapping[tuple[str, int], int]) -> None:
        """Set the gauge: (topic, partition) → records between position and end.

        Transaction markers take offsets and are counted with the records: it is an upper bound.
        Partitions that are not in ``lags`` disappear.
        """
        for topic, partition in self._shown - lags.keys():
            self._gauge.remove(topic, str(partition))
        for (topic, partition), records in lags.items():
            self._gauge.labels(topic, str(partition)).set(records)
        self._shown = set(lags)
