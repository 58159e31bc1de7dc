"""Series over time as a small SVG: stacked panels, each with its own axis, unit and legend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, PANEL, LEFT, RIGHT, TOP, GAP = 900, 130, 70, 150, 40, 45
COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7b5ea7", "#8a6d1d")
TICKS = 4
X_TICKS = 12


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    unit: str
    series: Mapping[str, Sequence[float | None]]
    """Name in the legend → values, one for each time; None leaves a hole."""


def svg(title: str, minutes: Sequence[float], panels: Sequence[Panel], warm_up_min: float) -> str:
    """The whole picture; the warm-up is shaded."""
    end = max([*minutes, 1e-9])
    height = TOP + len(panels) * (PANEL + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        parts += _panel(panel, minutes, end, TOP + number * (PANEL + GAP), warm_up_min)
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel, minutes: Sequence[float], end: float, top: float, warm_up_min: float) -> list[str]:
    wide = WIDTH - LEFT - RIGHT
    values = [v for series in panel.series.values() for v in series if v is not None]
    step = nice(max([*values, 1e-9]) / TICKS)
    highest = step * max(1, math.ceil(max([*values, 0.0]) / step))

    def x(minute: float) -> float:
        return LEFT + wide * minute / end

    def y(value: float) -> float:
        return top + PANEL * (1 - value / highest)

    heading = escape(f"{panel.title}, {panel.unit}")
    warm = x(min(warm_up_min, end)) - LEFT
    parts = [
        f'<text x="{LEFT}" y="{top - 6}" font-weight="bold">{heading}</text>',
        f'<rect x="{LEFT}" y="{top}" width="{warm:.1f}" height="{PANEL}" fill="#f0f0f0"/>',
    ]
    for tick in range(round(highest / step) + 1):
        at = y(tick * step)
        parts.append(f'<path d="M{LEFT} {at:.1f}h{wide}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick * step:g}</text>')
    every = nice(end / X_TICKS)
    marks = [every * tick for tick in range(int(end / every + 1e-9) + 1)]
    below = top + PANEL + 14
    parts += [f'<text x="{x(m):.1f}" y="{below}" text-anchor="middle">{m:g}</text>' for m in marks]
    parts.append(f'<text x="{LEFT + wide + 10}" y="{below}">minutes</text>')
    parts.append(f'<rect x="{LEFT}" y="{top}" width="{wide}" height="{PANEL}" fill="none" stroke="#888"/>')
    for place, (name, series) in enumerate(panel.series.items()):
        colour = COLOURS[place % len(COLOURS)]
        line, pen = [], "M"
        for minute, value in zip(minutes, series, strict=True):
            if value is None:
                pen = "M"
                continue
            line.append(f"{pen}{x(minute):.1f} {y(value):.1f}")
            pen = "L"
        parts.append(f'<path d="{"".join(line)}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
        at = top + 12 + 16 * place
        parts.append(f'<path d="M{LEFT + wide + 10} {at - 4}h18" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(f'<text x="{LEFT + wide + 34}" y="{at}">{escape(name)}</text>')
    return parts


def nice(step: float) -> float:
    """The next 1, 2 or 5 times a power of ten from ``step`` on."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= step * (1 - 1e-9))
