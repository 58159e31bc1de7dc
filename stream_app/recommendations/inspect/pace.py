"""How fresh and how many: this ranker's own metrics over the last minute."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf

from prometheus_client import Counter, Histogram

from stream_app.observability import metrics

WINDOW = 60
"""Samples kept, one a second."""


@dataclass(frozen=True)
class Pace:
    """Of the seconds between the first and the last sample."""

    seconds: float
    users_per_s: float
    slates_per_s: float
    fresh_p50_s: float | None
    """From an event's arrival on Kafka to the committed slate; None without any"""
    fresh_p99_s: float | None


@dataclass(frozen=True)
class _Sample:
    at: float
    users: float
    slates: float
    fresh: tuple[tuple[float, float], ...]  # (upper bound in seconds, count up to it), ascending


class PaceMeter:
    """Samples counters, and says what they did."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=WINDOW + 1)

    def sample(self, now_s: float) -> None:
        """Once a second."""
        users = _total(metrics.RANKED_USERS)
        slates = _total(metrics.SLATES, result="published")
        self._samples.append(_Sample(now_s, users, slates, _buckets(metrics.FRESHNESS_SECONDS)))

    def pace(self) -> Pace | None:
        """None before the second sample."""
        if len(self._samples) < 2:
            return None
        first, last = self._samples[0], self._samples[-1]
        seconds = max(last.at - first.at, 1e-9)
        fresh = [
            (bound, after - before)
            for (bound, after), (_, before) in zip(last.fresh, first.fresh, strict=True)
        ]
        return Pace(
            seconds,
            (last.users - first.users) / seconds,
            (last.slates - first.slates) / seconds,
            quantile(fresh, 0.5),
            quantile(fresh, 0.99),
        )


def quantile(buckets: list[tuple[float, float]], q: float) -> float | None:
    """The q-th quantile of a cumulative histogram, straight within a bucket, as Prometheus computes it.

    ``buckets`` are (upper bound, count up to it), ascending. None of an empty histogram; where it lies
    above the last bound, that bound.

    >>> quantile([(1.0, 10), (2.0, 30), (inf, 30)], 0.5)
    1.25
    """
    total = buckets[-1][1] if buckets else 0
    if not total:
        return None
    below_bound = below = 0.0
    for bound, count in buckets:
        if count >= q * total:
            if bound == inf:
                return below_bound
            return below_bound + (bound - below_bound) * (q * total - below) / max(count - below, 1e-9)
        below_bound, below = bound, count
    return below_bound


def _total(counter: Counter, **labels: str) -> float:
    return sum(
        sample.value
        for metric in counter.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and labels.items() <= sample.labels.items()
    )


def _buckets(histogram: Histogram) -> tuple[tuple[float, float], ...]:
    return tuple(
        (float(sample.labels["le"]), sample.value)
        for metric in histogram.collect()
        for sample in metric.samples
        if sample.name.endswith("_bucket")
    )
