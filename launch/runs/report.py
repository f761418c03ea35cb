"""``slipway report``: the pages of one run, or of several."""

from __future__ import annotations

import os
from pathlib import Path

from slipway.launch.runs import pages
from slipway.launch.runs.pictures import draw_loss, draw_times, svg
from slipway.launch.runs.read import Run
from slipway.launch.runs.summary import Summary, overview, table


def write_report(run: Run, summary: Summary, out: Path, entropy: float | None = None) -> list[Path]:
    """Write loss.png, report.html and report.json of one run into ``out``. Returns their paths.

    Args:
        entropy: unigram entropy of the corpus in nats per token, drawn as a line.
    """
    ranks = f"{summary.ranks} rank{'s' if summary.ranks > 1 else ''} ({summary.gpu})"
    on = ", ".join(filter(None, (ranks, summary.layout)))
    page = pages.Page(
        name="report",
        title=f"Run {run.name}",
        lead=f"{summary.recipe or run.name}: {summary.steps} steps on {on}; {summary.state}.",
        picture_name="loss.png",
        picture=draw_loss([run], entropy),
        data=pages.as_json(summary),
        after=pages.section("Numbers", pages.table(table(summary)))
        + pages.section("Step time", svg(draw_times([run]))),
    )
    return pages.write(page, out)


def write_overview(runs: list[Run], summaries: list[Summary], reports: list[Path], out: Path) -> list[Path]:
    """Write runs.png, runs.html and runs.json of several runs into ``out``. Returns their paths.

    Args:
        reports: the page of each run, which its row links to.
    """
    head, *rows = overview(summaries)
    failed = sum(summary.state == "failed" for summary in summaries)
    page = pages.Page(
        name="runs",
        title="Runs",
        lead=f"{len(runs)} runs" + (f", {failed} of them failed." if failed else "."),
        picture_name="runs.png",
        picture=draw_loss(runs),
        data=[pages.as_json(summary) for summary in summaries],
        before=pages.table(rows, head, [os.path.relpath(report, out) for report in reports]),
    )
    return pages.write(page, out)
