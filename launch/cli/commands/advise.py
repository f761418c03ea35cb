"""``slipway advise``: which parallelism and memory techniques a model needs on given hardware, and what each buys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slipway.launch.cli.answer import Answer, Section, command, overrides_argument, readable_argument, settings_option
from slipway.launch.cli.pinned import pinned_json, pinned_line
from slipway.launch.cli.printing import Table, Terminal

if TYPE_CHECKING:
    from slipway.configs import Resolved
    from slipway.planner import Candidate
    from slipway.planner.advise import Advice


@dataclass(frozen=True)
class Advised(Answer):
    """The best layout, and each technique judged against it."""

    best: Candidate
    techniques: list[Advice]
    resolved: Resolved

    def as_json(self) -> dict[str, Any]:
        from slipway import planner

        return {
            "layout": planner.layout_json(self.best.spec),
            **pinned_json(self.resolved),
            "techniques": [dict(vars(technique)) for technique in self.techniques],
        }

    def show(self, terminal: Terminal) -> None:
        from slipway.planner.layout import describe

        if self.resolved.pinned:
            terminal.field("given", pinned_line(self.best.layout, self.resolved.pinned, searched=True))
        memory, time = self.best.memory, self.best.time
        needs = f"{memory.needed_gib:.1f} of {memory.capacity_gib:.1f} GiB"
        terminal.field("best", f"{describe(self.best.spec)}: {time.step_time_s:.2f} s per step, {needs}")
        table = Table(("technique", "use", "saves GiB", "saves s", "why"), right=frozenset({2, 3}))
        for technique in self.techniques:
            table.add(
                technique.technique,
                "yes" if technique.use else "no",
                "" if technique.gib is None else f"{technique.gib:+.1f}",
                "" if technique.seconds is None else f"{technique.seconds:+.2f}",
                technique.why,
            )
        terminal.table(table)


@command(Section.PLANNING)
@readable_argument
@overrides_argument
@settings_option
def advise(name: str, overrides: tuple[str, ...], settings: tuple[str, ...]) -> Answer:
    """Say which techniques a recipe needs, why, and what each saves.

    The techniques are data, tensor, sequence, pipeline, context and expert parallelism, ZeRO, recompute and offload;
    the savings are in GiB and in seconds per step.
    """
    from slipway.launch.cli.readable import readable
    from slipway.planner.advise import advise as judge

    resolved = readable(name, overrides, settings).resolved
    best, techniques = judge(resolved.spec, resolved.pinned)
    return Advised(best, techniques, resolved)
