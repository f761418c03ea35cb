"""Charts of runs for a page: drawn by a small script of the page itself, with zoom and hover. Needs no network.

A series of any length is thinned to a few thousand points that keep the extremes of every interval, so that a page
stays small and quick.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MOST_POINTS = 2000  # of one line: more than a screen has columns
COLORS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d", "#bab0ac")


@dataclass(frozen=True)
class Line:
    """One quantity of a chart. ``x`` and ``y`` have the same length; a value that is not finite is a gap.

    Attributes:
        faint: drawn thin and pale, and not in the legend, behind the line of the same color.
        dashed: a prediction.
        dots: marks in place of a line, for few points.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    color: str = COLORS[0]
    faint: bool = False
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart: its lines over ``x_label``, horizontal lines by their label, and the ``x`` of restarts.

    Attributes:
        from_zero: whether the vertical axis begins at zero; else where the data begin.
    """

    title: str
    lines: Sequence[Line]
    x_label: str = "step"
    levels: Sequence[tuple[str, float]] = ()
    restarts: Sequence[int] = ()
    from_zero: bool = False


def thinned(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most ``most`` points, the smallest and the largest of every interval among them, in their order."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most // 2 + 1).astype(int)
    kept: set[int] = {0, len(x) - 1}
    for start, stop in itertools.pairwise(edges):
        part = y[start:stop]
        finite = np.flatnonzero(np.isfinite(part))
        if len(finite) < len(part):
            kept.add(int(start + np.flatnonzero(~np.isfinite(part))[0]))  # a gap stays a gap
        if len(finite):
            kept.update((int(start + finite[part[finite].argmin()]), int(start + finite[part[finite].argmax()])))
    order = np.array(sorted(kept))
    return x[order], y[order]


def render(charts: Sequence[Chart]) -> str:
    """The charts as HTML, and the script that draws them. Charts without a value are left out."""
    shown = [_data(chart) for chart in charts if any(np.isfinite(line.y).any() for line in chart.lines)]
    if not shown:
        return ""
    text = json.dumps(shown, separators=(",", ":")).replace("<", "\\u003c")  # nothing in it can end the script
    script = _script()
    return f'<div id="charts"></div><script>const CHARTS={text};\n{script}</script>'


@functools.cache
def _script() -> str:
    return Path(__file__).with_suffix(".js").read_text()


def _data(chart: Chart) -> dict[str, object]:
    return {
        "title": chart.title,
        "x": chart.x_label,
        "zero": chart.from_zero,
        "levels": [[name, value] for name, value in chart.levels if math.isfinite(value)],
        "restarts": [int(step) for step in chart.restarts],
        "lines": [_line(line) for line in chart.lines if len(line.x)],
    }


def _line(line: Line) -> dict[str, object]:
    x, y = thinned(line.x, line.y)
    kind = "faint" if line.faint else "dashed" if line.dashed else "dots" if line.dots else ""
    values = [float(f"{value:.5g}") if math.isfinite(value) else None for value in y]
    return {"name": line.name, "color": line.color, "kind": kind, "x": [float(f"{v:.9g}") for v in x], "y": values}
