"""The soak's verdict: a leak is seen, a sawtooth and a warm-up are not taken for one."""

from __future__ import annotations

import math
import random
from xml.etree import ElementTree

import pytest

from benchmarks.soak_plot import Panel, nice, svg
from benchmarks.soak_trend import quantile, trend

SECONDS = [10.0 * i for i in range(360)]
WARM_UP_S = 900.0


def noisy(mean: float, per_hour: float, spread: float) -> list[float | None]:
    rng = random.Random(3)
    return [mean + per_hour * t / 3600 + rng.gauss(0, spread) for t in SECONDS]


def test_a_line_gives_its_own_slope() -> None:
    found = trend(SECONDS, [100 + t / 36 for t in SECONDS], WARM_UP_S)
    assert found is not None
    assert found.per_hour == pytest.approx(100)
    assert found.growth == pytest.approx((SECONDS[-1] - WARM_UP_S) / 36)
    assert found.noise == pytest.approx(0, abs=1e-6)
    assert not found.flat


@pytest.mark.parametrize(
    ("values", "flat"),
    [
        (noisy(500, per_hour=0, spread=1), True),
        (noisy(500, per_hour=40, spread=1), False),
        (noisy(500, per_hour=8, spread=1), True),  # 6 in the window: below 2 %
        (noisy(40, per_hour=8, spread=1), False),
        (noisy(500, per_hour=-100, spread=1), True),
        ([40.0] * len(SECONDS), True),
        ([20 + t % 250 / 25 for t in SECONDS], True),  # files that are merged every four minutes
        ([20 + t % 250 / 25 + t / 200 for t in SECONDS], False),
        ([400 - 300 * math.exp(-t / 200) for t in SECONDS], True),  # reached within the warm-up
        ([400 - 300 * math.exp(-t / 3000) for t in SECONDS], False),
    ],
)
def test_what_counts_as_flat(values: list[float | None], flat: bool) -> None:
    found = trend(SECONDS, values, WARM_UP_S)
    assert found is not None
    assert found.flat is flat


def test_holes_are_left_out_and_too_little_says_nothing() -> None:
    values: list[float | None] = [1.0 if i % 2 else None for i in range(len(SECONDS))]
    found = trend(SECONDS, values, WARM_UP_S)
    assert found is not None
    assert (found.mean, found.growth) == (1.0, 0.0)
    assert trend(SECONDS[:60], values[:60], WARM_UP_S) is None
    assert trend([], [], WARM_UP_S) is None


def test_a_quantile_is_of_what_came_in_between() -> None:
    before = {0.01: 100.0, 0.1: 100.0, float("inf"): 100.0}
    after = {0.01: 150.0, 0.1: 200.0, float("inf"): 200.0}
    assert quantile(before, after, 0.25) == pytest.approx(0.005)
    assert quantile(before, after, 0.75) == pytest.approx(0.055)
    assert quantile(before, {**after, float("inf"): 1100.0}, 0.99) == 0.1  # beyond the last bound
    assert quantile(after, after, 0.5) is None
    assert quantile({}, {}, 0.5) is None


def test_the_picture_is_xml_with_axes_units_and_legend() -> None:
    panels = [
        Panel("memory", "MB", {"a<b": [1.0, None, 3.0], "broker": [2.0, 2.5, 2.0]}),
        Panel("lag", "records", {"all": [None, None, None]}),
    ]
    root = ElementTree.fromstring(svg("a & b", [0.0, 1.0, 2.0], panels, 0.5))  # noqa: S314  # our own
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a & b", "memory, MB", "lag, records", "a<b", "broker", "minutes"} <= set(texts)
    lines = [e.get("d") or "" for e in root.iter("{http://www.w3.org/2000/svg}path")]
    assert any(line.count("M") == 2 for line in lines), "a hole interrupts the line"


def test_axes_step_in_round_numbers() -> None:
    assert [nice(x) for x in (0.03, 1.0, 1.1, 2.5, 6.0, 130.0)] == [0.05, 1.0, 2.0, 5.0, 10.0, 200.0]
