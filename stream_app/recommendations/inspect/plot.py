"""The remaining weight of a user's interactions over time, as SVG (pure arithmetic)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 26
STEPS = 32
COLOURS = ("#0b5fa5", "#b34700", "#3d7317", "#8a2c6d", "#5b4a9e", "#7a5c00")
"""By action; each has a contrast of more than 4.5 with white."""


@dataclass(frozen=True)
class Curve:
    """One interaction."""

    action: str
    at_ms: int
    weight: float
    """When it happened; it halves every half-life"""


def weights_over_time(curves: Sequence[Curve], now_ms: int, half_life_ms: float) -> str:
    """``<svg>`` with w · 2^(−(t − tᵢ)/h) of each interaction from its time tᵢ to now; empty without any.

    Colours tell actions apart, and so does each curve's ``<title>``: what the picture shows stands in the
    table below it as well.
    """
    if not curves:
        return ""
    begin = min(curve.at_ms for curve in curves)
    span = max(now_ms - begin, 1)
    low, high = min(0.0, *(c.weight for c in curves)), max(0.0, *(c.weight for c in curves))
    height = (high - low) or 1.0
    order = list(dict.fromkeys(curve.action for curve in curves))

    def place(t: float, weight: float) -> str:
        x = LEFT + (t - begin) / span * (WIDTH - LEFT - RIGHT)
        y = TOP + (high - weight) / height * (HEIGHT - TOP - BOTTOM)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Remaining weight of '
        f'{len(curves)} interactions over {escape(duration(span / 1000))}">'
    ]
    for weight in sorted({low, 0.0, high}):
        x, y = place(begin, weight).split(",")
        parts.append(f'<line x1="{x}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#767676"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y}" text-anchor="end" dy="4">{weight:g}</text>')
    for curve in curves:
        colour = COLOURS[order.index(curve.action) % len(COLOURS)]
        left = now_ms - curve.at_ms
        points = " ".join(
            place(t, curve.weight * 2 ** (-(t - curve.at_ms) / half_life_ms))
            for t in (curve.at_ms + left * step / STEPS for step in range(STEPS + 1))
        )
        x, y = place(curve.at_ms, curve.weight).split(",")
        parts.append(
            f"<g><title>{escape(curve.action)}, {curve.weight:g}, {escape(duration(left / 1000))} ago</title>"
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
            f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/></g>'
        )
    base = HEIGHT - 8
    parts.append(f'<text x="{LEFT}" y="{base}">{escape(duration(span / 1000))} ago</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{base}" text-anchor="end">newest event</text></svg>')
    for number, action in enumerate(order):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(
            f'<span class="key"><svg viewBox="0 0 10 10" aria-hidden="true"><circle cx="5" cy="5" r="4" '
            f'fill="{colour}"/></svg> {escape(action)}</span> '
        )
    return "".join(parts)


def duration(seconds: float) -> str:
    """
    >>> [duration(s) for s in (0.25, 90, 7200, 200_000)]
    ['0.2 s', '1.5 min', '2.0 h', '2.3 d']
    """
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "min"), (86_400, 3600, "h")):
        if abs(seconds) < limit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86_400:.1f} d"
