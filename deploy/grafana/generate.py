"""Writes the dashboards: `python deploy/grafana/generate.py`. Change them here, not in Grafana or the JSON.

A panel is a title, a unit, and queries with their legends. `$__rate_interval` is Grafana's: the step, and
at least four scrapes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, ACROSS = 24, {"stat": 6, "timeseries": 3}
"""Grafana's grid, and how many panels of a kind stand side by side."""
HEIGHT = {"stat": 4, "timeseries": 8}


@dataclass(frozen=True)
class Panel:
    """One panel."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    """Expression and legend"""
    about: str = ""
    kind: str = "timeseries"


def rate(metric: str, by: str = "", where: str = "") -> str:
    """Per second, summed."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped}(rate(stream_app_{metric}{{{where}}}[$__rate_interval]))".replace("{}", "")


def quantile(q: float, histogram: str, by: str = "") -> str:
    """A quantile of one of the histograms."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', labels)})"


def line(title: str, unit: str, *queries: tuple[str, str], about: str = "") -> Panel:
    """A panel over time."""
    return Panel(title, unit, queries, about)


def stat(title: str, unit: str, query: str, about: str = "") -> Panel:
    """One number."""
    return Panel(title, unit, ((query, title),), about, "stat")


P50, P99 = "stream_app:freshness_seconds:p50_5m", "stream_app:freshness_seconds:p99_5m"
FIRING = 'sum by (alertname) (ALERTS{alertstate="firing"}) or label_replace(vector(0), "alertname", "none", "", "")'

DASHBOARDS: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "overview": (
        "Overview",
        (
            stat("Events", "ops", rate("events_total")),
            stat("Slates published", "ops", rate("slates_total", where='result="published"')),
            stat("Freshness p99", "s", P99, "From an event's Kafka timestamp to its committed slate."),
            stat(
                "Late, last hour",
                "percentunit",
                "stream_app:freshness_late:ratio_rate1h",
                "Slates later than 0.5 s. The objective allows 1 %.",
            ),
            stat("Records behind", "short", "sum(role_topic:stream_app_lag:sum)"),
            stat("Workers not ready", "short", "count(up{job=\"stream-app\"}) - sum(stream_app_ready)"),
            line("Events by outcome", "ops", (rate("events_total", "outcome"), "{{outcome}}")),
            line("Slates by result", "ops", (rate("slates_total", "result"), "{{result}}")),
            line("Freshness", "s", (P50, "p50"), (P99, "p99")),
            line("Lag by role", "short", ("sum by (role) (role_topic:stream_app_lag:sum)", "{{role}}")),
            line("Ready workers by role", "short", ("sum by (role) (stream_app_ready)", "{{role}}")),
            line("Firing alerts", "short", (FIRING, "{{alertname}}")),
        ),
    ),
    "pipeline": (
        "Pipeline",
        (
            line("Events by action", "ops", (rate("events_total", "action"), "{{action}}")),
            line("Lag by topic", "short", ("role_topic:stream_app_lag:sum", "{{role}} {{topic}}")),
            line("Records in a batch, p50", "short", (quantile(0.5, "batch_records", "role"), "{{role}}")),
            line(
                "State path: share of time by step",
                "percentunit",
                (rate("state_seconds_sum", "step"), "{{step}}"),
                about="Of all interests workers together; 1 is one core's whole time.",
            ),
            line("Transactions", "ops", (rate("transactions_total", "role, result"), "{{role}} {{result}}")),
            line("State path: p99 by step", "s", (quantile(0.99, "state_seconds", "step"), "{{step}}")),
            line("User records changed", "ops", (rate("users_touched_total"), "changed"), (rate("users_expired_total"), "faded")),
            line("Changelog", "Bps", (rate("changelog_bytes_total"), "written")),
            line("Users in memory", "short", ("sum by (instance) (stream_app_slab_rows)", "{{instance}}")),
            line("Contents encoded", "ops", (rate("content_encoded_total"), "encoded")),
            line("Encoding a batch", "s", (quantile(0.5, "encode_seconds"), "p50"), (quantile(0.99, "encode_seconds"), "p99")),
            line("Contents in the index", "short", ('stream_app_content_indexed{role!="content"}', "{{role}} {{instance}}")),
            line("Processor", "percentunit", ('rate(process_cpu_seconds_total{job="stream-app"}[$__rate_interval])', "{{role}} {{instance}}")),
            line("Memory", "bytes", ('process_resident_memory_bytes{job="stream-app"}', "{{role}} {{instance}}")),
        ),
    ),
    "ranking": (
        "Ranking and GPU",
        (
            line("Users ranked", "ops", (rate("ranked_users_total", "kind"), "{{kind}}")),
            line(
                "Busy",
                "percentunit",
                ("instance:stream_app_ranking_busy:ratio_rate5m", "{{instance}}"),
                about="Share of the time in which something is ranked.",
            ),
            line("Share of time by step", "percentunit", (rate("rank_seconds_sum", "step"), "{{step}}")),
            line("A micro-batch, p99 by step", "s", (quantile(0.99, "rank_seconds", "step"), "{{step}}")),
            line("Users waiting", "short", ("stream_app_queue_depth", "{{instance}} {{queue}}")),
            line("Cheap lists by cause", "ops", (rate("fallbacks_total", "cause"), "{{cause}}")),
            line("Device failures", "ops", (rate("device_failures_total", "cause"), "{{cause}}")),
            line(
                "GPU memory",
                "bytes",
                ("stream_app_device_memory_bytes", "{{instance}} {{kind}}"),
                about="0 on a CPU.",
            ),
            line("Slates made anew for deleted contents", "ops", (rate("slates_renewed_total"), "renewed"), (rate("ledger_searches_total"), "searches")),
        ),
    ),
    "quality": (
        "Quality",
        (
            line(
                "Engagements with what the slate named, by arm",
                "percentunit",
                (
                    rate("arm_engagements_total", "arm", 'content="shown"') + " / (" + rate("arm_engagements_total", "arm") + " > 0)",
                    "{{arm}}",
                ),
                about="What to compare arms by.",
            ),
            line("Users ranked by arm and ranker", "ops", (rate("arm_users_total", "arm, ranker"), "{{arm}} {{ranker}}")),
            line("Model version", "short", ("max(stream_app_trainer_version)", "published"), ('stream_app_ranker_version{role="ranker"}', "{{instance}}")),
            line("Loss before each step, nats", "short", ("stream_app_trainer_loss", "{{model}}")),
            line("NDCG@10 before each step", "short", ("stream_app_trainer_ndcg", "{{model}}")),
            line("Verdicts on the model", "ops", (rate("trainer_verdicts_total", "verdict"), "{{verdict}}")),
            line("Engagements learned from", "ops", (rate("trainer_steps_total"), "learned"), (rate("trainer_skipped_total"), "skipped")),
            line("Trainer: share of time", "percentunit", (rate("trainer_seconds_sum"), "learning")),
            line(
                "Age of the model in use",
                "s",
                ("time() - (max by (instance) (stream_app_ranker_model_timestamp_seconds{role=\"ranker\"}) > 0)", "{{instance}}"),
            ),
        ),
    ),
    "serving": (
        "Serving",
        (
            line("Requests", "ops", (rate("serving_requests_total", "route, status"), "{{route}} {{status}}")),
            line("Time to answer, p50", "s", (quantile(0.5, "serving_seconds", "route"), "{{route}}")),
            line("Time to answer, p99", "s", (quantile(0.99, "serving_seconds", "route"), "{{route}}")),
            line("Slates held", "short", ("sum by (instance) (stream_app_serving_slates)", "{{instance}}")),
            line("Broker last answered", "s", ('stream_app_serving_broker_seconds{role="serve"}', "{{instance}}"), about="What is served may be as old."),
            line("Records skipped as unreadable", "ops", (rate("serving_rejected_total"), "skipped")),
        ),
    ),
    "faults": (
        "Faults",
        (
            line("Firing alerts", "short", (FIRING, "{{alertname}}")),
            line("Workers that do not answer, or are not ready", "short", ('1 - up{job="stream-app"}', "{{role}} {{instance}} away"), ("1 - stream_app_ready", "{{role}} {{instance}} not ready")),
            line("Starts in half an hour", "short", ('changes(process_start_time_seconds{job="stream-app"}[30m])', "{{role}} {{instance}}")),
            line("Dead letters by reason", "ops", (rate("dead_letters_total", "reason"), "{{reason}}")),
            line("Dead letters, share of the events", "percentunit", ("stream_app:dead_letters:ratio_rate10m", "share")),
            line("Transactions that failed", "ops", (rate("transactions_total", "role, result", 'result!="committed"'), "{{role}} {{result}}")),
            line("Rebalances", "ops", (rate("rebalances_total", "role"), "{{role}}")),
            line("Records read in recovery", "ops", (rate("recovery_records_total", "mode"), "{{mode}}")),
            line("Recovery of a partition, p99", "s", ("histogram_quantile(0.99, sum by (le) (stream_app_recovery_seconds_bucket))", "since the start")),
            line("Warm copies behind", "short", ("sum by (instance) (stream_app_standby_lag)", "{{instance}}")),
            line("Contents rejected", "ops", (rate("content_rejected_total", "role, reason"), "{{role}} {{reason}}")),
            line("Records skipped as unreadable", "ops", (rate("ranker_rejected_total", "role, topic"), "{{role}} {{topic}}"), (rate("trainer_rejected_total", "role, topic"), "{{role}} {{topic}}")),
            line("Contents that gave way", "ops", (rate("content_evicted_total", "role, cause"), "{{role}} {{cause}}")),
            line("Erasures", "ops", (rate("erasures_total", "result"), "{{result}}"), (rate("erased_copies_total"), "copies removed")),
            line("Erasures not swept yet", "short", ("sum(stream_app_erasures_unswept)", "users"), ("sum(stream_app_fences)", "fences")),
        ),
    ),
}  # fmt: skip


def dashboard(name: str) -> dict[str, Any]:
    """One dashboard as Grafana reads it."""
    title, panels = DASHBOARDS[name]
    return {
        "uid": f"stream-app-{name}",
        "title": title,
        "tags": ["stream-app"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [{"type": "dashboards", "tags": ["stream-app"], "title": "stream-app", "asDropdown": True}],
        "panels": [_panel(panel, number, place) for number, (panel, place) in enumerate(_placed(panels), 1)],
    }


def _placed(panels: tuple[Panel, ...]) -> list[tuple[Panel, dict[str, int]]]:
    """Panels in rows, from the left to the right."""
    placed, x, y, row = [], 0, 0, ""
    for panel in panels:
        width = WIDTH // ACROSS[panel.kind]
        if row and (panel.kind != row or x + width > WIDTH):
            x, y = 0, y + HEIGHT[row]
        placed.append((panel, {"x": x, "y": y, "w": width, "h": HEIGHT[panel.kind]}))
        x, row = x + width, panel.kind
    return placed


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}}
        if panel.kind == "timeseries"
        else {},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": DATASOURCE, "expr": expression, "legendFormat": legend}
            for i, (expression, legend) in enumerate(panel.queries)
        ],
    }


def text(name: str) -> str:
    """The file of a dashboard."""
    return json.dumps(dashboard(name), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Write every file."""
    FOLDER.mkdir(exist_ok=True)
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(text(name), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
