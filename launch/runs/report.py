"""``slipway report``: what a run did, from its own records, beside what was predicted."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from slipway import planner
from slipway.configs import Spec, gpu_of_device
from slipway.launch.runs import page
from slipway.launch.runs.read import GRAD_NORM, LOSS, LR, STEP_TIME, Run, Series
from slipway.planner.layout import describe_ranks
from slipway.recipes.runtime.run_files import DATA_TIME, PEAK_MEMORY, SAVE_TIME

WARM_UP_STEPS = 3  # compilation, allocator growth and cold caches are not the run's speed


@dataclass(frozen=True)
class Summary:
    """A run in numbers. Times in seconds, loss in nats per token; None where the run did not record it.

    Step and data times and peak memory are of the last start: an earlier one may have had another layout.
    """

    name: str
    recipe: str
    state: str
    failure: str
    starts: int
    repeated_steps: int
    goodput: (
        float | None
    )  # of the wall time between the first step and the last, queues and restarts included: in steps that count
    ranks: int
    gpu: str
    precision: str
    layout: str
    steps: int
    first_loss: float | None
    final_loss: float | None
    grad_norm: float | None
    learning_rate: float | None
    step_time_median_s: float | None
    step_time_p90_s: float | None
    tokens_per_s_per_gpu: float | None
    model_tflops_per_gpu: float | None
    mfu: float | None
    flops_convention: str
    peak_memory_gib: float | None
    save_time_s: float | None
    data_time_s: float | None
    checkpoints: int
    checkpoint_gib: float | None
    predicted_step_time_s: float | None
    predicted_peak_gib: float | None
    step_time_error: float | None  # predicted over measured, less one
    peak_memory_error: float | None


def _last(series: Series, count: int = 10) -> float | None:
    return float(np.mean(series.values[-count:])) if len(series) else None


def _goodput(run: Run) -> float | None:
    loss, times = run.get(LOSS), run.get(STEP_TIME)
    if len(loss) < 2 or not len(times):
        return None
    elapsed = float(loss.wall_time.max() - loss.wall_time.min())
    _, counted, _ = np.intersect1d(times.steps, loss.steps[1:], return_indices=True)
    return min(1.0, float(times.values[counted].sum()) / elapsed) if elapsed > 0 else None


def _error(predicted: float | None, measured: float | None) -> float | None:
    return predicted / measured - 1 if predicted and measured else None


def as_run(run: Run) -> Spec | None:
    """The run's spec with the GPU that it ran on in place of the one it was planned for.

    None without a record, on a CPU, and on a GPU that is not in configs/gpu: its peak and its speed are not known.
    """
    if run.spec is None or not run.on_gpu:
        return None
    if not run.device_name:  # not yet kept by the version that trained it
        return run.spec
    gpu = gpu_of_device(run.device_name)
    return replace(run.spec, gpu=gpu) if gpu else None


def summarize(run: Run) -> Summary:
    """The numbers of one run."""
    spec, known = run.spec, as_run(run)
    times = run.of_last_start(STEP_TIME, WARM_UP_STEPS).values
    waits, peaks = run.of_last_start(DATA_TIME, WARM_UP_STEPS).values, run.of_last_start(PEAK_MEMORY).values
    median = float(np.median(times)) if len(times) else None
    tokens_rate = spec.batch.tokens / median / run.world_size if spec and median else None
    flops_rate = mfu = predicted_time = predicted_peak = None
    if spec and run.on_gpu and tokens_rate:
        flops_rate = tokens_rate * planner.model_flops_per_token(spec) / 1e12
    if known is not None:
        mfu = flops_rate / planner.peak_tflops(known) if flops_rate else None
        verdict = planner.check(known)
        predicted_time = verdict.time.step_time_s if verdict.time else None
        predicted_peak = verdict.memory.peak_gib if verdict.memory else None
    loss = run.get(LOSS)
    peak = float(peaks.max()) if len(peaks) else None
    return Summary(
        name=run.name,
        recipe=spec.model.name if spec else "",
        state=run.state,
        failure=run.failure,
        starts=len(run.started_at),
        repeated_steps=run.repeated_steps,
        goodput=_goodput(run),
        ranks=run.world_size,
        gpu=(known.gpu.name if known else run.device_name) if run.on_gpu else "cpu",
        precision=spec.precision.name if spec else "",
        layout=describe_ranks(spec) if spec else "",
        steps=int(loss.steps[-1]) + 1 if len(loss) else 0,
        first_loss=float(loss.values[0]) if len(loss) else None,
        final_loss=_last(loss),
        grad_norm=_last(run.get(GRAD_NORM)),
        learning_rate=_last(run.get(LR), 1),
        step_time_median_s=median,
        step_time_p90_s=float(np.percentile(times, 90)) if len(times) else None,
        tokens_per_s_per_gpu=tokens_rate,
        model_tflops_per_gpu=flops_rate,
        mfu=mfu,
        flops_convention="model FLOPs, causal attention, no recompute; MFU of the dense peak of the precision's GEMMs",
        peak_memory_gib=peak,
        save_time_s=_last(run.get(SAVE_TIME)),
        data_time_s=float(np.median(waits)) if len(waits) else None,
        checkpoints=len([c for c in run.checkpoints if not c.endswith("-last")]),
        checkpoint_gib=run.checkpoint_bytes / 2**30 if run.checkpoint_bytes else None,
        predicted_step_time_s=predicted_time,
        predicted_peak_gib=predicted_peak,
        step_time_error=_error(predicted_time, median),
        peak_memory_error=_error(predicted_peak, peak),
    )


ROWS: tuple[tuple[str, str, str], ...] = (
    ("recipe", "recipe", "{}"),
    ("state", "state", "{}"),
    ("failed", "failure", "{}"),
    ("ranks", "ranks", "{}"),
    ("hardware", "gpu", "{}"),
    ("precision", "precision", "{}"),
    ("layout", "layout", "{}"),
    ("steps", "steps", "{}"),
    ("starts", "starts", "{}"),
    ("steps trained again after a restart", "repeated_steps", "{}"),
    ("goodput: wall time in steps that count", "goodput", "{:.1%}"),
    ("first loss", "first_loss", "{:.4f}"),
    ("final loss (mean of last 10)", "final_loss", "{:.4f}"),
    ("gradient norm", "grad_norm", "{:.3f}"),
    ("learning rate", "learning_rate", "{:.3g}"),
    ("step time, median", "step_time_median_s", "{:.3f} s"),
    ("step time, 90th percentile", "step_time_p90_s", "{:.3f} s"),
    ("tokens/s per rank", "tokens_per_s_per_gpu", "{:,.0f}"),
    ("model TFLOP/s per GPU (causal attention, no recompute)", "model_tflops_per_gpu", "{:.1f}"),
    ("MFU, of the dense peak of the precision", "mfu", "{:.1%}"),
    ("peak memory", "peak_memory_gib", "{:.2f} GiB"),
    ("checkpoint save", "save_time_s", "{:.2f} s"),
    ("checkpoint size", "checkpoint_gib", "{:.3g} GiB"),
    ("waiting for data", "data_time_s", "{:.4f} s a step"),
    ("checkpoints kept", "checkpoints", "{}"),
    ("predicted step time", "predicted_step_time_s", "{:.3f} s"),
    ("step time, predicted against measured", "step_time_error", "{:+.1%}"),
    ("predicted peak memory", "predicted_peak_gib", "{:.2f} GiB"),
    ("peak memory, predicted against measured", "peak_memory_error", "{:+.1%}"),
)


def table(summary: Summary) -> list[tuple[str, str]]:
    """The summary's rows as label and text, what was not recorded left out."""
    values = asdict(summary)
    shown = [row for row in ROWS if values[row[1]] not in (None, "")]
    if summary.starts < 2:
        shown = [row for row in shown if row[1] not in ("starts", "repeated_steps")]
    return [(label, form.format(values[key])) for label, key, form in shown]


def _draw_loss(runs: list[Run], entropy: float | None = None) -> Any:
    figure, axes = page.figure()
    for i, run in enumerate(run for run in runs if len(run.get(LOSS))):
        loss = run.get(LOSS)
        page.curve(axes, loss.steps, loss.values, run.name, f"C{i}")
    if entropy:
        axes.axhline(entropy, color="0.5", linestyle="--", linewidth=1)
        axes.annotate(
            "unigram entropy of the corpus",
            (1, entropy),
            xycoords=("axes fraction", "data"),
            xytext=(0, 4),
            textcoords="offset points",
            color="0.4",
            ha="right",
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(frameon=False)
    return figure


def draw_times(runs: list[Run]) -> Any:
    figure, axes = page.figure(height=2.8)
    for run in runs:
        times = run.get(STEP_TIME)
        if len(times):
            axes.plot(times.steps, times.values, linewidth=1, label=run.name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("step time (s)")
    return figure


def write_report(run: Run, summary: Summary, out: Path, entropy: float | None = None) -> list[Path]:
    """Write loss.png, report.html and report.json of one run into ``out``. Returns their paths."""
    ranks = f"{summary.ranks} rank{'s' if summary.ranks > 1 else ''} ({summary.gpu})"
    lead = f"{summary.recipe or run.name}: {summary.steps} steps on {', '.join(filter(None, (ranks, summary.layout)))}; {summary.state}."
    body = "{picture}<h2>Numbers</h2>" + page.table(table(summary)) + "<h2>Step time</h2>" + page.svg(draw_times([run]))
    return page.write(
        out, "report", ("loss.png", _draw_loss([run], entropy)), f"Run {run.name}", lead, body, page.as_json(summary)
    )


OVERVIEW: tuple[tuple[str, str, str], ...] = (
    ("run", "name", "{}"),
    ("state", "state", "{}"),
    ("hardware", "gpu", "{}"),
    ("precision", "precision", "{}"),
    ("layout", "layout", "{}"),
    ("steps", "steps", "{}"),
    ("loss", "final_loss", "{:.4f}"),
    ("step s", "step_time_median_s", "{:.3f}"),
    ("tokens/s", "tokens_per_s_per_gpu", "{:,.0f}"),  # per rank
    ("MFU", "mfu", "{:.1%}"),
    ("GiB", "peak_memory_gib", "{:.1f}"),
    ("pred. s", "predicted_step_time_s", "{:.3f}"),
)


def overview(summaries: list[Summary]) -> list[list[str]]:
    """A table of runs, its head first: the columns that any of them fills."""
    values = [asdict(s) for s in summaries]
    columns = [c for c in OVERVIEW if any(v[c[1]] not in (None, "") for v in values)]
    body = [[form.format(v[key]) if v[key] not in (None, "") else "" for _, key, form in columns] for v in values]
    return [[head for head, _, _ in columns], *body]


def write_overview(runs: list[Run], summaries: list[Summary], reports: list[Path], out: Path) -> list[Path]:
    """Write runs.png, runs.html and runs.json of several runs into ``out``; ``reports`` are their own pages. Returns the paths."""
    head, *rows = overview(summaries)
    failed = sum(s.state == "failed" for s in summaries)
    lead = f"{len(runs)} runs" + (f", {failed} of them failed." if failed else ".")
    body = page.table(rows, head, [os.path.relpath(own, out) for own in reports]) + "{picture}"
    return page.write(
        out, "runs", ("runs.png", _draw_loss(runs)), "Runs", lead, body, [page.as_json(s) for s in summaries]
    )
