"""``slipway report``: what a run did, or a table of all runs in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import OUT_PATH, Answer, Section, argument, command
from slipway.launch.cli.printing import Table, Terminal

if TYPE_CHECKING:
    from slipway.launch.runs.read import Run
    from slipway.launch.runs.summary import Summary


@dataclass(frozen=True)
class Reported(Answer):
    """The summaries of the runs that were read, and the files that were written."""

    summaries: list[Summary]
    written: list[Path]

    def as_json(self) -> Any:
        from slipway.launch.runs.pages import as_json

        values = [as_json(summary) for summary in self.summaries]
        return values if len(values) > 1 else values[0]

    def show(self, terminal: Terminal) -> None:
        terminal.table(self._one() if len(self.summaries) == 1 else self._several())
        for path in self.written:
            terminal.line(f"wrote {path}")

    def _one(self) -> Table:
        from slipway.launch.runs.summary import table

        return Table(("quantity", "value"), rows=[*table(self.summaries[0])])

    def _several(self) -> Table:
        from slipway.launch.runs.summary import overview

        head, *rows = overview(self.summaries)
        numbers = frozenset(i for i in range(1, len(head)) if any(row[i][:1].isdigit() for row in rows))
        return Table(head, numbers, [*rows])


@command(Section.RESULTS)
@argument("run", "A run's folder, or a folder of runs.", type=Path)
@click.option("--out", type=OUT_PATH, metavar="FOLDER", help="Where to write; the run's own folder if not given.")
@click.option("--entropy", type=float, help="Unigram entropy of the corpus in nats per token, drawn as a line.")
def report(run: Path, out: Path | None, entropy: float | None) -> Answer:
    """Report the loss, speed and memory of a run.

    Compares what was measured with what was predicted. Writes a picture, an HTML page and JSON; for a folder of runs,
    also a table of them all.
    """
    from slipway.launch.runs.report import write_overview, write_report
    from slipway.launch.runs.summary import summarize

    runs = _read(run)
    summaries = [summarize(one) for one in runs]
    written: list[Path] = []
    pages = []
    for one, summary in zip(runs, summaries, strict=True):
        folder = out / one.path.relative_to(run) if out else one.path
        written += write_report(one, summary, folder, entropy)
        pages.append(folder / "report.html")
    if len(runs) > 1:
        written = write_overview(runs, summaries, pages, out or run)
    return Reported(summaries, written)


def _read(folder: Path) -> list[Run]:
    """The runs at or below ``folder``.

    Raises:
        Refusal: there is no run, or none that can be read.
    """
    from slipway.configs import Refusal
    from slipway.launch.cli.several import read_each
    from slipway.launch.runs.read import find_runs, read_run

    paths = find_runs(folder)
    if not paths:
        raise Refusal(
            f"{folder} holds no run", "Give the folder that holds slipway/recipe.json, or a folder of such folders."
        )
    return read_each(paths, read_run, folder)
