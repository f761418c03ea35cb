"""``slipway advise``: which parallelism and memory techniques a model needs on given hardware, and what each buys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slipway.launch.cli.answer import Answer, Section, command, overrides_argument, readable_argument, settings_option
from slipway.launch.cli.pinned import pinned_json, pinned_line
from slipway.launch.cli.printing import Table, Terminal
from slipway.launch.cli.rungs import rungs_json, rungs_table

if TYPE_CHECKING:
    from slipway.configs import Resolved
    from slipway.planner import Candidate
    from slipway.planner.advise import Advice
    from slipway.planner.ladder import Rung


@dataclass(frozen=True)
class Advised(Answer):
    """The best layout, and each technique judged against it."""

    best: Candidate
    techniques: list[Advice]
    resolved: Resolved
    given: Candidate | None  # the layout that the user gave, as it is
    ladder: list[Rung]  # what frees memory in it

    def as_json(self) -> dict[str, Any]:
        from slipway import planner

        return {
            "layout": planner.layout_json(self.best.spec),
            **pinned_json(self.resolved),
            "techniques": [dict(vars(technique)) for technique in self.techniques],
            "given": None if self.given is None else planner.layout_json(self.given.spec),
            "ladder": rungs_json(self.ladder),
        }

    def show(self, terminal: Terminal) -> None:
        from slipway.planner.layout import describe

        if self.given is not None:
            self._show_given(terminal, self.given)
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

    def _show_given(self, terminal: Terminal, given: Candidate) -> None:
        from slipway.planner.layout import describe

        needed, capacity = given.memory.needed_gib, given.memory.capacity_gib
        terminal.field(
            "yours",
            f"{describe(given.spec)}: {given.time.step_time_s:.2f} s per step, {needed:.1f} of {capacity:.1f} GiB, "
            f"{given.p_fits:.0%} likely to fit",
        )
        terminal.line("Single changes to it that free memory:")
        terminal.table(rungs_table(self.ladder))


@command(Section.PLANNING)
@readable_argument
@overrides_argument
@settings_option
def advise(name: str, overrides: tuple[str, ...], settings: tuple[str, ...]) -> Answer:
    """Say which techniques a recipe needs, why, and what each saves.

    The techniques are data, tensor, sequence, pipeline, context and expert parallelism, ZeRO, recompute and offload;
    the savings are in GiB and in seconds per step. For a layout that is given, every single change that frees memory
    comes first: what it frees, what it costs, and the override to paste.
    """
    from slipway.configs import Refusal
    from slipway.launch.cli.readable import readable
    from slipway.planner.advise import advise as judge
    from slipway.planner.ladder import ladder

    resolved = readable(name, overrides, settings).resolved
    given = _given(resolved)
    try:
        best, techniques = judge(resolved.spec, resolved.pinned)
    except Refusal:
        if given is None:
            raise
        best, techniques = judge(resolved.spec)  # nothing with what is given fits: the ladder says what to change
    return Advised(best, techniques, resolved, given, ladder(given.spec, resolved.untouched) if given else [])


def _given(resolved: Resolved) -> Candidate | None:
    """The layout that the user gave, judged as it is; None where there is none or it is not legal."""
    from slipway import planner

    if not resolved.layout_given:
        return None
    verdict = planner.check(planner.choose_layout(resolved)[0])
    if verdict.time is None or verdict.memory is None:
        return None
    return planner.Candidate(verdict.spec, verdict.time, verdict.memory)
