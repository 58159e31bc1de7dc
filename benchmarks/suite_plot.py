"""The suite's summary as a small SVG: bars of the state path, freshness by load.

    python benchmarks/suite_plot.py SUMMARY.json PLOT.svg

Bars reach to the median; a thin line across spans smallest to largest. One unit a panel, from zero.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

WIDTH, LEFT, RIGHT, TOP, ROW, GAP = 900, 290, 110, 40, 20, 46
OURS, OTHER = "#1b6ca8", "#a9a9a9"
PANELS = {
    "slates_per_s": ("Slates a second", "slates/s"),
    "p50_ms": ("Event to slate, median", "ms"),
    "p99_ms": ("Event to slate, 99th percentile", "ms"),
}


@dataclass(frozen=True)
class Bar:
    """One line of a panel."""

    name: str
    spread: Mapping[str, float]
    """``min``, ``median`` and ``max``."""
    ours: bool = True


def bars(summary: Mapping[str, Any]) -> list[tuple[str, str, list[Bar]]]:
    """Title, unit and bars of each panel for which there is a figure."""
    panels = []
    if state := summary.get("state_path"):
        for key, title, unit in (
            ("events_per_s", "State path", "events/s"),
            ("cpu_us_per_event", "State path, processor time an event", "µs"),
        ):
            panels.append(
                (title, unit, [Bar(n, of[key], n == "stream-app") for n, of in state["contenders"].items()])
            )
    for key, (title, unit) in PANELS.items():
        found = [
            Bar(
                f"{entry['contents']:,} contents, {entry['load']}, {entry['offered_events_per_s']:,.0f}/s",
                entry["spread"][key],
            )
            for entry in summary.get("freshness", ())
            if entry["spread"][key] is not None
        ]
        if found:
            panels.append((title, unit, found))
    return panels


def svg(summary: Mapping[str, Any]) -> str:
    """The whole picture."""
    panels = bars(summary)
    height = TOP + sum(GAP + ROW * len(of) for *_, of in panels)
    machine = summary["machine"]
    title = escape(f"{machine['cpu']}, {machine['cores']} cores, {summary['date'][:10]}")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="20" y="20" font-size="14">{title}</text>',
    ]
    top = TOP
    for heading, unit, of in panels:
        parts.append(f'<text x="20" y="{top + 16}" font-weight="bold">{escape(heading)}, {unit}</text>')
        parts += _panel(of, top + 24)
        top += GAP + ROW * len(of)
    return "\n".join([*parts, "</svg>\n"])


def _panel(of: Sequence[Bar], top: int) -> list[str]:
    scale = (WIDTH - LEFT - RIGHT) / max(*(bar.spread["max"] for bar in of), 1e-9)
    parts = []
    for number, bar in enumerate(of):
        y = top + ROW * number
        low, median, high = (bar.spread[name] * scale for name in ("min", "median", "max"))
        colour = OURS if bar.ours else OTHER
        parts += [
            f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(bar.name)}</text>',
            f'<rect x="{LEFT}" y="{y + 2}" width="{median:.1f}" height="{ROW - 7}" fill="{colour}"/>',
            f'<path d="M{LEFT + low:.1f} {y + ROW / 2 - 1.5}H{LEFT + high:.1f}" stroke="black"/>',
            f'<text x="{LEFT + high + 6:.1f}" y="{y + 12}">{_figure(bar.spread["median"])}</text>',
        ]
    return parts


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(summary: str, plot: str) -> None:
    Path(plot).write_text(svg(json.loads(Path(summary).read_text())), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
