"""``slipway report``: the pages of one run, or of several."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slipway.launch.runs import pages
from slipway.launch.runs.charts import COLORS, Chart, Line, render
from slipway.launch.runs.pictures import draw_loss, smooth
from slipway.launch.runs.read import Run
from slipway.launch.runs.series import GRAD_NORM, LOSS, LR, STEP_TIME, VALIDATION
from slipway.launch.runs.summary import Summary, overview, table
from slipway.recipes.runtime.run_files import PEAK_MEMORY

MOST_DRAWN = 40  # runs of a folder whose losses are drawn: more cannot be told apart


def write_report(run: Run, summary: Summary, out: Path, entropy: float | None = None) -> list[Path]:
    """Write loss.png, report.html and report.json of one run into ``out``. Returns their paths.

    Args:
        entropy: unigram entropy of the corpus in nats per token, drawn as a line; that of the report which is there
            already, if not given.
    """
    entropy = entropy or _entropy_of(out / "report.json")
    ranks = f"{summary.ranks} rank{'s' if summary.ranks > 1 else ''} ({summary.gpu})"
    on = ", ".join(filter(None, (ranks, summary.layout)))
    page = pages.Page(
        name="report",
        title=f"Run {run.name}",
        lead=f"{summary.recipe or run.name}: {summary.steps} steps on {on}; {summary.state}.",
        picture_name="loss.png",
        picture=draw_loss([run], entropy),
        charts=render(_charts(run, summary, entropy)),
        data=pages.as_json(summary) | {"entropy": entropy},
        after=pages.section("Numbers", pages.table(table(summary))),
    )
    return pages.write(page, out)


def _entropy_of(report: Path) -> float | None:
    """The entropy that an earlier report was drawn with."""
    try:
        value = json.loads(report.read_text())["entropy"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _charts(run: Run, summary: Summary, entropy: float | None) -> list[Chart]:
    """Every quantity that a run logged over its steps, its restarts, and what was predicted."""
    starts, loss, validation = run.events.started_at[1:], run.get(LOSS), run.get(VALIDATION)
    levels = [("unigram entropy of the corpus", entropy)] if entropy else []
    losses = [Line("loss", loss.steps, loss.values, faint=True), Line("loss", loss.steps, smooth(loss.values))]
    if len(validation):
        losses.append(Line("validation loss", validation.steps, validation.values, COLORS[1], dots=True))
    charts = [Chart("Loss (nats per token)", losses, levels=levels, restarts=starts)]
    for title, tag, predicted, zero in (
        ("Learning rate", LR, None, True),
        ("Gradient norm", GRAD_NORM, None, True),
        ("Step time (s)", STEP_TIME, summary.predicted_step_time_s, True),
        ("Peak memory (GiB)", PEAK_MEMORY, summary.predicted_peak_gib, False),
    ):
        series = run.get(tag)
        lines = [Line("measured" if predicted else title, series.steps, series.values)]
        if predicted and len(series):
            ends = series.steps[[0, -1]]
            lines.append(Line("predicted", ends, np.full(2, predicted), COLORS[1], dashed=True))
        charts.append(Chart(title, lines, restarts=starts, from_zero=zero))
    return charts


def write_overview(runs: list[Run], summaries: list[Summary], reports: list[Path], out: Path) -> list[Path]:
    """Write runs.png, runs.html and runs.json of several runs into ``out``. Returns their paths.

    Args:
        reports: the page of each run, which its row links to.
    """
    head, *rows = overview(summaries)
    failed = sum(summary.state == "failed" for summary in summaries)
    said = f"{len(runs)} runs" + (f", {failed} of them failed" if failed else "")
    drawn = runs[:MOST_DRAWN]
    page = pages.Page(
        name="runs",
        title="Runs",
        lead=said + ("." if len(drawn) == len(runs) else f"; the losses of the first {MOST_DRAWN} are drawn."),
        picture_name="runs.png",
        picture=draw_loss(drawn),
        charts=render([losses_of(drawn)]),
        data=[pages.as_json(summary) for summary in summaries],
        before=pages.table(rows, head, [os.path.relpath(report, out) for report in reports]),
    )
    return pages.write(page, out)


def losses_of(runs: Sequence[Run]) -> Chart:
    """The smoothed losses of several runs."""
    lines = [
        Line(run.name, run.get(LOSS).steps, smooth(run.get(LOSS).values), COLORS[i % len(COLORS)])
        for i, run in enumerate(runs)
    ]
    return Chart("Loss (nats per token, smoothed)", lines)
