"""A comparison as a small SVG: NDCG@10 of each method with its interval, and its course along the log."""

from __future__ import annotations

import math
from html import escape

from stream_app.evaluation.compare import POINTS, Comparison, Row

WIDTH, LEFT, RIGHT, TOP, LINE, COURSE = 900, 170, 40, 50, 22, 260
COLOURS = (
    "#1b6ca8",
    "#c8553d",
    "#3a7d44",
    "#7b5ea7",
    "#8a6d1d",
    "#4d908e",
    "#b5476f",
    "#6c757d",
    "#2f3e46",
    "#e09f3e",
)
WIDE = WIDTH - LEFT - RIGHT
TICKS = 5


def svg(comparison: Comparison, title: str) -> str:
    """The whole picture."""
    rows = comparison.rows
    below = TOP + LINE * len(rows)
    course = below + 60
    means = [row.slices["any"].intervals["ndcg@10"][1] for row in rows]
    points = [value for row in rows for value in row.curve if value is not None]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {course + COURSE + 40}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{course + COURSE + 40}" fill="white"/>',
        f'<text x="20" y="20" font-size="14">{escape(title)}</text>',
        f'<text x="20" y="{TOP - 12}" font-weight="bold">NDCG@10, any touch, 95 % interval over users</text>',
        *_bars(rows, _top(means), below),
        f'<text x="20" y="{course - 12}" font-weight="bold">NDCG@10 along the log</text>',
        *_course(rows, _top(points), course),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _bars(rows: list[Row], top: float, below: float) -> list[str]:
    parts = []
    for tick in range(TICKS + 1):
        x, value = LEFT + WIDE * tick / TICKS, top * tick / TICKS
        parts.append(f'<path d="M{x:.1f} {TOP}V{below}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{below + 14}" text-anchor="middle">{value:.2g}</text>')
    for place, row in enumerate(rows):
        figures, y = row.slices["any"], TOP + LINE * (place + 0.5)
        low, high = (LEFT + WIDE * bound / top for bound in figures.intervals["ndcg@10"])
        mean, colour = LEFT + WIDE * figures.means["ndcg@10"] / top, _colour(place)
        weight = ' font-weight="bold"' if row.product else ""
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end"{weight}>{escape(row.name)}</text>')
        parts.append(f'<path d="M{low:.1f} {y}H{high:.1f}" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<circle cx="{mean:.1f}" cy="{y}" r="4" fill="{colour}"/>')
    return parts


def _course(rows: list[Row], top: float, begin: float) -> list[str]:
    parts = []
    for tick in range(TICKS + 1):
        y, value = begin + COURSE * (1 - tick / TICKS), top * tick / TICKS
        parts.append(f'<path d="M{LEFT} {y:.1f}h{WIDE}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2g}</text>')
        share, x = 100 * tick // TICKS, LEFT + WIDE * tick / TICKS
        parts.append(f'<text x="{x:.1f}" y="{begin + COURSE + 16}" text-anchor="middle">{share} %</text>')
    for place, row in enumerate(rows):
        line, pen = [], "M"
        for at, mean in enumerate(row.curve):
            if mean is None:
                pen = "M"
                continue
            x, y = LEFT + WIDE * (at + 0.5) / POINTS, begin + COURSE * (1 - mean / top)
            line.append(f"{pen}{x:.1f} {y:.1f}")
            pen = "L"
        width = 2.5 if row.product else 1.2
        parts.append(
            f'<path d="{"".join(line)}" fill="none" stroke="{_colour(place)}" stroke-width="{width}"/>'
        )
    return parts


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _top(values: list[float]) -> float:
    """The next tenth from the largest value on."""
    return max(math.ceil(max(values, default=0.0) * 10), 1) / 10
