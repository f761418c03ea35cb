"""``slipway validate``: predict published runs and compare with what was measured."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slipway.configs.stack import MemoryFigure, Stack
from slipway.planner.calibration import calibration_or_nearest
from slipway.planner.memory import Memory, memory
from slipway.planner.published.rows import Row, interpret, stated_rate
from slipway.planner.published.table import read_rows, stated
from slipway.planner.time.step import step_time

GB_IN_GIB = 1e9 / 2**30
CLOSE = 0.10  # relative error that counts as a hit in within_10pct
ADDED = ("predicted_step_time_s", "predicted_tokens_per_s_per_gpu", "predicted_peak_gib", "skipped")


@dataclass(frozen=True)
class Predicted:
    """One row with its prediction; the measured values are None where the row does not state them."""

    row: dict[str, str]
    read: Row
    step_time_s: float | None
    tokens_per_s_per_gpu: float | None
    peak_gib: float | None
    measured_tokens_per_s_per_gpu: float | None
    measured_peak_gib: float | None

    @property
    def speed_error(self) -> float | None:
        """predicted / measured - 1 of tokens/s; None without a prediction or a measurement."""
        if self.tokens_per_s_per_gpu is None or not self.measured_tokens_per_s_per_gpu:
            return None
        return self.tokens_per_s_per_gpu / self.measured_tokens_per_s_per_gpu - 1

    @property
    def memory_error(self) -> float | None:
        """predicted / measured - 1 of peak memory; None without a prediction or a measurement."""
        if self.peak_gib is None or not self.measured_peak_gib:
            return None
        return self.peak_gib / self.measured_peak_gib - 1


def _measured(row: dict[str, str], read: Row) -> tuple[float | None, float | None]:
    """Tokens/s per GPU and peak memory in GiB that the row states; None where it does not."""
    rate = (stated_rate(row, read.spec) if read.spec else stated(row, "tokens_per_s_per_gpu")) or None
    peak = stated(row, "peak_mem_gb") or None
    if peak is not None and "mem_unit=GiB" not in row.get("notes", ""):
        peak *= GB_IN_GIB
    return rate, peak


def _memory_figure(row: Mapping[str, str], stack: Stack) -> MemoryFigure:
    """Which memory figure the row states: its notes come before what its stack prints."""
    notes = row.get("notes", "")
    if "nvidia-smi" in notes:
        return MemoryFigure.device
    if "peak_memory_usage" in notes:  # a key of dgxc-benchmarking's logs
        return MemoryFigure.reserved
    return stack.memory_figure


def _as_reported(figure: MemoryFigure, predicted: Memory) -> float:
    """The predicted value of ``figure``, GiB."""
    if figure is MemoryFigure.device:
        return predicted.needed_gib
    if figure is MemoryFigure.reserved:
        return predicted.reserved_gib
    if figure is MemoryFigure.last_stage:
        return predicted.stages[-1].total_gib
    return predicted.peak_gib


def predict(rows: Sequence[dict[str, str]]) -> list[Predicted]:
    """Every row, with a prediction where it can be modelled."""
    out: list[Predicted] = []
    for row, read in zip(rows, interpret(rows), strict=True):
        rate, peak = _measured(row, read)
        if read.spec is None:
            out.append(Predicted(row, read, None, None, None, rate, peak))
            continue
        constants = calibration_or_nearest(read.spec.gpu, read.software)
        time = step_time(read.spec, constants)
        memory_gib = _as_reported(_memory_figure(row, read.stack), memory(read.spec, constants))
        out.append(Predicted(row, read, time.step_time_s, time.tokens_per_s_per_gpu, memory_gib, rate, peak))
    return out


def write(path: Path, predicted: Sequence[Predicted]) -> None:
    """Write the rows to a CSV with the columns of :data:`ADDED` appended. The write is atomic."""
    fields = [*predicted[0].row, *ADDED]
    temporary = path.with_suffix(path.suffix + ".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(fields)))
        writer.writeheader()
        for p in predicted:
            values = (p.step_time_s, p.tokens_per_s_per_gpu, p.peak_gib)
            cells = ["" if value is None else f"{value:.6g}" for value in values]
            writer.writerow(p.row | dict(zip(ADDED, [*cells, p.read.skipped], strict=True)))
    temporary.replace(path)


def statistics(errors: Sequence[float]) -> dict[str, Any]:
    """Count, mean and median absolute value, and share within 10 %, of relative errors."""
    ape = np.abs(np.asarray(errors))
    if not len(ape):
        return {"rows": 0, "mape": None, "median_ape": None, "within_10pct": None}
    return {
        "rows": len(ape),
        "mape": float(ape.mean()),
        "median_ape": float(np.median(ape)),
        "within_10pct": float(np.mean(ape <= CLOSE)),
    }


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation; ties get their mean rank. NaN where one side is constant."""

    def ranks(values: Sequence[float]) -> np.ndarray:
        _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        return (ends - (counts - 1) / 2.0)[inverse]

    ra, rb = ranks(a), ranks(b)
    if ra.std() == 0 or rb.std() == 0:
        return math.nan
    return float(np.corrcoef(ra, rb)[0, 1])


def summarize(predicted: Sequence[Predicted]) -> dict[str, Any]:
    """What ``slipway validate --json`` prints. Errors are fractions, not percent."""
    groups: dict[str, list[Predicted]] = defaultdict(list)
    for p in predicted:
        groups[p.read.group or "unnamed source"].append(p)
    speed = [p.speed_error for p in predicted if p.speed_error is not None]
    peak = [p.memory_error for p in predicted if p.memory_error is not None]
    reasons: dict[str, int] = defaultdict(int)
    for p in predicted:
        if p.read.skipped:
            reasons[p.read.skipped] += 1
    return {
        "rows": len(predicted),
        "modelled": sum(p.read.spec is not None for p in predicted),
        **{k: v for k, v in statistics(speed).items() if k != "rows"},
        "compared": len(speed),
        "memory": statistics(peak),
        "groups": {
            name: statistics([p.speed_error for p in ps if p.speed_error is not None])
            | {"skipped": sum(bool(p.read.skipped) for p in ps)}
            for name, ps in sorted(groups.items())
        },
        "skipped": dict(sorted(reasons.items(), key=lambda item: -item[1])),
    }


def validate(path: Path) -> list[Predicted]:
    """Read and predict a CSV of published measurements.

    Raises:
        Refusal: the file cannot be read as one.
    """
    return predict(read_rows(path))
