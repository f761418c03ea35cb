"""A run in numbers, beside what the planner predicts for it; and those numbers as rows of text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from slipway import planner
from slipway.configs import Spec, gpu_of_device
from slipway.configs.schedule import batches_of
from slipway.launch.cli.quantities import duration, in_tokens
from slipway.launch.runs.read import Run
from slipway.launch.runs.series import GRAD_NORM, LOSS, LR, STEP_TIME, VALIDATION, Series
from slipway.planner.layout import describe_ranks
from slipway.recipes.runtime.run_files import DATA_TIME, PEAK_MEMORY, SAVE_TIME

WARM_UP_STEPS = 3  # compilation, allocator growth and cold caches make the first steps slower than the run
AVERAGED_STEPS = 10  # the last logged values whose mean is a run's final loss, gradient norm and save time
FLOPS_CONVENTION = "model FLOPs, causal attention, no recompute; MFU of the dense peak of the precision's GEMMs"


@dataclass(frozen=True)
class Summary:
    """A run in numbers. Times in seconds, loss in nats per token; None if the run did not record it.

    Step times, data times and peak memory are those of the last start: an earlier one may have had another layout.
    ``goodput`` is the share of the wall time between the first step and the last, queues and restarts included, that
    went into steps which count. An ``_error`` is predicted over measured, less one.
    """

    name: str
    recipe: str
    state: str
    failure: str
    starts: int
    repeated_steps: int
    goodput: float | None
    ranks: int
    gpu: str
    precision: str
    layout: str
    steps: int
    first_loss: float | None
    final_loss: float | None
    validation_loss: float | None
    tokens: int | None
    eta_s: float | None
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
    step_time_error: float | None
    peak_memory_error: float | None


def summarize(run: Run) -> Summary:
    """The numbers of one run. One value per field of :class:`Summary`."""
    spec, record, loss = run.spec, run.record, run.get(LOSS)
    known = spec_as_run(run)
    speed = _speed(run, known)
    peaks = run.of_last_start(PEAK_MEMORY).values
    peak = float(peaks.max()) if len(peaks) else None
    predicted_time, predicted_peak = _predicted(known) if known else (None, None)
    return Summary(
        name=run.name,
        recipe=spec.model.name if spec else "",
        state=run.state,
        failure=run.failure,
        starts=len(run.events.started_at),
        repeated_steps=run.events.repeated_steps,
        goodput=_goodput(run),
        ranks=record.world_size,
        gpu=(known.gpu.name if known else record.device_name) if run.on_gpu else "cpu",
        precision=spec.precision.name if spec else "",
        layout=describe_ranks(spec) if spec else "",
        steps=int(loss.steps[-1]) + 1 if len(loss) else 0,
        first_loss=float(loss.values[0]) if len(loss) else None,
        final_loss=_last(loss),
        validation_loss=_last(run.get(VALIDATION), 1),
        tokens=batches_of(spec).tokens_at(int(loss.steps[-1]) + 1) if spec and len(loss) else None,
        eta_s=_eta(run, speed.step_time_median_s),
        grad_norm=_last(run.get(GRAD_NORM)),
        learning_rate=_last(run.get(LR), 1),
        **asdict(speed),
        flops_convention=FLOPS_CONVENTION,
        peak_memory_gib=peak,
        save_time_s=_last(run.get(SAVE_TIME)),
        checkpoints=len({name.removesuffix("-last") for name in run.checkpoints}),
        checkpoint_gib=run.checkpoint_bytes / 2**30 if run.checkpoint_bytes else None,
        predicted_step_time_s=predicted_time,
        predicted_peak_gib=predicted_peak,
        step_time_error=_error(predicted_time, speed.step_time_median_s),
        peak_memory_error=_error(predicted_peak, peak),
    )


@dataclass(frozen=True)
class _Speed:
    """What of a Summary follows from the times of the last start."""

    step_time_median_s: float | None
    step_time_p90_s: float | None
    tokens_per_s_per_gpu: float | None
    model_tflops_per_gpu: float | None
    mfu: float | None
    data_time_s: float | None


def _speed(run: Run, known: Spec | None) -> _Speed:
    times = _times_of_last_batch(run)
    waits = run.of_last_start(DATA_TIME, WARM_UP_STEPS).values
    median = float(np.median(times)) if len(times) else None
    tokens_per_s = tflops = mfu = None
    if run.spec and median:
        tokens_per_s = _last_batch(run, run.spec) * run.spec.seq_length / median / run.record.world_size
        if run.on_gpu:
            tflops = tokens_per_s * planner.model_flops_per_token(run.spec) / 1e12
    if known and tflops:
        mfu = tflops / planner.peak_tflops(known)
    slow = float(np.percentile(times, 90)) if len(times) else None
    waited = float(np.median(waits)) if len(waits) else None
    return _Speed(median, slow, tokens_per_s, tflops, mfu, waited)


def _last_batch(run: Run, spec: Spec) -> int:
    """The batch of the last step that the run logged, in sequences: less than layout.gbs inside a ramp."""
    steps = run.get(STEP_TIME).steps
    batches = batches_of(spec)
    return batches.of_tokens(batches.tokens_at(int(steps[-1]))) if len(steps) else spec.layout.gbs


def _times_of_last_batch(run: Run) -> np.ndarray:
    """The step times since the last start, of the steps whose batch is that of the last step."""
    series = run.of_last_start(STEP_TIME, WARM_UP_STEPS)
    if run.spec is None or not run.spec.optim.batch_ramp or not len(series):
        return series.values
    tokens = np.array(batches_of(run.spec).tokens_of_steps(series.steps))
    return series.values[tokens == tokens[-1]]


def spec_as_run(run: Run) -> Spec | None:
    """The run's spec with the GPU and the batch that it ran with last instead of those that it was planned for.

    None without a record, on a CPU, and on a GPU that is not in configs/gpu: its peak and its speed are not known.
    """
    if run.spec is None or not run.on_gpu:
        return None
    spec = replace(run.spec, layout=replace(run.spec.layout, gbs=_last_batch(run, run.spec)))
    spec = replace(spec, optim=replace(spec.optim, batch_ramp=[]))
    if not run.record.device_name:  # a record of an earlier version does not name it
        return spec
    gpu = gpu_of_device(run.record.device_name)
    return replace(spec, gpu=gpu) if gpu else None


def _predicted(spec: Spec) -> tuple[float | None, float | None]:
    """The planner's step time in seconds and allocator peak in GiB."""
    verdict = planner.check(spec)
    time, memory = verdict.time, verdict.memory
    return time.step_time_s if time else None, memory.peak_gib if memory else None


def _eta(run: Run, step_s: float | None) -> float | None:
    """Seconds until a run that runs has done its steps."""
    loss = run.get(LOSS)
    if run.state != "running" or run.spec is None or not step_s:
        return None
    return (run.spec.run.max_steps - 1 - int(loss.steps[-1])) * step_s


def _error(predicted: float | None, measured: float | None) -> float | None:
    return predicted / measured - 1 if predicted and measured else None


def _last(series: Series, count: int = AVERAGED_STEPS) -> float | None:
    return float(np.mean(series.values[-count:])) if len(series) else None


def _goodput(run: Run) -> float | None:
    loss, times = run.get(LOSS), run.get(STEP_TIME)
    if len(loss) < 2 or not len(times):
        return None
    elapsed = float(loss.wall_time.max() - loss.wall_time.min())
    _, counted, _ = np.intersect1d(times.steps, loss.steps[1:], return_indices=True)
    return min(1.0, float(times.values[counted].sum()) / elapsed) if elapsed > 0 else None


BYTES, SECONDS, TOKENS = "GiB", "seconds", "tokens"  # forms of a Quantity whose unit depends on its value
LEAST_GIB = 0.1  # below, sizes are in MiB


@dataclass(frozen=True)
class Quantity:
    """One row or column of a table: its label, its field of Summary, and its format."""

    label: str
    field: str
    form: str = "{}"

    def text(self, values: dict[str, Any]) -> str:
        """The value as text; empty if it was not recorded."""
        value = values[self.field]
        if value in (None, ""):
            return ""
        if self.form == BYTES:
            return f"{value:.3g} GiB" if value >= LEAST_GIB else f"{value * 1024:.3g} MiB"
        if self.form == SECONDS:
            return duration(value)
        return in_tokens(value) if self.form == TOKENS else self.form.format(value)


ROWS = (
    Quantity("recipe", "recipe"),
    Quantity("state", "state"),
    Quantity("failed", "failure"),
    Quantity("ranks", "ranks"),
    Quantity("hardware", "gpu"),
    Quantity("precision", "precision"),
    Quantity("layout", "layout"),
    Quantity("steps", "steps"),
    Quantity("starts", "starts"),
    Quantity("steps trained again after a restart", "repeated_steps"),
    Quantity("goodput: wall time in steps that count", "goodput", "{:.1%}"),
    Quantity("first loss", "first_loss", "{:.4f}"),
    Quantity("final loss (mean of last 10)", "final_loss", "{:.4f}"),
    Quantity("validation loss, the last", "validation_loss", "{:.4f}"),
    Quantity("tokens trained", "tokens", TOKENS),
    Quantity("time to the last step", "eta_s", SECONDS),
    Quantity("gradient norm", "grad_norm", "{:.3f}"),
    Quantity("learning rate", "learning_rate", "{:.3g}"),
    Quantity("step time, median", "step_time_median_s", "{:.3f} s"),
    Quantity("step time, 90th percentile", "step_time_p90_s", "{:.3f} s"),
    Quantity("tokens/s per rank", "tokens_per_s_per_gpu", "{:,.0f}"),
    Quantity("model TFLOP/s per GPU (causal attention, no recompute)", "model_tflops_per_gpu", "{:.1f}"),
    Quantity("MFU, of the dense peak of the precision", "mfu", "{:.1%}"),
    Quantity("peak memory", "peak_memory_gib", BYTES),
    Quantity("checkpoint save", "save_time_s", "{:.2f} s"),
    Quantity("checkpoint size", "checkpoint_gib", BYTES),
    Quantity("waiting for data", "data_time_s", "{:.4f} s per step"),
    Quantity("checkpoints kept", "checkpoints"),
    Quantity("predicted step time", "predicted_step_time_s", "{:.3f} s"),
    Quantity("step time, predicted against measured", "step_time_error", "{:+.1%}"),
    Quantity("predicted peak memory", "predicted_peak_gib", BYTES),
    Quantity("peak memory, predicted against measured", "peak_memory_error", "{:+.1%}"),
)
OF_RESTARTS = ("starts", "repeated_steps")  # shown only for a run that was started more than once

COLUMNS = (
    Quantity("run", "name"),
    Quantity("loss", "final_loss", "{:.3f}"),
    Quantity("tokens/s", "tokens_per_s_per_gpu", "{:,.0f}"),  # per rank
    Quantity("state", "state"),
    Quantity("steps", "steps"),
    Quantity("hardware", "gpu"),
    Quantity("precision", "precision"),
    Quantity("layout", "layout"),
    Quantity("step s", "step_time_median_s", "{:.3f}"),
    Quantity("MFU", "mfu", "{:.1%}"),
    Quantity("GiB", "peak_memory_gib", "{:.1f}"),
    Quantity("pred. s", "predicted_step_time_s", "{:.3f}"),
)


def table(summary: Summary) -> list[tuple[str, str]]:
    """The summary as rows of label and text; what was not recorded is left out."""
    values = asdict(summary)
    rows = [row for row in ROWS if summary.starts > 1 or row.field not in OF_RESTARTS]
    return [(row.label, text) for row in rows if (text := row.text(values))]


def overview(summaries: list[Summary]) -> list[list[str]]:
    """A table of runs, its head first. A column that no run fills is left out."""
    values = [asdict(summary) for summary in summaries]
    columns = [column for column in COLUMNS if any(column.text(of_run) for of_run in values)]
    return [[column.label for column in columns], *([c.text(of_run) for c in columns] for of_run in values)]
