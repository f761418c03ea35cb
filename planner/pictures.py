"""Pictures of a plan: memory and speed of the candidates, and the pipeline's timeline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slipway.configs import Spec
from slipway.planner.cost import SECONDS_PER_DAY
from slipway.planner.course import Moment, samples, turns
from slipway.planner.goodput import Goodput
from slipway.planner.layout import short_name
from slipway.planner.scale import Size, not_dominated
from slipway.planner.search import Candidate, Plan
from slipway.planner.time.schedule import Kind, simulate
from slipway.planner.time.step import StepTime

_FORWARD, _BACKWARD, _WEIGHTS = "#4c78a8", "#f58518", "#54a24b"
_COLORS = {"F": _FORWARD, "B": _BACKWARD, "W": _WEIGHTS}
_OF_PRECISIONS = (_FORWARD, _BACKWARD, _WEIGHTS, "#b279a2", "#e45756", "#72b7b2", "#9d755d")
_IN_POINTS: Any = {"textcoords": "offset points", "fontsize": 8, "color": "0.35"}
_NEAR = 0.01  # of the speed: layouts this close are ties
HEIGHT_OF_AXES_IN, HEIGHT_OF_ROW_IN = 1.2, 0.27  # of a plan's picture: title and axis, and each candidate


_MOST_CHUNKS = 6  # chunks of a stage whose whole timeline can be read; of more, the start is drawn


def _use_style() -> None:
    """Draw without a display, and without the upper and right edges of axes."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})


def _axes(width: float, height: float) -> Any:
    import matplotlib.pyplot as plt

    _use_style()
    return plt.subplots(figsize=(width, height), layout="constrained")


def _save(figure: Any, stem: Path) -> list[Path]:
    import matplotlib.pyplot as plt

    out = [stem.with_name(stem.name + suffix) for suffix in (".png", ".svg")]
    for path in out:
        figure.savefig(path, dpi=150)
    plt.close(figure)
    return out


def draw_plan(plan: Plan, stem: Path) -> list[Path]:
    """Memory and speed of each candidate, one row each, the fastest on top. Writes ``stem``.png and .svg."""
    import matplotlib.pyplot as plt

    candidates = plan.candidates
    _use_style()
    height = HEIGHT_OF_AXES_IN + HEIGHT_OF_ROW_IN * len(candidates)
    figure, (memory, speed) = plt.subplots(1, 2, figsize=(10, height), layout="constrained", sharey=True)
    rows = range(len(candidates))
    memory.set_yticks(rows, [f"{short_name(c.layout)}  {i + 1:2d}" for i, c in enumerate(candidates)])
    memory.set_ylim(len(candidates) - 0.4, -1.4)  # the first row is for the label of the capacity
    precisions = list(dict.fromkeys(c.spec.precision.name for c in candidates))
    color_of = dict(zip(precisions, _OF_PRECISIONS * len(precisions), strict=False))
    colors = [color_of[c.spec.precision.name] for c in candidates]
    needed, capacity = [c.memory.needed_gib for c in candidates], candidates[0].memory.capacity_gib
    start = _round_below(min(needed))
    memory.hlines(rows, start, needed, color="0.85", linewidth=2)
    memory.scatter(needed, rows, color=colors, zorder=2)
    memory.axvline(capacity, color="0.4", linestyle="--", linewidth=1)
    memory.annotate(f"HBM {capacity:.1f} GiB", (capacity, -0.9), (-4, 0), ha="right", va="center", **_IN_POINTS)
    memory.set_xlim(start, capacity + 0.03 * (capacity - start))
    memory.set_xlabel("memory needed (GiB per GPU)")
    _mark_ties(speed, candidates)
    rates = [c.time.tokens_per_s_per_gpu for c in candidates]
    intervals = [
        [rate - rate * c.time.step_time_s / c.time.high_s for rate, c in zip(rates, candidates, strict=True)],
        [rate * c.time.step_time_s / c.time.low_s - rate for rate, c in zip(rates, candidates, strict=True)],
    ]
    speed.errorbar(rates, rows, xerr=intervals, fmt="none", ecolor="0.8", elinewidth=3)
    speed.scatter(rates, rows, color=colors, zorder=3)
    if len(precisions) > 1:
        for precision in precisions:
            speed.scatter([], [], color=color_of[precision], label=precision)
        speed.legend(frameon=False, loc="lower right", fontsize=8)
    speed.tick_params(left=False)
    speed.grid(axis="x", color="0.9")
    speed.set_axisbelow(True)
    speed.set_xlabel("tokens/s per GPU (grey: 68 % interval)")
    spec = candidates[0].spec
    where = f"{spec.gpus} {spec.gpu.name.upper()}, {' and '.join(precisions)}, global batch {spec.layout.gbs}"
    figure.suptitle(f"{spec.name} on {where}", x=0.01, ha="left")
    return _save(figure, stem)


def _round_below(value: float) -> float:
    """A round number below ``value``, a tenth of it away at most."""
    step = 10 ** math.floor(math.log10(value)) / 2
    return step * math.floor(0.95 * value / step)


def _mark_ties(axes: Any, candidates: Sequence[Candidate]) -> None:
    """Shade the layouts that are as fast as the best within 1 %, which no prediction tells apart."""
    best = candidates[0].time.tokens_per_s_per_gpu
    near = sum(c.time.tokens_per_s_per_gpu > (1 - _NEAR) * best for c in candidates)
    if near > 1:
        axes.axhspan(-0.5, near - 0.5, color=_WEIGHTS, alpha=0.12, linewidth=0)
        text = f"{near} within {_NEAR:.0%} of the fastest"
        axes.annotate(text, (0, -0.9), (4, 0), xycoords=("axes fraction", "data"), va="center", **_IN_POINTS)


def draw_timeline(
    time: StepTime, num_micro_batches: int, stem: Path, title: str = "", kind: Kind | None = None
) -> list[Path]:
    """The pipeline's first rounds: one row for each stage, forward and backward passes with their micro-batch."""
    pp, vpp = len(time.stage_forward_s), len(time.stage_forward_s[0])
    kind = kind or (Kind.interleaved if vpp > 1 else Kind.one_f_one_b)
    shown = min(num_micro_batches, 2 * pp)
    if vpp > 1:
        shown = max(pp, shown // pp * pp)
    line = simulate(kind, time.stage_forward_s, time.stage_backward_s, shown, time.send_s)
    figure, axes = _axes(10, 0.8 + 0.38 * pp)
    window = line.makespan if vpp <= _MOST_CHUNKS else line.makespan * _MOST_CHUNKS / vpp
    for task in line.tasks:
        if task.start >= window:
            continue
        length = task.stop - task.start
        shade = 1.0 if vpp == 1 else 0.45 + 0.55 * (vpp - task.chunk) / vpp
        axes.barh(
            task.stage,
            length,
            left=task.start,
            height=0.86,
            color=_COLORS[task.phase],
            alpha=shade,
            edgecolor="white",
            linewidth=0.4,
        )
        if length > window / 80:
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
    axes.set_xlabel("seconds" if window == line.makespan else f"seconds (the first of {line.makespan:.3g})")
    axes.set_xlim(0, window)
    note = (
        f"first {shown} of {num_micro_batches} micro-batches" if shown < num_micro_batches else f"{shown} micro-batches"
    )
    weights = ", green weight gradients" if kind is Kind.zero_bubble else ""
    axes.set_title(f"{title}  ({note}; blue forward, orange backward{weights})".strip(), loc="left", fontsize=9)
    return _save(figure, stem)


def draw_sizes(
    found: Sequence[Size], best: Size | None, deadline_s: float | None, stem: Path, title: str
) -> list[Path]:
    """Days against dollars (or GPU-hours) of a run at several sizes, and which of them no other beats in both."""
    figure, axes = _axes(8, 4.6)
    able = [size for size in found if size.candidate is not None and math.isfinite(size.seconds)]
    priced = all(size.cost.dollars is not None for size in able)

    def paid(size: Size) -> float:
        return (size.cost.dollars or 0.0) / 1000 if priced else size.cost.gpu_hours / 1000

    kept = not_dominated(able)
    axes.plot([size.cost.days for size in kept], [paid(size) for size in kept], color="0.7", linewidth=1.5, zorder=1)
    for size in able:
        assert size.candidate is not None, "selected above"
        time = size.candidate.time
        width = [
            [size.cost.days * (1 - time.low_s / time.step_time_s)],
            [size.cost.days * (time.high_s / time.step_time_s - 1)],
        ]
        color = _WEIGHTS if size is best else _FORWARD if size in kept else "0.6"
        axes.errorbar([size.cost.days], [paid(size)], xerr=width, fmt="o", color=color, ecolor="0.85", elinewidth=3)
        axes.annotate(f"{size.gpus:,}", (size.cost.days, paid(size)), (6, 5), textcoords="offset points", fontsize=8)
    if deadline_s is not None:
        axes.axvline(deadline_s / SECONDS_PER_DAY, color=_BACKWARD, linestyle="--", linewidth=1, label="deadline")
        axes.legend(frameon=False)
    axes.set(xscale="log", xlabel="days, interruptions included (grey: 68 % interval of the step time)")
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_ylabel("thousand dollars" if priced else "thousand GPU-hours")
    axes.margins(y=0.15)
    axes.set_title(f"{title}: number of GPUs; on the line, none is both faster and cheaper", loc="left", fontsize=10)
    return _save(figure, stem)


def draw_goodput(found: Goodput, seconds: float, stem: Path, title: str) -> list[Path]:
    """The goodput over the interval between saves: expected, simulated, the recipe's and the best."""
    import numpy as np

    figure, axes = _axes(7, 4)
    most = 4 * max(found.best_s, found.interval_s if math.isfinite(found.interval_s) else 0.0)
    intervals = np.geomspace(found.best_s / 8, most, 200)
    axes.plot(intervals / 60, [found.at(each) for each in intervals], color=_FORWARD, label="expected")
    drawn = np.geomspace(found.best_s / 8, most, 9)
    simulated = [seconds / found.simulate(seconds, each).mean() for each in drawn]
    axes.plot(drawn / 60, simulated, "o", color=_BACKWARD, label="simulated")
    for name, interval in (("best", found.best_s), ("the recipe's", found.interval_s)):
        if math.isfinite(interval):
            axes.axvline(interval / 60, color="0.6", linestyle="--" if name == "best" else ":", linewidth=1)
            text = f"{name}: {interval / 60:.3g} min, {found.at(interval):.1%}"
            where: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            axes.annotate(text, (interval / 60, 0.02), (3, 0), rotation=90, fontsize=8, **where)
    axes.set(xscale="log", xlabel="minutes of work between two saves", ylabel="goodput")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(frameon=False)
    axes.set_title(title, loc="left", fontsize=10)
    return _save(figure, stem)


def draw_schedule(spec: Spec, path: Path) -> Path:
    """The learning rate, the batch and the changing constants of a run over its tokens. Writes ``path``, PNG or SVG."""
    import matplotlib.pyplot as plt

    _use_style()
    line, marks = samples(spec), turns(spec)
    names = list(marks[0].constants)
    rows = 2 + bool(names)
    ratios = [2.2, 1.3, 1.0][:rows]
    figure, axes = plt.subplots(
        rows, 1, figsize=(9, 1.0 + 1.15 * sum(ratios)), layout="constrained", sharex=True, height_ratios=ratios
    )
    tokens = [moment.tokens / 1e12 for moment in line]
    axes[0].plot(tokens, [moment.lr for moment in line], color=_FORWARD)
    axes[0].set_ylabel("learning rate")
    axes[0].set_ylim(bottom=0)
    axes[0].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes[1].step(tokens, [m.gbs * spec.seq_length / 1e6 for m in line], where="post", color=_BACKWARD)
    axes[1].set_ylabel("batch (M tokens)")
    axes[1].set_ylim(bottom=0)
    for name, color in zip(names, (_WEIGHTS, "#b279a2"), strict=False):
        scale = max(moment.constants[name] for moment in line) or 1.0
        label = f"{name} (at most {scale:g})"
        axes[2].step(tokens, [m.constants[name] / scale for m in line], where="post", color=color, label=label)
    if names:
        axes[2].set_ylabel("of its largest")
        axes[2].set_ylim(-0.08, 1.15)
        axes[2].legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.85), fontsize=9)
    axes[-1].set_xlabel("tokens (trillions)")
    axes[-1].set_xlim(0, tokens[-1])
    figure.suptitle(_schedule_title(spec, marks), x=0.01, ha="left", fontsize=11)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _schedule_title(spec: Spec, marks: list[Moment]) -> str:
    last = marks[-1]
    tokens = (last.tokens + last.gbs * spec.seq_length) / 1e12
    return f"{spec.name}: {tokens:.3g} T tokens in {spec.run.max_steps:,} steps of {spec.seq_length:,}-token sequences"
