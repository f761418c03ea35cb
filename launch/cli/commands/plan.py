"""``slipway plan``: every legal layout, searched and ranked."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import (
    OUT_PATH,
    Answer,
    Section,
    command,
    overrides_argument,
    readable_argument,
    settings_option,
)
from slipway.launch.cli.costs import run_json, show_run
from slipway.launch.cli.pinned import pinned_json, pinned_line
from slipway.launch.cli.printing import Style, Table, Terminal

if TYPE_CHECKING:
    from slipway.configs import Resolved
    from slipway.planner import Candidate, Plan

GOALS = ("days", "dollars", "gpus")
TRIED = 12  # layouts that are searched at least: a tie with the fastest may be better to start with
MOST_GPUS = 16_384  # where nobody says otherwise
UNPLANNED_PRECISION = "fp32"  # nobody trains in it: --precisions all leaves it out


@dataclass(frozen=True)
class Planned(Answer):
    """The ranked layouts of a recipe, over one precision or several."""

    resolved: Resolved
    plan: Plan
    several_precisions: bool
    top: int

    @property
    def best(self) -> Candidate:
        return self.ranked[0][1]

    @functools.cached_property
    def ranked(self) -> list[tuple[int, Candidate]]:
        """The candidates with the numbers of their groups, within which the planner cannot tell which is faster."""
        from slipway import planner

        groups = planner.tie_groups(self.plan.candidates)
        return [(number, each) for number, group in enumerate(groups, 1) for each in group][: self.top]

    def _why(self, group: int, candidate: Candidate) -> str:
        from slipway import planner

        if group > 1 or candidate is self.best:
            return planner.why_slower(candidate, self.best)
        difference = candidate.time.step_time_s / self.best.time.step_time_s - 1
        return f"a tie with the first ({difference:+.1%})"

    def as_json(self) -> dict[str, Any]:
        from slipway import planner

        return {
            "candidates": [
                planner.as_json(planner.check(candidate.spec))
                | run_json(candidate.spec)
                | {"why": self._why(group, candidate), "group": group}
                for group, candidate in self.ranked
            ],
            **pinned_json(self.resolved),
            "considered": self.plan.considered,
            "pruned": self.plan.pruned,
            "did_not_fit": self.plan.did_not_fit,
        }

    def show(self, terminal: Terminal) -> None:
        from slipway import planner
        from slipway.planner.layout import describe

        spec, plan = self.resolved.spec, self.plan
        on = f"{spec.gpus} x {spec.gpu.name.upper()}, {spec.precision.name}"
        terminal.line(f"{self.resolved.title} on {on}, batch {spec.layout.gbs} x {spec.seq_length:,}", Style.BOLD)
        if self.resolved.pinned:
            terminal.field("given", pinned_line(spec.layout, self.resolved.pinned, searched=True))
        head = ("", "group", "layout", "step s", "tokens/s/GPU", "MFU", "GiB", "why")
        table = Table(head, right=frozenset({0, 1, 3, 4, 5, 6}))
        for rank, (group, candidate) in enumerate(self.ranked, 1):
            precision = f"{candidate.spec.precision.name} " if self.several_precisions else ""
            table.add(
                str(rank),
                str(group),
                precision + describe(candidate.spec),
                f"{candidate.time.step_time_s:.2f}",
                f"{candidate.time.tokens_per_s_per_gpu:,.0f}",
                f"{candidate.time.mfu:.1%}",
                f"{candidate.memory.needed_gib:.1f}",
                self._why(group, candidate),
            )
        terminal.table(table)
        terminal.line(
            f"Layouts of a group are predicted within {planner.TIE - 1:.0%} of its fastest, and it cannot tell them "
            "apart: published ones come first, then simpler, then smaller ones."
        )
        show_run(terminal, self.best.spec)
        for found in planner.only_planned(self.best.spec):
            terminal.field("advice", f"{found.rule}: {found.message} {found.fix}", Style.WARNING)
        terminal.line(
            f"{plan.considered} layouts predicted, {plan.pruned} ruled out as slower, {plan.did_not_fit} do not fit"
        )


@command(Section.PLANNING)
@readable_argument
@overrides_argument
@settings_option
@click.option("--top", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many layouts to print.")
@click.option(
    "--precisions",
    default="",
    metavar="LIST",
    help="Search these precisions too, for example bf16,fp8_current; all: every one that the GPU has.",
)
@click.option(
    "--plot",
    type=OUT_PATH,
    metavar="PATH",
    help="Draw memory against speed (PATH.png, .svg) and the best pipeline (PATH_timeline.png, .svg); with --gpus days "
    "against cost.",
)
@click.option("--gpus", default="", metavar="RANGE", help="Compare sizes: 64..1024 (doublings), or 64,96,128.")
@click.option(
    "--goal",
    type=click.Choice(GOALS),
    help="What the best size has least of; the default is days, with a deadline dollars.",
)
@click.option("--deadline", default="", metavar="TIME", help="The time by which the run has to end, such as 30d.")
def plan(
    name: str,
    overrides: tuple[str, ...],
    settings: tuple[str, ...],
    top: int,
    precisions: str,
    plot: Path | None,
    gpus: str,
    goal: str | None,
    deadline: str,
) -> Answer:
    """Search every legal layout and rank those that fit.

    What is given of the layout stays. Each layout that is slower than the best comes with the part of the step time on
    which it loses. With --gpus, --goal or --deadline, the best layouts of several sizes are compared in days and
    dollars, interruptions included: tokens=1T price=2.5 say how much is trained and what a GPU-hour costs.
    """
    from slipway import configs, planner
    from slipway.launch.cli.progress import counted
    from slipway.launch.cli.readable import readable

    resolved = readable(name, overrides, settings).resolved
    if gpus or goal or deadline:
        if precisions:
            raise click.UsageError("--precisions is not for several sizes: give precision=.")
        return _sized(resolved, gpus, goal, deadline, plot)
    tried = max(top, TRIED)
    if precisions:
        names = configs.precision_names() if precisions == "all" else precisions.split(",")
        trained = [one for one in names if one != UNPLANNED_PRECISION]
        if not trained:
            raise configs.Refusal(
                f"--precisions {precisions} names none to plan for",
                f"Leave {UNPLANNED_PRECISION} out: nobody trains in it.",
            )
        chosen = [readable(name, [*overrides, f"precision={one}"], settings).resolved.spec.precision for one in trained]
        shown = counted("precisions", chosen, len(chosen))
        found = planner.plan_precisions(resolved.spec, shown, tried, resolved.pinned, resolved.untouched)
    else:
        found = planner.plan_pinned(resolved.spec, resolved.pinned, tried, resolved.untouched)
    if plot:
        _draw(found, plot)
    return Planned(resolved, found, bool(precisions), top)


def _sized(resolved: Resolved, gpus: str, goal: str | None, deadline: str, plot: Path | None) -> Answer:
    from slipway.launch.cli.progress import counted
    from slipway.launch.cli.quantities import seconds_of
    from slipway.launch.cli.sized import Sized, counts_of
    from slipway.planner.scale import Goal, best_size, sizes

    deadline_s = seconds_of("--deadline", deadline) if deadline else None
    counts = counts_of(gpus) if gpus else counts_of(f"{resolved.spec.gpus_per_node}..{MOST_GPUS}")
    found = list(counted("sizes", sizes(resolved, counts, deadline_s), len(counts)))
    wanted = Goal(goal or ("dollars" if deadline else "days"))
    best = best_size(found, wanted)
    if plot:
        from slipway.planner.pictures import draw_sizes

        draw_sizes(found, best, deadline_s, plot, resolved.title)
    return Sized(resolved, found, wanted, deadline_s, best)


def _draw(found: Plan, plot: Path) -> None:
    from slipway.planner.layout import describe
    from slipway.planner.pictures import draw_plan, draw_timeline
    from slipway.planner.time.schedule import kind_of

    best = found.candidates[0]
    draw_plan(found, plot)
    timeline = plot.with_name(plot.name + "_timeline")
    draw_timeline(
        best.time, best.spec.batch.num_micro_batches, timeline, describe(best.spec), kind_of(best.spec.layout)
    )
