"""``slipway report`` and ``slipway compare``: what a run did, from its own records, beside what was predicted."""

from __future__ import annotations

import html
import io
import json
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import planner
from configs import Refusal, Spec, gpu_of_device
from launch.runs import GRAD_NORM, LOSS, LR, STEP_TIME, Run, Series
from recipes.run_files import DATA_TIME, PEAK_MEMORY, SAVE_TIME

WARM_UP_STEPS = 3  # compilation, allocator growth and cold caches are not the run's speed


@dataclass(frozen=True)
class Summary:
    """A run in numbers. Times in seconds, loss in nats per token; None where the run did not record it."""

    name: str
    recipe: str
    state: str
    failure: str
    starts: int
    repeated_steps: int
    goodput: float | None  # of the wall time between the first step and the last, queues and restarts included: in steps that count
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


def smooth(values: np.ndarray, reach: int = 15) -> np.ndarray:
    """Mean of each value with up to ``reach`` on either side, always as many before as after: it lags behind nothing.

    Values that are not finite are left out, and leave a gap where there is nothing else.
    """
    at = np.arange(len(values))
    k = np.minimum(reach, np.minimum(at, at[::-1]))
    finite = np.isfinite(values)

    def windows(v: np.ndarray) -> np.ndarray:
        sums = np.concatenate(([0.0], np.cumsum(v)))
        return sums[at + k + 1] - sums[at - k]

    with np.errstate(invalid="ignore"):
        return windows(np.where(finite, values, 0.0)) / windows(finite)


def _last(series: Series, count: int = 10) -> float | None:
    return float(np.mean(series.values[-count:])) if len(series) else None


def _settled(series: Series) -> np.ndarray:
    """Values without the warm-up: the first steps of the run, and of each resume."""
    if len(series) <= WARM_UP_STEPS:
        return series.values
    return series.values[WARM_UP_STEPS:]


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


def describe_layout(spec: Spec) -> str:
    lay = spec.layout
    parts = [f"{k.upper()}{v}" for k, v in (("tp", lay.tp), ("pp", lay.pp), ("vpp", lay.vpp), ("cp", lay.cp), ("ep", lay.ep)) if v > 1]
    if lay.etp:
        parts.append(f"ETP{lay.etp}")
    if spec.dp > 1:
        parts.append(f"DP{spec.dp}")
    if lay.fsdp.value != "none":
        parts.append("FSDP")
    return " ".join(parts) or "one rank"


def summarize(run: Run) -> Summary:
    """The numbers of one run."""
    spec, known = run.spec, as_run(run)
    times = _settled(run.get(STEP_TIME))
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
    peak = float(run.get(PEAK_MEMORY).values.max()) if len(run.get(PEAK_MEMORY)) else None
    return Summary(
        name=run.name,
        recipe=spec.model.name if spec else "",
        state=run.state,
        failure=run.failure,
        starts=run.starts,
        repeated_steps=run.repeated_steps,
        goodput=_goodput(run),
        ranks=run.world_size,
        gpu=(known.gpu.name if known else run.device_name) if run.on_gpu else "cpu",
        precision=spec.precision.name if spec else "",
        layout=describe_layout(spec) if spec else "",
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
        data_time_s=float(np.median(_settled(run.get(DATA_TIME)))) if len(run.get(DATA_TIME)) else None,
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


def as_json(value: Summary | Comparison) -> dict[str, Any]:
    """Plain data that every reader of JSON takes: what is not finite is null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(value).items()}


def table(summary: Summary) -> list[tuple[str, str]]:
    """The summary's rows as label and text, what was not recorded left out."""
    values = asdict(summary)
    shown = [row for row in ROWS if values[row[1]] not in (None, "")]
    if summary.starts < 2:
        shown = [row for row in shown if row[1] not in ("starts", "repeated_steps")]
    return [(label, form.format(values[key])) for label, key, form in shown]


def _figure(width: float = 7.0, height: float = 4.0, **subplots: Any) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"})
    return plt.subplots(figsize=(width, height), layout="constrained", **subplots)


def _draw_loss(runs: list[Run], entropy: float | None = None) -> Any:
    figure, axes = _figure()
    for run in runs:
        loss = run.get(LOSS)
        if not len(loss):
            continue
        (line,) = axes.plot(loss.steps, loss.values, linewidth=0.7, alpha=0.35)
        axes.plot(loss.steps, smooth(loss.values), color=line.get_color(), linewidth=1.8, label=run.name)
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


def _draw_comparison(a: Run, b: Run, aligned: Aligned, result: Comparison) -> Any:
    """Both losses, and below them what B's differs from A's by, with the noise of the mean that is reported."""
    figure, (top, bottom) = _figure(height=5.6, nrows=2, sharex=True, height_ratios=[2, 1])
    for name, values in ((a.name, aligned.a), (b.name, aligned.b)):
        (line,) = top.plot(aligned.x, values, linewidth=0.7, alpha=0.35)
        top.plot(aligned.x, smooth(values), color=line.get_color(), linewidth=1.8, label=name)
    top.set_ylabel("loss (nats per token)")
    top.legend(frameon=False)
    percent = 100 * (aligned.b / aligned.a - 1)
    half = len(percent) // 2
    mean, noise = 100 * result.loss_difference, 100 * result.loss_noise
    bottom.axhline(0, color="0.5", linewidth=1)
    bottom.plot(aligned.x, smooth(percent), color=line.get_color(), linewidth=1.2)
    bottom.fill_between(aligned.x[half:], mean - noise, mean + noise, color="0.5", alpha=0.25, linewidth=0)
    bottom.set_ylabel("difference (%)")
    bottom.set_xlabel(aligned.by if aligned.by == "step" else "tokens (millions)")
    return figure


def _draw_times(runs: list[Run]) -> Any:
    figure, axes = _figure(height=2.8)
    for run in runs:
        times = run.get(STEP_TIME)
        if len(times):
            axes.plot(times.steps, times.values, linewidth=1, label=run.name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("step time (s)")
    return figure


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    import matplotlib.pyplot as plt

    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light; }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 60rem; padding: 1rem; }}
h1 {{ font-size: 1.4rem; margin: .5rem 0; }} h2 {{ font-size: 1.1rem; margin: 1.5rem 0 .5rem; }}
p.lead {{ margin: .25rem 0 1rem; color: #444; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
.wide {{ overflow-x: auto; }}
td, th {{ text-align: left; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid #e3e3e3; vertical-align: top; }}
svg {{ width: 100%; height: auto; display: block; }}
</style></head><body><h1>{title}</h1><p class="lead">{lead}</p>{body}</body></html>
"""


def _rows_html(rows: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in rows)
    return f"<table>{cells}</table>"


def write_report(run: Run, out: Path, entropy: float | None = None) -> list[Path]:
    """Write loss.png, report.html and report.json of one run into ``out``. Returns their paths."""
    summary = summarize(run)
    _make(out)
    figure = _draw_loss([run], entropy)
    png = out / "loss.png"
    figure.savefig(png, dpi=150)
    ranks = f"{summary.ranks} rank{'s' if summary.ranks > 1 else ''} ({summary.gpu})"
    lead = f"{summary.recipe or run.name}: {summary.steps} steps on {', '.join(filter(None, (ranks, summary.layout)))}; {summary.state}."
    body = _svg(figure) + "<h2>Numbers</h2>" + _rows_html(table(summary)) + "<h2>Step time</h2>" + _svg(_draw_times([run]))
    page = out / "report.html"
    page.write_text(_PAGE.format(title=html.escape(f"Run {run.name}"), lead=html.escape(lead), body=body))
    data = out / "report.json"
    data.write_text(json.dumps(as_json(summary), indent=1))
    return [png, page, data]


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


def write_overview(runs: list[Run], pages: list[Path], out: Path) -> list[Path]:
    """Write runs.png, runs.html and runs.json of several runs into ``out``; ``pages`` are their own reports. Returns the paths."""
    summaries = [summarize(run) for run in runs]
    _make(out)
    figure = _draw_loss(runs)
    png, page, data = out / "runs.png", out / "runs.html", out / "runs.json"
    figure.savefig(png, dpi=150)
    head, *rows = overview(summaries)
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    for row, own in zip(rows, pages, strict=True):
        link = html.escape(os.path.relpath(own, out))
        lines.append(f'<td><a href="{link}">{html.escape(row[0])}</a></td>' + "".join(f"<td>{html.escape(c)}</td>" for c in row[1:]))
    body = f'<div class="wide"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>' + _svg(figure)
    failed = sum(s.state == "failed" for s in summaries)
    lead = f"{len(runs)} runs" + (f", {failed} of them failed." if failed else ".")
    page.write_text(_PAGE.format(title="Runs", lead=lead, body=body))
    data.write_text(json.dumps([as_json(s) for s in summaries], indent=1))
    return [png, page, data]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"{folder} cannot be made: {error.strerror}", "Give an --out that you may write to.") from None


@dataclass(frozen=True)
class Comparison:
    """Run B against run A. ``speed_up`` above 1: B is faster per token. Loss difference is relative, B over A."""

    a: str
    b: str
    speed_up: float | None
    loss_difference: float
    loss_noise: float  # two standard errors
    aligned_by: str
    compared: int
    sentence: str


@dataclass(frozen=True)
class Aligned:
    """Two losses at the same points, which are steps or millions of tokens."""

    by: str
    x: np.ndarray
    a: np.ndarray
    b: np.ndarray


def _tokens(run: Run) -> np.ndarray | None:
    loss = run.get(LOSS)
    return (loss.steps + 1) * float(run.spec.batch.tokens) if run.spec else None


def loss_difference(a: np.ndarray, b: np.ndarray, blocks: int = 10) -> tuple[float, float]:
    """Relative difference of the later half of two aligned loss curves, and two standard errors of it.

    Neighbouring steps are correlated; the error is that of block means (Flyvbjerg and Petersen 1989).
    """
    half = len(a) // 2
    ratio = np.log(b[half:]) - np.log(a[half:])
    count = min(blocks, len(ratio))
    means = np.array([chunk.mean() for chunk in np.array_split(ratio, count)])
    error = float(means.std(ddof=1) / math.sqrt(count)) if count > 1 else math.inf
    return float(math.expm1(ratio.mean())), 2 * error


def align(a: Run, b: Run) -> Aligned:
    """The losses of two runs at the same points: of tokens where their batches differ, else of steps.

    Raises:
        Refusal: too few common steps.
    """
    la, lb = a.get(LOSS), b.get(LOSS)
    ta, tb = _tokens(a), _tokens(b)
    if ta is not None and tb is not None and a.spec and b.spec and a.spec.batch.tokens != b.spec.batch.tokens:
        grid = ta[(ta >= tb[0]) & (ta <= tb[-1])] if len(tb) else np.zeros(0)
        out = Aligned("tokens", grid / 1e6, np.interp(grid, ta, la.values), np.interp(grid, tb, lb.values))
    else:
        steps, ia, ib = np.intersect1d(la.steps, lb.steps, return_indices=True)
        out = Aligned("step", steps, la.values[ia], lb.values[ib])
    if len(out.x) < 4:
        raise Refusal(f"{a.path} and {b.path} have {len(out.x)} steps in common", "At least 4 are needed to compare them.")
    return out


def compare(a: Run, b: Run) -> Comparison:
    """Align two runs and weigh speed and loss; a Refusal where they have too little in common."""
    aligned = align(a, b)
    broken = [run.name for run, loss in ((a, aligned.a), (b, aligned.b)) if not np.isfinite(loss).all()]
    if broken:
        raise Refusal(f"the loss of {' and of '.join(broken)} is not finite at every step", "slipway report RUN shows where it breaks.")
    difference, noise = loss_difference(aligned.a, aligned.b)
    sa, sb = summarize(a), summarize(b)
    speed = sb.tokens_per_s_per_gpu / sa.tokens_per_s_per_gpu if sa.tokens_per_s_per_gpu and sb.tokens_per_s_per_gpu else None
    seen = "no difference seen" if abs(difference) <= noise else ("its loss is lower" if difference < 0 else "its loss is higher")
    faster = f"{b.name} is {speed:.2f}x as fast as {a.name}; " if speed else ""
    sentence = f"{faster}its loss differs by {difference:+.2%} +- {noise:.2%}: {seen}."
    return Comparison(a.name, b.name, speed, difference, noise, aligned.by, len(aligned.x), sentence)


def write_comparison(a: Run, b: Run, out: Path) -> tuple[Comparison, list[Path]]:
    """Write compare.png, compare.html and compare.json into ``out``."""
    result = compare(a, b)
    _make(out)
    figure = _draw_comparison(a, b, align(a, b), result)
    png = out / "compare.png"
    figure.savefig(png, dpi=150)
    sa, sb = dict(table(summarize(a))), dict(table(summarize(b)))
    labels = [label for label, _, _ in ROWS if label in sa or label in sb]
    cells = "".join(
        f"<tr><td>{html.escape(x)}</td><td>{html.escape(sa.get(x, ''))}</td><td>{html.escape(sb.get(x, ''))}</td></tr>" for x in labels
    )
    head = f"<tr><th></th><th>{html.escape(a.name)}</th><th>{html.escape(b.name)}</th></tr>"
    body = (
        _svg(figure) + f'<h2>Numbers</h2><div class="wide"><table>{head}{cells}</table></div><h2>Step time</h2>' + _svg(_draw_times([a, b]))
    )
    page = out / "compare.html"
    page.write_text(_PAGE.format(title=html.escape(f"{a.name} against {b.name}"), lead=html.escape(result.sentence), body=body))
    data = out / "compare.json"
    data.write_text(json.dumps(as_json(result), indent=1))
    return result, [png, page, data]
