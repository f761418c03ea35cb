"""The length and the cost of a run in words, for every command that predicts one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slipway.launch.cli.printing import Terminal
from slipway.launch.cli.quantities import dollars, duration, energy, in_tokens

if TYPE_CHECKING:
    from slipway.configs import Spec
    from slipway.planner import Cost, Course, Goodput


def run_json(spec: Spec) -> dict[str, Any]:
    """``run`` and ``cost`` of a legal run, for ``--json``."""
    from slipway import planner

    run = planner.course(spec)
    found = planner.goodput(spec, run.parts[-1].step_time_s)
    return {
        "run": planner.course_json(run),
        "cost": planner.cost_json(planner.cost(spec, run)),
        "goodput": planner.goodput_json(found, run.seconds),
    }


def show_run(terminal: Terminal, spec: Spec) -> None:
    """Print how long the whole run is and what it costs."""
    from slipway import planner

    run = planner.course(spec)
    terminal.field("run", run_line(run))
    terminal.field("cost", cost_line(planner.cost(spec, run)))
    terminal.field("goodput", goodput_line(planner.goodput(spec, run.parts[-1].step_time_s), run.seconds))


def run_line(run: Course) -> str:
    """The steps of a run, its tokens, and the predicted time over the batches of its ramp."""
    sizes = [part.gbs for part in run.parts]
    batches = f"{sizes[0]:,} to {sizes[-1]:,}" if len(sizes) > 1 else f"{sizes[0]:,}"
    return f"{run.steps:,} steps of {batches} sequences, {in_tokens(run.tokens)} tokens, {duration(run.seconds)}"


def goodput_line(found: Goodput, seconds: float) -> str:
    """The share of a run's time that trains, and how long its ``seconds`` of steps therefore take."""
    if not found.value:
        return f"none: an interruption every {duration(found.mtbf_s)}, and a restart takes {duration(found.restart_s)}"
    interruptions = seconds / found.value / found.mtbf_s
    saves = f"a save every {duration(found.interval_s)}" if found.interval_s < seconds else "no save before the end"
    return (
        f"{found.value:.1%}, {duration(seconds / found.value)} in all: about {interruptions:,.0f} interruptions, one "
        f"every {duration(found.mtbf_s)}; {saves}"
    )


def cost_line(cost: Cost) -> str:
    """GPU-hours, dollars and energy of a run."""
    hours = f"{cost.gpu_hours:,.0f}" if cost.gpu_hours >= 100 else f"{cost.gpu_hours:.3g}"
    parts = [f"{hours} GPU-hours"]
    if cost.dollars is None:
        parts.append("price= gives dollars")
    else:
        parts.append(f"{dollars(cost.dollars)} at ${cost.price_per_gpu_hour:g} an hour")
    if cost.gpu_kwh is not None:
        whole = "" if cost.system_kwh is None else f" ({energy(cost.system_kwh)} with its share of the node)"
        parts.append(f"{energy(cost.gpu_kwh)} at {cost.gpu_power_w:,.0f} W a GPU{whole}")
    return ", ".join(parts)
