"""Line and stacked-area charts as inline SVG, for the report page: no script, no library, readable on paper.

Colours come from CSS classes (`s0`, `s1`, ... and `axis`, `gridline`, `label`), so the page decides on light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 24
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line: (step, value) by step. `faint` draws it thin and pale, for the raw numbers behind an average."""

    name: str
    points: Sequence[Point]
    faint: bool = False


def lines(series: Sequence[Line], from_zero: bool = False) -> str:
    """A line chart; empty text if there is no point."""
    points = [point for line in series for point in line.points]
    if not points:
        return ""
    frame = _Frame(points, from_zero)
    body = []
    for number, line in enumerate(series):
        if line.points:
            style = "faint" if line.faint else "line"
            path = " ".join(f"{frame.x(step):.1f},{frame.y(value):.1f}" for step, value in line.points)
            body.append(
                f'<polyline class="{style} s{number}" points="{path}"><title>{escape(line.name)}</title></polyline>'
            )
            if len(line.points) == 1:
                step, value = line.points[0]
                body.append(f'<circle class="dot s{number}" cx="{frame.x(step):.1f}" cy="{frame.y(value):.1f}" r="3"/>')
    return frame.svg("".join(body))


def stacked(series: Sequence[Line]) -> str:
    """A stacked area chart of non-negative series over the same steps; empty text if there is no point."""
    steps = sorted({step for line in series for step, _ in line.points})
    if not steps:
        return ""
    below = dict.fromkeys(steps, 0.0)
    layers = []
    for line in series:
        here = dict(line.points)
        above = {step: below[step] + max(0.0, here.get(step, 0.0)) for step in steps}
        layers.append((line.name, below, above))
        below = above
    frame = _Frame([(step, value) for step, value in below.items()], from_zero=True)
    body = []
    for number, (name, low, high) in enumerate(layers):
        outline = [(step, high[step]) for step in steps] + [(step, low[step]) for step in reversed(steps)]
        path = " ".join(f"{frame.x(step):.1f},{frame.y(value):.1f}" for step, value in outline)
        body.append(f'<polygon class="area s{number}" points="{path}"><title>{escape(name)}</title></polygon>')
    return frame.svg("".join(body))


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high], at most `most` + 1."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / most
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


class _Frame:
    """Axes around a set of points."""

    def __init__(self, points: Sequence[Point], from_zero: bool):
        steps, values = [p[0] for p in points], [p[1] for p in points]
        self.first, self.last = min(steps), max(steps)
        low, high = min(values), max(values)
        if from_zero:
            low, high = min(0.0, low), max(0.0, high)
        room = (high - low) * 0.06 or abs(high) * 0.1 or 0.5
        self.low = low if from_zero and low == 0 else low - room
        self.high = high + room

    def x(self, step: float) -> float:
        share = (step - self.first) / (self.last - self.first) if self.last > self.first else 0.5
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (value - self.low) / (self.high - self.low) * (HEIGHT - _TOP - _BOTTOM)

    def svg(self, body: str) -> str:
        parts = []
        for value in ticks(self.low, self.high):
            y = self.y(value)
            parts.append(f'<line class="gridline" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="label" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        for step in ticks(self.first, self.last, 6):
            if step == int(step):
                x = self.x(step)
                parts.append(f'<text class="label" x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{step:g}</text>')
        floor = HEIGHT - _BOTTOM
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{floor}" y2="{floor}"/>')
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}{body}</svg>'
