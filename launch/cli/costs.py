"""The length and the cost of a run in words, for every command that predicts one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slipway.launch.cli.printing import Terminal
from slipway.launch.cli.quantities import dollars, duration, energy, in_tokens

if TYPE_CHECKING:
    from slipway.configs import Spec
    from slipway.planner import Cost, Course


def run_json(spec: Spec) -> dict[str, Any]:
    """``run`` and ``cost`` of a legal run, for ``--json``."""
    from slipway import planner

    run = planner.course(spec)
    return {"run": planner.course_json(run), "cost": planner.cost_json(planner.cost(spec, run))}


def show_run(terminal: Terminal, spec: Spec) -> None:
    """Print how long the whole run is and what it costs."""
    from slipway import planner

    run = planner.course(spec)
    terminal.field("run", run_line(run))
    terminal.field("cost", cost_line(planner.cost(spec, run)))


def run_line(run: Course) -> str:
    """The steps of a run, its tokens, and the predicted time over the batches of its ramp."""
    sizes = [part.gbs for part in run.parts]
    batches = f"{sizes[0]:,} to {sizes[-1]:,}" if len(sizes) > 1 else f"{sizes[0]:,}"
    return f"{run.steps:,} steps of {batches} sequences, {in_tokens(run.tokens)} tokens, {duration(run.seconds)}"


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
