"""``slipway goodput``: what interruptions cost a run, how often to save, and whether it ends in time."""

from __future__ import annotations

import math
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
from slipway.launch.cli.costs import cost_line, goodput_line, run_line
from slipway.launch.cli.printing import Style, Table, Terminal
from slipway.launch.cli.quantities import duration

if TYPE_CHECKING:
    from slipway.configs import Spec
    from slipway.planner import Course, Goodput

_PERCENTILES = (5, 50, 95)


@dataclass(frozen=True)
class Simulated:
    """Runs whose interruptions were drawn at random: their days, and the share that ends before the deadline."""

    days: tuple[float, ...]  # at _PERCENTILES
    in_time: float | None


@dataclass(frozen=True)
class Interrupted(Answer):
    """A run under interruptions."""

    title: str
    spec: Spec
    run: Course
    found: Goodput
    simulated: Simulated
    deadline_s: float | None

    def as_json(self) -> dict[str, Any]:
        from slipway import planner

        return {
            "run": planner.course_json(self.run),
            "goodput": planner.goodput_json(self.found, self.run.seconds),
            "simulated_days": dict(zip(map(str, _PERCENTILES), self.simulated.days, strict=True)),
            "p_deadline": self.simulated.in_time,
            "published": [
                {"name": name, "mtbf_gpu_hours": hours, "goodput": value, "source": source}
                for name, hours, value, source in self._published()
            ],
        }

    def _published(self) -> list[tuple[str, float, float, str]]:
        """Every published rate of interruptions, and this run's goodput under it, with the best interval."""
        from dataclasses import replace

        from slipway.configs.reliability import published_interruptions

        rows = []
        for known in published_interruptions():
            found = replace(self.found, mtbf_s=known.mtbf_gpu_hours * 3600 / self.spec.gpus)
            rows.append((known.name, known.mtbf_gpu_hours, found.at(found.best_s), known.source))
        return rows

    def show(self, terminal: Terminal) -> None:
        from slipway import planner
        from slipway.planner.cost import cost_of_seconds

        spec, found, seconds = self.spec, self.found, self.run.seconds
        on = f"{spec.gpus:,} x {spec.gpu.name.upper()}, {spec.precision.name}"
        terminal.line(f"{self.title} on {on}", Style.BOLD)
        terminal.field("run", f"{run_line(self.run)} of steps")
        terminal.field("goodput", goodput_line(found, seconds))
        if found.value:
            terminal.field("cost", cost_line(cost_of_seconds(spec, seconds / found.value)))
        terminal.field(
            "save",
            f"{found.checkpoint_gib:,.0f} GiB at {found.storage_gb_per_s:,.0f} GB/s: stops training for "
            f"{duration(found.save_s)}, is complete {duration(found.write_s)} later",
        )
        terminal.field("restart", f"{duration(found.restart_s)}, the checkpoint read in it")
        low, middle, high = self.simulated.days
        terminal.field(
            "simulated", f"{middle:,.1f} days; 90 % of {planner.TRIALS:,} runs take {low:,.1f} to {high:,.1f}"
        )
        if self.deadline_s is not None and self.simulated.in_time is not None:
            terminal.field(
                "deadline", f"{duration(self.deadline_s)}: met with a probability of {self.simulated.in_time:.0%}"
            )
        terminal.field("spares", f"{found.spare_nodes} nodes keep all {spec.num_nodes:,} running 99 % of the time")
        self._show_intervals(terminal)
        table = Table(("interruptions as in", "GPU-hours between two", "goodput, best interval"), frozenset({1, 2}))
        for name, hours, value, _ in self._published():
            table.add(name, f"{hours:,.0f}", f"{value:.1%}")
        terminal.table(table)

    def _show_intervals(self, terminal: Terminal) -> None:
        from slipway import planner

        found, table = self.found, Table(("save every", "", "goodput", "simulated"), frozenset({0, 2, 3}))
        rows = {"the recipe's": found.interval_s, "Young's": found.young_s, "best": found.best_s}
        for name, interval in rows.items():
            if math.isfinite(interval):
                taken = found.simulate(self.run.seconds, interval)
                table.add(
                    duration(interval), name, f"{found.at(interval):.1%}", f"{self.run.seconds / taken.mean():.1%}"
                )
        terminal.table(table)
        minutes = planner.save_minutes(found)
        if found.at(60.0 * minutes) - found.value > planner.WORTH_SAVING:
            terminal.field("advice", f"run.checkpoint_every_minutes={minutes}", Style.WARNING)


@command(Section.PLANNING)
@readable_argument
@overrides_argument
@settings_option
@click.option("--deadline", default="", metavar="TIME", help="Say how likely the run is to end within it, such as 30d.")
@click.option(
    "--plot", type=OUT_PATH, metavar="PATH", help="Draw the goodput over the interval into PATH.png and PATH.svg."
)
def goodput(
    name: str, overrides: tuple[str, ...], settings: tuple[str, ...], deadline: str, plot: Path | None
) -> Answer:
    """Predict how much of a run's time trains, under interruptions.

    Says how often to save, how many spare nodes to keep, and how likely the run is to meet a deadline. The cluster
    states cluster.mtbf_gpu_hours, cluster.restart_minutes, cluster.storage_gb_per_s and cluster.repair_hours; without
    them, published and assumed values apply.
    """
    import numpy as np

    from slipway import planner
    from slipway.launch.cli.quantities import seconds_of
    from slipway.launch.cli.readable import readable
    from slipway.planner.cost import SECONDS_PER_DAY

    deadline_s = seconds_of("--deadline", deadline) if deadline else None
    resolved = readable(name, overrides, settings).resolved
    spec = planner.complete(resolved)
    planner.require_legal(spec)
    run, time = planner.course(spec), planner.step_time(spec)
    found = planner.goodput(spec, run.parts[-1].step_time_s)
    if not found.value:
        from slipway.configs import Refusal

        raise Refusal(
            f"{spec.gpus:,} GPUs are interrupted every {duration(found.mtbf_s)}, and a restart takes "
            f"{duration(found.restart_s)}: the run never ends",
            "Use fewer GPUs, or state better values of cluster.mtbf_gpu_hours and cluster.restart_minutes.",
        )
    taken = found.simulate(run.seconds, spread=math.log(time.high_s / time.step_time_s))
    in_time = None if deadline_s is None else float(np.mean(taken <= deadline_s))
    days = tuple(float(day) for day in np.percentile(taken, _PERCENTILES) / SECONDS_PER_DAY)
    if plot:
        from slipway.planner.pictures import draw_goodput

        draw_goodput(found, run.seconds, plot, f"{resolved.title} on {spec.gpus:,} {spec.gpu.name.upper()}")
    return Interrupted(resolved.title, spec, run, found, Simulated(days, in_time), deadline_s)
