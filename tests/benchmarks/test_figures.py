"""The suite's arithmetic: rates, spread, percentiles, closed form, and the summary that others read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.figures import (
    AT_LEAST_ONCE,
    EXACTLY_ONCE,
    FAUST,
    OURS,
    PLAIN,
    QUIX,
    closed_form,
    freshness,
    is_closed_form,
    latencies,
    percentile,
    rates,
    ratio,
    spread,
    state_path,
    streams_name,
)
from benchmarks.summary import table

DAY_MS = 86_400_000.0


def run(events_per_s: float, cpu_us: float = 10.0) -> dict[str, float]:
    return {"events": 1000.0, "events_per_s": events_per_s, "cpu_us": cpu_us}


def test_a_rate_lies_between_the_first_and_the_last_sample() -> None:
    found = rates([(10.0, 3.0, 500.0), (11.0, 3.5, 900.0), (12.0, 4.0, 2500.0)])
    assert found == {"events": 2000.0, "events_per_s": 1000.0, "cpu_us": 500.0}


@pytest.mark.parametrize(
    "samples", [[], [(1.0, 1.0, 5.0)], [(1.0, 1.0, 5.0), (2.0, 1.0, 5.0)], [(1.0, 1.0, 5.0), (1.0, 1.0, 9.0)]]
)
def test_a_run_that_was_too_short_has_no_rate(samples: list[tuple[float, float, float]]) -> None:
    with pytest.raises(ValueError, match="too short"):
        rates(samples)


def test_the_spread_of_runs() -> None:
    assert spread([3.0, 1.0, 10.0]) == {"min": 1.0, "median": 3.0, "max": 10.0, "runs": 3}
    assert spread([1.0, 2.0])["median"] == 1.5
    with pytest.raises(ValueError, match="no run"):
        spread([])


def test_percentiles_are_linear_between_neighbours() -> None:
    values = [float(n) for n in range(101)]
    assert percentile(values[::-1], 0.5) == 50.0
    assert percentile(values, 0.99) == 99.0
    assert percentile([1.0, 2.0], 0.5) == 1.5
    assert percentile([], 0.5) is None


def test_a_ratio_needs_both() -> None:
    assert ratio(6.0, 2.0) == 3.0
    assert ratio(6.0, None) is None
    assert ratio(None, 2.0) is None


def test_only_an_event_that_a_slate_names_has_a_latency() -> None:
    sent = {("likes", 0, 1): 1.0, ("likes", 0, 2): 2.0}
    arrived = {("likes", 0, 2): 2.5, ("likes", 0, 9): 7.0}
    assert latencies(sent, arrived) == [0.5]


def test_the_closed_form_halves_what_is_a_half_life_old() -> None:
    times = np.array([0.0, 7 * DAY_MS])
    newest, mass, total = closed_form(times, np.array([2.0, 3.0]), np.eye(2), 7 * DAY_MS)
    assert (newest, mass, total.tolist()) == (7 * DAY_MS, 4.0, [1.0, 3.0])


def test_a_state_that_is_the_closed_form_is_told_from_one_that_missed_or_doubled_an_event() -> None:
    rng = np.random.default_rng(5)
    times = rng.uniform(0, 30 * DAY_MS, 12)
    weights, vectors = rng.choice([1.0, 2.0, 3.0], 12), rng.standard_normal((12, 384))
    expected = closed_form(times, weights, vectors, 7 * DAY_MS)

    def state(of: slice | list[int]) -> bytes:
        newest, mass, total = closed_form(times[of], weights[of], vectors[of], 7 * DAY_MS)
        return np.array([newest, mass]).tobytes() + total.astype(np.float32).tobytes()

    latest = int(np.argmax(times))
    assert is_closed_form(state(slice(None)), expected)
    assert not is_closed_form(state([n for n in range(12) if n != latest]), expected)
    assert not is_closed_form(state([*range(12), latest]), expected)
    assert not is_closed_form(b"", expected)
    other = bytearray(state(slice(None)))
    other[16:20] = np.float32(1e3).tobytes()
    assert not is_closed_form(bytes(other), expected)


def test_ratios_are_of_medians_and_of_kafka_streams_best_variant_for_each_guarantee() -> None:
    found = state_path(
        {
            PLAIN: [run(400.0)],
            OURS: [run(90.0, 9.0), run(100.0, 10.0), run(170.0, 11.0)],
            FAUST: [run(2.0), run(4.0)],
            QUIX: [run(50.0)],
            streams_name(AT_LEAST_ONCE, False, 1): [run(20.0)],
            streams_name(AT_LEAST_ONCE, True, 2): [run(40.0)],
            streams_name(EXACTLY_ONCE, True, 2): [run(25.0)],
        }
    )
    assert found["events_per_s"] == 100.0
    assert found["cpu_us_per_event"] == 10.0
    assert found["vs_faust"] == pytest.approx(100 / 3)
    assert found["vs_quix"] == 2.0
    assert found["vs_kafka_streams"] == 2.5
    assert found["vs_kafka_streams_exactly_once"] == 4.0
    assert found["vs_plain_consumer"] == 0.25
    assert found["contenders"][OURS]["events_per_s"] == {
        "min": 90.0,
        "median": 100.0,
        "max": 170.0,
        "runs": 3,
    }


def test_what_was_not_measured_is_null() -> None:
    found = state_path({OURS: [run(100.0)], QUIX: []})
    assert found["events_per_s"] == 100.0
    assert [found[f"vs_{name}"] for name in ("faust", "quix", "kafka_streams")] == [None, None, None]


def loaded(latencies_ms: list[float], slates_per_s: float = 9.0) -> dict[str, Any]:
    return {
        "events": 4,
        "events_per_s": 10.0,
        "slates_per_s": slates_per_s,
        "latencies_ms": latencies_ms,
        "cpu_s": {"broker": 1.0},
    }


def test_freshness_takes_the_median_run() -> None:
    found = freshness(
        3000, "steady", 10, [loaded([1.0, 3.0]), loaded([20.0] * 4, 7.0), loaded([9.0] * 4, 8.0)]
    )
    assert (found["contents"], found["slates_per_s"], found["p50_ms"]) == (3000, 8.0, 9.0)
    assert found["spread"]["p50_ms"] == {"min": 2.0, "median": 9.0, "max": 20.0, "runs": 3}
    assert found["named_share"] == 1.0


def test_a_load_without_a_slate_has_no_percentiles() -> None:
    found = freshness(3000, "backlog", 10, [loaded([], 0.0)])
    assert (found["slates_per_s"], found["p50_ms"], found["p99_ms"]) == (0.0, None, None)


def test_the_summary_is_json_and_a_table_that_names_what_was_left_out() -> None:
    summary = {
        "date": "2024-01-01T00:00:00+00:00",
        "commit": "abc",
        "machine": {"cpu": "EPYC", "cores": 2, "memory_gb": 8.0, "system": "Linux"},
        "load_average": [0.1, 2.0],
        "versions": {"Python": "3.11"},
        "skipped": {"Kafka Streams": "no Maven: `mvn` is not in the path"},
        "failed": {"recovery": "Faust did not recover"},
        "state_path": {"events": 1000, "users": 5, **state_path({OURS: [run(100.0)], QUIX: [run(50.0)]})},
        "freshness": [freshness(3000, "backlog", 10, [loaded([], 0.0)])],
        "recovery": {"users": 10, "faust_records": 5, "vs_faust": 2.0, "spread": {OURS: spread([1.0])}},
        "encoding": {"threads": 2, "vs_sentence_transformers": None, "spread": {OURS: spread([1.0])}},
        "ranking": [
            {"contents": 3000, "ranker": "blend", "device": "cpu", "users": 32, "spread": spread([7.0])}
        ],
    }
    text = table(json.loads(json.dumps(summary)))
    assert "| Quix Streams | 50 (50 to 50) | 10.0 (10.0 to 10.0) | 2.00 |" in text
    assert "SKIPPED Kafka Streams: no Maven" in text
    assert "FAILED recovery: Faust did not recover" in text
    assert "| 3,000 | backlog, 10 | 0 (0 to 0) | – | – | 0% | broker 1.0 |" in text
    assert all(f"### {part}" in text for part in ("State", "Freshness", "Recovery", "Encoding", "Ranking"))
