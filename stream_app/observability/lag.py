"""Consumer lag as a gauge, by partition."""

from __future__ import annotations

from collections.abc import Mapping

from stream_app.observability import metrics


class LagGauge:
    """Shows the lag of the partitions assigned now, and no longer that of those given away."""

    def __init__(self) -> None:
        self._shown: set[tuple[str, int]] = set()

    def show(self, lags: Mapping[tuple[str, int], int]) -> None:
        """Set the gauge: (topic, partition) → records between position and end.

        Transaction markers take offsets and are counted with the records: it is an upper bound.
        Partitions that are not in ``lags`` disappear.
        """
        for topic, partition in self._shown - lags.keys():
            metrics.CONSUMER_LAG.remove(topic, str(partition))
        for (topic, partition), records in lags.items():
            metrics.CONSUMER_LAG.labels(topic, str(partition)).set(records)
        self._shown = set(lags)
