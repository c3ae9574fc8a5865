"""The report page's charts: matplotlib's SVG, inline, with the page's CSS variables as colors (light and dark).

matplotlib is imported when the first chart is made, and without pyplot, so no display and no global state is needed.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Point = tuple[float, float]
COLORS = 7
"""The page's CSS has --s0 to --s6."""
_INK, _RULE = "#010000", "#020000"
_VARIABLES = {_INK: "var(--quiet)", _RULE: "var(--rule)"} | {f"#0300{n:02x}": f"var(--s{n})" for n in range(COLORS)}
"""What matplotlib draws with -> what the page puts in its place."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "blip3o-rl",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Line:
    """One line: (step, value) by step.

    `faint` draws it thin and pale, for the raw numbers behind an average; `band` is (low, high) around each point.
    """

    name: str
    points: Sequence[Point]
    faint: bool = False
    band: Sequence[tuple[float, float]] = ()


def lines(series: Sequence[Line]) -> str:
    """A line chart; empty text if there is no point."""

    def draw(axes: Any) -> None:
        for number, line in enumerate(series):
            if not line.points:
                continue
            steps, values = zip(*line.points, strict=True)
            alone = len(steps) == 1 and not line.faint
            width, alpha = (1.0, 0.5) if line.faint else (6.0 if alone else 1.8, 1.0)
            if alone:  # a line from a point to itself is a dot
                steps, values = steps * 2, values * 2
            axes.plot(steps, values, color=_color(number), linewidth=width, alpha=alpha)
            if line.band:
                low, high = zip(*line.band, strict=True)
                ends = [step for step, _ in line.points]
                axes.fill(
                    [*ends, *reversed(ends)],
                    [*low, *reversed(high)],
                    facecolor=_color(number),
                    edgecolor=_color(number),
                    linewidth=1,
                    alpha=0.18,
                )

    return _svg(draw) if any(line.points for line in series) else ""


def stacked(series: Sequence[Line]) -> str:
    """A stacked area chart of non-negative series over the same steps; empty text if there is no point."""
    steps = sorted({step for line in series for step, _ in line.points})
    if not steps:
        return ""
    rows = [dict(line.points) for line in series]
    tops = np.cumsum([[max(0.0, row.get(step, 0.0)) for step in steps] for row in rows], axis=0)
    if len(steps) == 1:  # an area needs two steps
        steps, tops = [steps[0] - 0.4, steps[0] + 0.4], np.repeat(tops, 2, axis=1)

    def draw(axes: Any) -> None:
        for number, (low, high) in enumerate(itertools.pairwise([np.zeros(len(steps)), *tops])):
            axes.fill([*steps, *reversed(steps)], [*low, *high[::-1]], color=_color(number), linewidth=0)

    return _svg(draw)


def color(number: int) -> str:
    """The CSS color of the line of that number."""
    return f"var(--s{number % COLORS})"


def _color(number: int) -> str:
    return f"#0300{number % COLORS:02x}"


def _svg(draw: Any) -> str:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(_STYLE):
        figure = Figure((4.6, 1.9))
        axes = figure.add_axes((0.13, 0.14, 0.85, 0.82))
        draw(axes)
        for line in axes.lines:
            line.set(solid_capstyle="round", clip_on=False)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.02)
        text = io.StringIO()
        figure.savefig(
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", text.getvalue(), flags=re.DOTALL)
    svg = re.sub(r' id="(?!p[0-9a-f]{10}")[^"]*"|font-family: [^;"]*;?|\s+(?=<)', "", svg[svg.index("<svg") :])
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r'\1 role="img"', svg)
    return re.sub("|".join(_VARIABLES), lambda match: _VARIABLES[match[0]], svg)
