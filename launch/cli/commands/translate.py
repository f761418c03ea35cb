"""``slipway translate``: the same run for another stack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import Answer, Section, command, overrides_argument, readable_argument, settings_option
from slipway.launch.cli.printing import Table, Terminal, note

if TYPE_CHECKING:
    from slipway.launch.cli.readable import Readable
    from slipway.launch.translate.written import Written

TARGETS = ("slipway", "megatron-lm", "megatron-bridge", "nemo")


@dataclass(frozen=True)
class Translated(Answer):
    """A run in the words of another stack."""

    written: Written
    out: Path | None

    def as_json(self) -> dict[str, Any]:
        lost = [each._asdict() for each in self.written.lost]
        return {"text": self.written.text, "lost": lost, "out": str(self.out) if self.out else None}

    def show(self, terminal: Terminal) -> None:
        if self.out:
            terminal.field("written", str(self.out))
        else:
            print(self.written.text, end="")
        if not self.written.lost:
            note("everything has a counterpart")
            return
        table = Table(("no counterpart", "value", "why"))
        for each in self.written.lost:
            table.add(*each)
        if self.out:
            terminal.table(table)
        else:
            for line in table.lines(terminal.width):
                note(line)

    def conclude(self) -> None:
        """Nothing: what has no counterpart is part of the answer."""


@command(Section.RECIPES)
@readable_argument
@overrides_argument
@settings_option
@click.option("--to", "target", type=click.Choice(TARGETS), required=True, help="The stack to write for.")
@click.option("--out", type=Path, metavar="FILE", help="Write to this file; without it, to standard output.")
def translate(
    name: str, overrides: tuple[str, ...], settings: tuple[str, ...], target: str, out: Path | None
) -> Answer:
    """Write the same run for another stack.

    megatron-lm: a launch script; megatron-bridge: a ConfigContainer as YAML; nemo: a recipe as YAML, for slipway run;
    slipway: the files of a recipe. What has no counterpart is listed. The layout is the one that slipway check shows.
    """
    from slipway import planner
    from slipway.configs import Refusal
    from slipway.launch.cli.readable import judge, readable

    found = readable(name, overrides, settings)
    spec, _ = planner.choose_layout(found.resolved)
    verdict = judge(found.reading, spec) if found.reading else planner.check(spec)
    if not verdict.legal:
        raise Refusal(verdict.violations[0].message, verdict.violations[0].fix)
    written = _written(target, spec, found)
    if out:
        try:
            out.write_text(written.text)
        except OSError as error:
            raise Refusal(f"{out} cannot be written: {error.strerror}") from None
    return Translated(written, out)


def _written(target: str, spec: Any, found: Readable) -> Written:
    from slipway.launch.translate import megatron_bridge, megatron_lm

    if target == "megatron-lm":
        return megatron_lm.write(spec)
    if target == "megatron-bridge":
        return megatron_bridge.write(spec)
    from slipway.launch.translate import ours

    return ours.recipe_files(spec, found.resolved) if target == "slipway" else ours.nemo(spec)
