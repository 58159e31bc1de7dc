"""Prometheus' own checker on configuration and rules, and every alert on a course of series."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.alerts import ROOT
from tests.deploy.tools import tool

pytestmark = pytest.mark.deploy
TIMEOUT_S = 400


def complaints(root: Path, tests: str = "*") -> str:
    """What promtool first has to say against ``deploy/prometheus``, and these of its tests; empty when
    nothing."""
    folder = root / "deploy/prometheus"
    rules = [str(file) for file in sorted(folder.glob("rules/*.yml"))]
    for arguments in (
        ["check", "config", "--lint=all", "--lint-fatal", str(folder / "prometheus.yml")],
        ["check", "rules", "--lint=all", "--lint-fatal", *rules],
        ["test", "rules", *(str(file) for file in sorted(folder.glob(f"tests/{tests}.yml")))],
    ):
        command = [tool("promtool"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        if done.returncode:
            return done.stdout + done.stderr
    return ""


def test_configuration_and_rules_are_sound() -> None:
    assert complaints(ROOT) == ""


@pytest.mark.parametrize(
    ("tests", "file", "old", "new"),
    [
        ("*", "prometheus.yml", "scrape_interval: 15s", "scrape_interval: 15 s"),
        ("*", "rules/recording.yml", "sum by (le)", "sum by le"),
        ("hours", "rules/recording.yml", 'le="0.5"', 'le="5"'),
        ("flow", "rules/recording.yml", 'reason!="erased"', 'reason!="empty"'),
        ("workers", "rules/alerts.yml", 'or absent(up{job="stream-app", role="trainer"})', ""),
        ("hours", "rules/alerts.yml", "> 0) > 6 * 3600", ") > 6 * 3600"),
    ],
)
def test_what_is_broken_is_noticed(tmp_path: Path, tests: str, file: str, old: str, new: str) -> None:
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    path = tmp_path / "deploy/prometheus" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert complaints(tmp_path, tests) != ""
