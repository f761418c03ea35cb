"""``slipway validate``: published runs predicted, and the error of the predictions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from slipway.launch.cli.answer import OUT_PATH, Answer, Section, argument, command
from slipway.launch.cli.printing import Table, Terminal

MOST_REASONS_SHOWN = 8  # why rows were skipped, the most frequent first


@dataclass(frozen=True)
class Validated(Answer):
    """The summary that the planner computes of its predictions."""

    summary: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return self.summary

    def show(self, terminal: Terminal) -> None:
        summary = self.summary
        terminal.line(
            f"{summary['rows']} rows, {summary['modelled']} modelled, {summary['compared']} with a published speed"
        )
        terminal.table(self._errors())
        memory = summary["memory"]
        if memory["rows"]:
            terminal.line(
                f"peak memory: {memory['rows']} rows, MAPE {memory['mape']:.1%}, median {memory['median_ape']:.1%}"
            )
        for reason, count in list(summary["skipped"].items())[:MOST_REASONS_SHOWN]:
            terminal.line(f"skipped {count}: {reason}")

    def _errors(self) -> Table:
        summary = self.summary
        overall = {key: summary[key] for key in ("mape", "median_ape", "within_10pct")}
        overall |= {"rows": summary["compared"], "skipped": summary["rows"] - summary["modelled"]}
        head = ("source", "rows", "MAPE", "median", "within 10 %", "skipped")
        table = Table(head, right=frozenset({1, 2, 3, 4, 5}))
        for source, group in [*summary["groups"].items(), ("all", overall)]:
            errors = (group[key] for key in ("mape", "median_ape", "within_10pct"))
            shown = ["" if error is None else f"{error:.1%}" for error in errors]
            table.add(source, str(group["rows"]), *shown, str(group["skipped"]))
        return table


@command(Section.PLANNING)
@argument("file", "A CSV file with the columns of the published throughput or memory tables.", type=Path)
@click.option("--out", type=OUT_PATH, metavar="FILE", help="Write the rows with their predictions to this CSV file.")
def validate(file: Path, out: Path | None) -> Answer:
    """Predict published runs and report the error."""
    from slipway.configs import Refusal
    from slipway.planner.published.validate import summarize, write
    from slipway.planner.published.validate import validate as predict_file

    predicted = predict_file(file)
    if out:
        try:
            write(out, predicted)
        except OSError as error:
            raise Refusal(f"{out} cannot be written: {error.strerror}") from None
    return Validated(summarize(predicted))
