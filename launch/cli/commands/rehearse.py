"""``slipway rehearse``: the recipe at toy size on CPU ranks, with its true parallel structure, against one process."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import Answer, Section, command, recipe_arguments
from slipway.launch.cli.nemo import quiet, require_nemo
from slipway.launch.cli.printing import Style, Table, Terminal, note

if TYPE_CHECKING:
    from slipway.launch.rehearsal.rehearse import Rehearsal


@dataclass(frozen=True)
class Rehearsed(Answer):
    """The losses of the split toy and of the same toy in one process."""

    name: str
    result: Rehearsal

    def as_json(self) -> dict[str, Any]:
        from slipway import planner

        result = self.result
        return {
            "name": self.name,
            "ranks": result.toy.gpus,
            "layout": planner.layout_json(result.toy),
            "losses": result.losses,
            "reference_losses": result.reference_losses,
            "max_abs_diff": result.max_abs_diff,
            "max_rel_diff": result.max_rel_diff,
            "agrees": result.agrees,
            "first_draw_rel_diff": result.tie or result.max_rel_diff,
            "seconds": result.seconds,
        }

    def show(self, terminal: Terminal) -> None:
        from slipway.launch.rehearsal.rehearse import RELATIVE_TOLERANCE
        from slipway.planner.layout import describe

        result = self.result
        toy = f"{result.toy.gpus} CPU ranks: {describe(result.toy)}"
        terminal.line(f"{self.name} as a toy on {toy}; {result.seconds:.0f} s", Style.BOLD)
        table = Table(("step", "loss, split", "loss, one process", "difference"), right=frozenset({0, 1, 2, 3}))
        for step, (split, whole) in enumerate(zip(result.losses, result.reference_losses, strict=True), 1):
            table.add(str(step), f"{split:.7f}", f"{whole:.7f}", f"{split - whole:+.1e}")
        terminal.table(table)
        terminal.field(
            "the same training:" if result.agrees else "NOT the same training:",
            f"largest relative difference {result.max_rel_diff:.1e} (allowed {RELATIVE_TOLERANCE:.0e})",
            Style.GOOD if result.agrees else Style.BAD,
        )
        if result.tie:
            terminal.line(
                f"(with a second draw of the weights; with the first the difference was {result.tie:.1e}, because the "
                "router weighs two experts equally for some token, and rounding decides between them)"
            )

    def conclude(self) -> None:
        if not self.result.agrees:
            raise click.exceptions.Exit(1)


@command(Section.PLANNING)
@recipe_arguments
@click.option(
    "--max-ranks",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="The most CPU ranks to use, if the layout can be shrunk that far.",
)
def rehearse(name: str, overrides: tuple[str, ...], max_ranks: int) -> Answer:
    """Train a recipe at toy size on CPU ranks and compare the loss.

    The toy keeps the recipe's parallel structure and runs NeMo's own training loop. Its loss must equal that of the
    same toy in one process; the command exits with 1 if it does not.
    """
    from slipway import configs, planner
    from slipway.launch.rehearsal.ranks import RankFailure
    from slipway.planner.layout import describe

    spec = planner.complete(configs.load(name, list(overrides)))
    planner.require_legal(spec)
    require_nemo("rehearse")
    from slipway.launch.rehearsal.rehearse import rehearse as run_toy

    note(f"importing NeMo, then running {describe(spec)} at toy size on CPU ranks ...")
    try:
        with quiet():
            result = run_toy(spec, max_ranks=max_ranks)
    except RankFailure as failure:
        print(failure.log, file=sys.stderr)
        raise
    return Rehearsed(name, result)
