"""The suite's picture: a bar for each figure, none for what was not measured."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from benchmarks.figures import KAFKA_STREAMS, OURS, QUIX, freshness, state_path
from benchmarks.suite_plot import RIGHT, WIDTH, bars, svg

RUN = {"events_per_s": 10.0, "slates_per_s": 9.0, "cpu_s": {"broker": 1.0}}
SUMMARY: dict[str, Any] = {
    "date": "2024-01-01T00:00:00+00:00",
    "machine": {"cpu": "EPYC & sons", "cores": 2},
    "state_path": state_path(
        {
            OURS: [{"events_per_s": 100.0, "cpu_us": 1.0}, {"events_per_s": 300.0, "cpu_us": 1.0}],
            QUIX: [{"events_per_s": 50.0, "cpu_us": 2.0}],
            KAFKA_STREAMS: [],
        }
    ),
    "freshness": [
        freshness(3000, "steady", 10, [RUN | {"events": 2, "latencies_ms": [20.0, 30.0]}]),
        freshness(3000, "backlog", 10, [RUN | {"events": 2, "latencies_ms": []}]),
    ],
}


def test_every_figure_has_a_bar_and_nothing_else_has() -> None:
    panels = {title: [bar.name for bar in of] for title, _, of in bars(SUMMARY)}
    assert panels["State path"] == [OURS, QUIX]
    assert len(panels["Slates a second"]) == 2
    assert panels["Event to slate, median"] == ["3,000 contents, steady, 10/s"]
    assert bars({}) == []


def test_the_picture_is_xml_and_the_largest_run_fits_in_it() -> None:
    picture = ElementTree.fromstring(svg(SUMMARY))  # noqa: S314  # our own picture
    bars_ends = [
        float(bar.get("x", "")) + float(bar.get("width", "")) for bar in picture.findall(".//{*}rect[@x]")
    ]
    assert len(bars_ends) == 8
    assert max(bars_ends) <= WIDTH - RIGHT
    texts = [text.text for text in picture.findall(".//{*}text")]
    assert texts[0] == "EPYC & sons, 2 cores, 2024-01-01"
    assert "200" in texts  # the median of ours
