"""Consumer lag as a gauge: how far each partition's position is from its end."""

from __future__ import annotations

from collections.abc import Mapping

from stream_app.observability import metrics

Partition = tuple[str, int]
"""Topic and partition number."""


def lag(
    positions: Mapping[Partition, int | None], ends: Mapping[Partition, int | None]
) -> dict[Partition, int]:
    """Records not yet read, for each partition whose position and end are both known.

    Offsets of transaction markers and of compacted records are counted with them: an upper bound.
    """
    return {
        partition: max(0, end - position)
        for partition, position in positions.items()
        if position is not None and (end := ends.get(partition)) is not None
    }


class LagGauge:
    """Shows the lag of the partitions assigned now, and no longer that of those given away."""

    def __init__(self) -> None:
        self._shown: set[Partition] = set()

    def show(self, lags: Mapping[Partition, int]) -> None:
        """Set the gauge from :func:`lag`; partitions that are not in it disappear."""
        for topic, partition in self._shown - lags.keys():
            metrics.CONSUMER_LAG.remove(topic, str(partition))
        for (topic, partition), records in lags.items():
            metrics.CONSUMER_LAG.labels(topic, str(partition)).set(records)
        self._shown = set(lags)
