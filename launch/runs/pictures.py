"""The pictures of runs, in one style: loss, and one run's loss against another's."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from slipway.launch.runs.read import Run
from slipway.launch.runs.series import LOSS

if TYPE_CHECKING:
    from slipway.launch.runs.compare import Aligned, Comparison

PAGE_INCHES = 7.0  # width of every picture
SMOOTHED_STEPS = 15  # on either side of a step
LINE, RAW_LINE, THIN_LINE = 1.8, 0.7, 1.0  # points


def figure(height: float = 4.0, **subplots: Any) -> Any:
    """Matplotlib's figure and axes, as wide as a page; ``subplots`` are options of ``plt.subplots``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"})
    return plt.subplots(figsize=(PAGE_INCHES, height), layout="constrained", **subplots)


def smooth(values: np.ndarray, reach: int = SMOOTHED_STEPS) -> np.ndarray:
    """The mean of each value with up to ``reach`` values on either side, of the same length.

    The window is symmetric, so that the line does not lag. Of the last ``reach`` values, which have fewer behind them
    than before them, the line is that of least squares through the window, so that it ends where the values end. Values
    that are not finite are left out; where there is nothing else there is a gap.
    """
    at = np.arange(len(values))
    before = np.minimum(reach, at)
    after = np.minimum(before, at[::-1])
    finite = np.isfinite(values)

    def windows(summands: np.ndarray) -> np.ndarray:
        sums = np.concatenate(([0.0], np.cumsum(summands)))
        return sums[at + after + 1] - sums[at - before]

    with np.errstate(invalid="ignore"):
        line: np.ndarray = windows(np.where(finite, values, 0.0)) / windows(finite)
    for i in range(max(1, len(values) - reach), len(values)):
        first = i - before[i]
        here = np.flatnonzero(finite[first:])
        if len(here) > 1 and finite[i]:
            slope, offset = np.polyfit(here, values[first + here], 1)
            line[i] = offset + slope * before[i]
    return line


def as_label(name: str) -> str:
    """A name as Matplotlib prints it: ``$`` would start a formula, and a leading ``_`` would hide it in legends."""
    escaped = name.replace("$", r"\$")
    return " " + escaped if escaped.startswith("_") else escaped


def curve(
    axes: Any, x: np.ndarray, values: np.ndarray, label: str, color: str, *, width: float = LINE, raw: bool = True
) -> None:
    """Draw a noisy quantity as its smoothed line and, if ``raw``, its own values behind it."""
    if raw:
        axes.plot(x, values, color=color, linewidth=RAW_LINE, alpha=0.35)
    axes.plot(x, smooth(values), color=color, linewidth=width, label=as_label(label) if label else None)


def svg(drawn: Any) -> str:
    """A figure as the text of an <svg> element; the figure is closed."""
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    plt.close(drawn)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def draw_loss(runs: Sequence[Run], entropy: float | None = None) -> Any:
    """The losses of runs; ``entropy``, the corpus's unigram entropy in nats per token, is a dashed line."""
    figure_, axes = figure()
    for i, run in enumerate(run for run in runs if len(run.get(LOSS))):
        loss = run.get(LOSS)
        curve(axes, loss.steps, loss.values, run.name, f"C{i}")
    if len(runs) == 1:
        for step in runs[0].events.started_at[1:]:
            axes.axvline(step, color="0.6", linestyle=":", linewidth=THIN_LINE)
    if entropy:
        axes.axhline(entropy, color="0.5", linestyle="--", linewidth=THIN_LINE)
        axes.annotate(
            "unigram entropy of the corpus",
            (1, entropy),
            xycoords=("axes fraction", "data"),
            xytext=(0, 4),
            textcoords="offset points",
            color="0.4",
            ha="right",
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(frameon=False)
    return figure_


def draw_comparison(pairs: list[Aligned], result: Comparison) -> Any:
    """The losses of A and B above; below, how much B's differs from A's, and the noise of the reported mean."""
    figure_, (top, bottom) = figure(height=5.6, nrows=2, sharex=True, height_ratios=[2, 1])
    thinner = math.sqrt(len(pairs))
    for i, pair in enumerate(pairs):
        for name, values, color in ((result.a, pair.a, "C0"), (result.b, pair.b, "C1")):
            curve(top, pair.x, values, "" if i else name, color, width=LINE / thinner, raw=len(pairs) == 1)
        bottom.plot(pair.x, smooth(100 * (pair.b / pair.a - 1)), color="C1", linewidth=1.2 / thinner)
    top.set_ylabel("loss (nats per token)")
    top.legend(frameon=False)
    longest = max((pair.x for pair in pairs), key=len)
    later = longest[len(longest) // 2 :]
    mean, noise = 100 * result.loss_difference, 100 * result.loss_noise
    bottom.axhline(0, color="0.5", linewidth=THIN_LINE)
    bottom.fill_between(later, mean - noise, mean + noise, color="0.5", alpha=0.25, linewidth=0)
    bottom.set_ylabel("difference (%)")
    bottom.set_xlabel("step" if result.aligned_by == "step" else "tokens (millions)")
    return figure_
