"""Pictures of a plan: memory against speed of the candidates, and the pipeline's timeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slipway.planner.layout import short_name
from slipway.planner.search import Plan
from slipway.planner.time.schedule import Kind, simulate
from slipway.planner.time.step import StepTime

_FORWARD, _BACKWARD = "#4c78a8", "#f58518"


def _axes(width: float, height: float) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    return plt.subplots(figsize=(width, height), layout="constrained")


def _save(figure: Any, stem: Path) -> list[Path]:
    import matplotlib.pyplot as plt

    out = [stem.with_name(stem.name + suffix) for suffix in (".png", ".svg")]
    for path in out:
        figure.savefig(path, dpi=150)
    plt.close(figure)
    return out


def draw_plan(plan: Plan, stem: Path) -> list[Path]:
    """Memory against tokens/s of each candidate, the capacity as a line. Writes ``stem``.png and .svg."""
    figure, axes = _axes(10, 4.5)
    x = [c.memory.needed_gib for c in plan.candidates]
    y = [c.time.tokens_per_s_per_gpu for c in plan.candidates]
    spread = [
        [v - v * c.time.step_time_s / c.time.high_s for v, c in zip(y, plan.candidates, strict=True)],
        [v * c.time.step_time_s / c.time.low_s - v for v, c in zip(y, plan.candidates, strict=True)],
    ]
    axes.errorbar(x, y, yerr=spread, fmt="none", ecolor="0.85", zorder=1)
    axes.scatter(x, y, color=_FORWARD, zorder=2)
    for i in range(len(plan.candidates)):
        axes.annotate(str(i + 1), (x[i], y[i]), xytext=(4, 4), textcoords="offset points", fontsize=8)
    names = "\n".join(f"{i + 1:2d}  {short_name(c.layout)}" for i, c in enumerate(plan.candidates[:12]))
    axes.text(1.02, 1.0, names, transform=axes.transAxes, va="top", fontsize=8, family="monospace")
    capacity = plan.candidates[0].memory.capacity_gib
    axes.axvline(capacity, color="0.4", linestyle="--", linewidth=1)
    axes.annotate("HBM", (capacity, min(y)), xytext=(-4, 0), textcoords="offset points", ha="right", color="0.4")
    axes.set_xlim(0, capacity * 1.1)
    axes.set_xlabel("memory needed (GiB per GPU)")
    axes.set_ylabel("tokens/s per GPU")
    spec = plan.candidates[0].spec
    axes.set_title(
        f"{spec.name} on {spec.gpus} {spec.gpu.name.upper()}, {spec.precision.name}, batch {spec.layout.gbs}",
        loc="left",
    )
    return _save(figure, stem)


def draw_timeline(time: StepTime, num_micro_batches: int, stem: Path, title: str = "") -> list[Path]:
    """The pipeline's first rounds: one row a stage, forward and backward passes with their micro-batch. PNG and SVG."""
    pp, vpp = len(time.stage_forward_s), len(time.stage_forward_s[0])
    kind = Kind.interleaved if vpp > 1 else Kind.one_f_one_b
    shown = min(num_micro_batches, 2 * pp)
    if vpp > 1:
        shown = max(pp, shown // pp * pp)
    line = simulate(kind, time.stage_forward_s, time.stage_backward_s, shown, time.send_s)
    figure, axes = _axes(10, 0.8 + 0.38 * pp)
    for task in line.tasks:
        length = task.stop - task.start
        shade = 1.0 if vpp == 1 else 0.45 + 0.55 * (vpp - task.chunk) / vpp
        axes.barh(
            task.stage,
            length,
            left=task.start,
            height=0.86,
            color=_FORWARD if task.phase == "F" else _BACKWARD,
            alpha=shade,
            edgecolor="white",
            linewidth=0.4,
        )
        if length > line.makespan / 60:
            axes.text(
                task.start + length / 2,
                task.stage,
                str(task.micro_batch + 1),
                ha="center",
                va="center",
                fontsize=6,
                color="white",
            )
    axes.set_yticks(range(pp), [f"stage {i}" for i in range(pp)])
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    note = (
        f"first {shown} of {num_micro_batches} micro-batches" if shown < num_micro_batches else f"{shown} micro-batches"
    )
    axes.set_title(f"{title}  ({note}; blue forward, orange backward)".strip(), loc="left", fontsize=9)
    return _save(figure, stem)
