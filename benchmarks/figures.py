"""The suite's arithmetic: rates, spread, percentiles, ratios, the closed form, the summary's shape. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

OURS, PLAIN, FAUST, QUIX = "stream-app", "plain aiokafka", "idiomatic Faust", "Quix Streams"
KAFKA_STREAMS = "Kafka Streams"
AT_LEAST_ONCE, EXACTLY_ONCE = "at-least-once", "exactly-once"
TOLERANCE = 1e-4
"""Largest relative error of a float32 sum of a few hundred events, added one by one."""

Place = TypeVar("Place", bound=Hashable)


def rates(samples: Sequence[tuple[float, float, float]]) -> dict[str, float]:
    """Events/s and processor µs an event between the first and the last sample (wall s, processor s, events).

    Raises ValueError when no event and no time lies between them.
    """
    if len(samples) < 2 or samples[-1][2] <= samples[0][2] or samples[-1][0] <= samples[0][0]:
        raise ValueError("too few samples for a rate: the run was too short")
    (t0, c0, n0), (t1, c1, n1) = samples[0], samples[-1]
    return {"events": n1 - n0, "events_per_s": (n1 - n0) / (t1 - t0), "cpu_us": 1e6 * (c1 - c0) / (n1 - n0)}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, median and largest of several runs, and how many there were. Raises ValueError on none."""
    if not values:
        raise ValueError("no run")
    return {
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
        "runs": len(values),
    }


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value that ``share`` (0 to 1) of the values do not exceed, linear in between; None of none."""
    return float(np.quantile(values, share)) if len(values) else None


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """How many times theirs ours is; None where one of them was not measured."""
    return ours / theirs if ours is not None and theirs else None


def latencies(sent: Mapping[Place, float], arrived: Mapping[Place, float]) -> list[float]:
    """Seconds from the sending of each event to the arrival of the slate that names it.

    An event that a newer one of its user superseded is named by no slate, and has no latency.
    """
    return [arrived[place] - when for place, when in sent.items() if place in arrived]


def closed_form(
    times: NDArray[np.float64],
    weights: NDArray[np.float64],
    vectors: NDArray[np.float64],
    half_life_ms: float,
) -> tuple[float, float, NDArray[np.float64]]:
    """What n events leave: the newest time (ms), Σ w·2^(−age/h), and [D] Σ w·2^(−age/h)·vector.

    ``times`` (ms) and ``weights`` are [n], ``vectors`` [n, D]. Raises ValueError on no event.
    """
    newest = float(times.max())
    shares = weights * 2.0 ** (-(newest - times) / half_life_ms)
    return newest, float(shares.sum()), shares @ vectors


def is_closed_form(state: bytes, expected: tuple[float, float, NDArray[np.float64]]) -> bool:
    """Whether an alternative's state is the closed form: time and mass (float64), the sum (float32)."""
    newest, mass, total = expected
    if len(state) != 16 + 4 * len(total):
        return False
    head = np.frombuffer(state, np.float64, 2)
    error = np.linalg.norm(np.frombuffer(state, np.float32, offset=16) - total)
    return bool(
        head[0] == newest
        and abs(head[1] - mass) <= TOLERANCE * mass
        and error <= TOLERANCE * np.linalg.norm(total)
    )


def streams_name(guarantee: str, cache: bool, threads: int) -> str:
    """What a variant of Kafka Streams is called."""
    plural = "s" if threads > 1 else ""
    return f"{KAFKA_STREAMS}, {guarantee}, cache {'on' if cache else 'off'}, {threads} thread{plural}"


def state_path(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """The summary's ``state_path`` from each contender's runs, as :func:`rates` gave them.

    Ratios are of medians, None where the other was not measured. Against Kafka Streams its best variant
    counts: ``vs_kafka_streams`` at-least-once, ``vs_kafka_streams_exactly_once`` exactly-once.
    """
    contenders = {
        name: {
            "events_per_s": spread([run["events_per_s"] for run in of]),
            "cpu_us_per_event": spread([run["cpu_us"] for run in of]),
        }
        for name, of in runs.items()
        if of
    }

    def median(name: str, figure: str = "events_per_s") -> float | None:
        return contenders[name][figure]["median"] if name in contenders else None

    def best(guarantee: str) -> float | None:
        of = [median(name) or 0.0 for name in contenders if name.startswith(f"{KAFKA_STREAMS}, {guarantee}")]
        return max(of, default=None)

    ours = median(OURS)
    return {
        "vs_faust": ratio(ours, median(FAUST)),
        "vs_quix": ratio(ours, median(QUIX)),
        "vs_kafka_streams": ratio(ours, best(AT_LEAST_ONCE)),
        "vs_kafka_streams_exactly_once": ratio(ours, best(EXACTLY_ONCE)),
        "vs_plain_consumer": ratio(ours, median(PLAIN)),
        "events_per_s": ours,
        "cpu_us_per_event": median(OURS, "cpu_us_per_event"),
        "contenders": contenders,
    }


def freshness(contents: int, load: str, offered: float, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One entry of the summary's ``freshness``: medians over runs, and their spread.

    A run has ``events_per_s`` and ``slates_per_s``, ``latencies_ms`` of the events that a slate names, and
    ``cpu_s`` by process. A run without any latency has no percentiles; None when there is none at all.
    """

    def of(name: str) -> dict[str, float]:
        return spread([run[name] for run in runs])

    def of_percentile(share: float) -> dict[str, float] | None:
        found = [percentile(run["latencies_ms"], share) for run in runs]
        known = [value for value in found if value is not None]
        return spread(known) if known else None

    slates, p50, p99 = of("slates_per_s"), of_percentile(0.5), of_percentile(0.99)
    named = [len(run["latencies_ms"]) / max(1, run["events"]) for run in runs]
    return {
        "contents": contents,
        "load": load,
        "offered_events_per_s": offered,
        "events_per_s": of("events_per_s")["median"],
        "slates_per_s": slates["median"],
        "p50_ms": p50["median"] if p50 else None,
        "p99_ms": p99["median"] if p99 else None,
        "named_share": statistics.median(named),
        "spread": {"slates_per_s": slates, "p50_ms": p50, "p99_ms": p99},
        "cpu_s": {name: statistics.median(run["cpu_s"][name] for run in runs) for name in runs[0]["cpu_s"]},
    }
