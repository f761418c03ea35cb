"""``slipway compare``: run B against run A, or several seeds of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import OUT_PATH, Answer, Section, argument, command
from slipway.launch.cli.printing import Terminal

if TYPE_CHECKING:
    from slipway.launch.runs.compare import Comparison


@dataclass(frozen=True)
class Compared(Answer):
    """The comparison and the files that it was written to."""

    comparison: Comparison
    written: list[Path]

    def as_json(self) -> dict[str, Any]:
        from slipway.launch.runs.pages import as_json

        return as_json(self.comparison)

    def show(self, terminal: Terminal) -> None:
        terminal.line(self.comparison.sentence)
        for path in self.written:
            terminal.line(f"wrote {path}")


@command(Section.RESULTS)
@argument("a", "The run to compare with. A folder of runs, or a pattern, for several seeds.")
@argument("b", "The run to judge, or as many seeds of it.")
@click.option(
    "--out",
    type=OUT_PATH,
    default=Path("compare"),
    show_default=True,
    metavar="FOLDER",
    help="Where to write compare.png, compare.html and compare.json.",
)
def compare(a: str, b: str, out: Path) -> Answer:
    """Compare the speed and the loss of two runs."""
    from slipway.launch.runs.compare import read_side, write_comparison

    return Compared(*write_comparison(read_side(a), read_side(b), out))
