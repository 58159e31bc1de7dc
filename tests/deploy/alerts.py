"""Prometheus rules, dashboards and runbook as the tests read them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # comes with transformers
from prometheus_client.metrics import MetricWrapperBase

from stream_app.observability import metrics

ROOT = Path(__file__).parents[2]
HISTOGRAM = ("_bucket", "_count", "_sum")


def rules(root: Path, kind: str) -> list[dict[str, Any]]:
    """All rules of a kind, ``alert`` or ``record``."""
    files = sorted((root / "deploy/prometheus/rules").glob("*.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def dashboards(root: Path) -> dict[str, dict[str, Any]]:
    """Name → dashboard."""
    files = sorted((root / "deploy/grafana/dashboards").glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def queries(root: Path) -> list[tuple[str, str]]:
    """Dashboard and panel, and expression, of each query."""
    return [
        (f"{name}: {panel['title']}", target["expr"])
        for name, dashboard in dashboards(root).items()
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]


def named(expression: str) -> set[str]:
    """The product's metrics and recorded series that an expression uses."""
    return set(re.findall(r"\b(?:[a-z_]+:)?stream_app[a-z0-9_:]+", expression))


def series_names() -> set[str]:
    """Names of all series that workers can have."""
    found: set[str] = set()
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (described,) = metric.describe()
            if described.type == "histogram":
                found |= {described.name + suffix for suffix in HISTOGRAM}
            else:
                found.add(f"{described.name}_total" if described.type == "counter" else described.name)
    return found


def sections(root: Path) -> dict[str, str]:
    """Alert → its section of the runbook."""
    text = (root / "docs/RUNBOOK.md").read_text(encoding="utf-8")
    alerts = text.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    parts = re.split(r"^### (\w+)$", alerts, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))
