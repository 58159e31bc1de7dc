"""The dashboards are those that their generator makes, and show what there is."""

from __future__ import annotations

import runpy

import pytest
import yaml  # type: ignore[import-untyped]  # comes with transformers

from tests.deploy.alerts import ROOT, dashboards, named, queries, rules, series_names

GENERATOR = runpy.run_path(str(ROOT / "deploy/grafana/generate.py"))
FILES = ROOT / "deploy/grafana/dashboards"


def test_files_are_what_the_generator_makes() -> None:
    assert {file.stem for file in FILES.iterdir()} == GENERATOR["DASHBOARDS"].keys()
    for name in GENERATOR["DASHBOARDS"]:
        if (FILES / f"{name}.json").read_text(encoding="utf-8") != GENERATOR["text"](name):
            pytest.fail(f"dashboards/{name}.json is not up to date: run `python deploy/grafana/generate.py`")


def test_queries_name_series_that_exist() -> None:
    recorded = {rule["record"] for rule in rules(ROOT, "record")}
    used = {name for _, query in queries(ROOT) for name in named(query)}
    assert len(used) > 50
    assert used - recorded - series_names() == set()


def test_panels_lie_side_by_side_and_read_the_data_source_that_is_provisioned() -> None:
    (source,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    for dashboard in dashboards(ROOT).values():
        taken: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken
            assert max(x for x, _ in cells) < 24
            taken |= cells
            assert {panel["datasource"]["uid"], *(t["datasource"]["uid"] for t in panel["targets"])} == {
                source["uid"]
            }
    uids = [dashboard["uid"] for dashboard in dashboards(ROOT).values()]
    assert len({*uids}) == len(uids)
