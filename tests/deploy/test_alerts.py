"""Alerts, their series and their runbook belong together. What needs promtool is in test_prometheus.py."""

from __future__ import annotations

import re

import pytest
import yaml  # type: ignore[import-untyped]  # comes with transformers

from tests.deploy.alerts import ROOT, named, rules, sections, series_names

ALERTS = {rule["alert"]: rule for rule in rules(ROOT, "alert")}
RECORDED = {rule["record"] for rule in rules(ROOT, "record")}


def test_rules_use_series_that_exist() -> None:
    used = set().union(*(named(rule["expr"]) for rule in (*ALERTS.values(), *rules(ROOT, "record"))))
    assert len(used) > 20
    assert used - RECORDED - series_names() == set()


def test_every_alert_has_a_section_and_every_section_an_alert() -> None:
    found = sections(ROOT)
    assert found.keys() == ALERTS.keys()
    for name, text in found.items():
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == ["Means", "Look", "Do"], name
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"] == f"docs/RUNBOOK.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_the_runbook_names_series_settings_and_commands_that_exist() -> None:
    text = (ROOT / "docs/RUNBOOK.md").read_text(encoding="utf-8")
    histograms = {name.removesuffix("_bucket") for name in series_names() if name.endswith("_bucket")}
    assert named(text) - RECORDED - series_names() - histograms == set()
    config, commands = ((ROOT / f"docs/{page}.md").read_text() for page in ("CONFIG", "COMMANDS"))
    sections_of_settings = re.findall(r"^## `\[(\w+)\]`$", config, re.MULTILINE)
    settings = re.findall(rf"`((?:{'|'.join(sections_of_settings)})\.[a-z_]+)", text)
    assert len(settings) > 10
    for setting in settings:
        assert f"`STREAM_APP_{setting.replace('.', '_').upper()}`" in config, setting
    for command in re.findall(r"`stream-app ([a-z]+)\b", text):
        assert f"## stream-app {command}\n" in commands, command


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_tried_firing_and_silent(alert: str) -> None:
    fires = silent = 0
    for file in (ROOT / "deploy/prometheus/tests").glob("*.yml"):
        for group in yaml.safe_load(file.read_text())["tests"]:
            for case in group["alert_rule_test"]:
                if case["alertname"] == alert:
                    fires += bool(case["exp_alerts"])
                    silent += not case["exp_alerts"]
    assert fires >= 1
    assert silent >= 2  # before and after


@pytest.mark.parametrize("page", ["README.md", "docs/RUNBOOK.md"])
def test_links_into_the_runbook_find_their_section(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs/RUNBOOK.md").read_text(encoding="utf-8"), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    wanted = re.findall(r"RUNBOOK\.md#([\w-]+)\)" if page == "README.md" else r"\]\(#([\w-]+)\)", text)
    assert len(wanted) > 5
    assert set(wanted) - anchors == set()
