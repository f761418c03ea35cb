"""Tables of the accuracy report, as lines of Markdown."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.accuracy.cross_validation import Judged, competing_layouts, regret
from benchmarks.accuracy.golden import Golden
from benchmarks.accuracy.points import Point
from slipway.planner.memory import GIB, stage_memory
from slipway.planner.memory.probability import PEAK_SPREAD
from slipway.planner.published.validate import Predicted, spearman, statistics

CLOSE = 0.10  # relative error that counts as a hit in "within 10 %"
DOUBLE_LOAD = 2.0  # times an even load of experts, to measure how the peak grows with the load
_ERROR_COLUMNS = ("rows", "MAPE", "median", "within 10 %", "bias")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; nothing where there are no rows."""
    if not rows:
        return []
    head = "| " + " | ".join(columns) + " |"
    return [head, "|" + "---|" * len(columns), *("| " + " | ".join(row) + " |" for row in rows)]


def _error_cells(errors: Sequence[float] | np.ndarray) -> list[str]:
    """Cells of :data:`_ERROR_COLUMNS` for values of ln(predicted / measured); the bias is of the geometric mean."""
    logs = np.asarray(errors)
    ape = np.abs(np.exp(logs) - 1)
    return [
        str(len(logs)),
        f"{ape.mean():.1%}",
        f"{np.median(ape):.1%}",
        f"{np.mean(ape <= CLOSE):.0%}",
        f"{np.exp(logs.mean()) - 1:+.1%}",
    ]


def group_table(judged: Sequence[Judged]) -> list[str]:
    """Errors by GPU and software generation."""
    rows = [[f"{group.gpu} {group.software}", *_error_cells(group.errors)] for group in judged]
    return _table(["GPU / software", *_ERROR_COLUMNS], rows)


def _class_of(point: Point) -> str:
    """Which line of the summary an NVIDIA row belongs to; empty for other software and for A100."""
    nvidia = point.software == "mlperf" or point.software.startswith(("nemo", "bridge_20"))
    if not nvidia or point.spec.gpu.name == "a100":
        return ""
    gpu = "H100" if point.spec.gpu.name == "h100" else "Blackwell"
    return f"NVIDIA's rows, {gpu}, {'experts' if point.moe else 'dense'}"


def nvidia_table(judged: Sequence[Judged]) -> list[str]:
    """Errors of NVIDIA's tuned runs, dense and mixture-of-experts apart."""
    by_class: dict[str, list[float]] = defaultdict(list)
    for group in judged:
        for point, error in zip(group.points, group.errors, strict=True):
            if _class_of(point):
                by_class[_class_of(point)].append(error)
                by_class["NVIDIA's rows, H100 and Blackwell"].append(error)
    return _table(["", *_ERROR_COLUMNS], [[name, *_error_cells(errors)] for name, errors in sorted(by_class.items())])


def document(source: str) -> str:
    """The document that a row cites, without its commit and without how its text was obtained."""
    return re.sub(r" \((text|stored) [^)]*\)", "", source.split(" @")[0].split(" + ")[0])


def source_table(judged: Sequence[Judged]) -> list[str]:
    """Errors by the document that a row comes from."""
    by_source: dict[str, list[float]] = defaultdict(list)
    for group in judged:
        for point, error in zip(group.points, group.errors, strict=True):
            by_source[document(point.source)].append(error)
    return _table(
        ["source", *_ERROR_COLUMNS], [[name, *_error_cells(errors)] for name, errors in sorted(by_source.items())]
    )


def ranking_table(judged: Sequence[Judged]) -> list[str]:
    """How well layouts for the same model, GPUs and batch are ranked, by software generation."""
    by_software: dict[str, list[list[tuple[float, float]]]] = defaultdict(list)
    for group in judged:
        by_software[group.software] += competing_layouts(group)
    rows = []
    for software, sets in sorted(by_software.items()):
        if sets:
            correlations = [spearman([m for m, _ in pairs], [p for _, p in pairs]) for pairs in sets]
            lost = [regret(pairs) for pairs in sets]
            counts = [str(len(sets)), str(sum(map(len, sets)))]
            means = [f"{np.nanmedian(correlations):.3f}", f"{np.median(lost):.1%}", f"{np.mean(lost):.1%}"]
            rows.append([software, *counts, *means])
    return _table(["software", "groups", "layouts", "Spearman, median", "regret, median", "regret, mean"], rows)


def largest_errors(judged: Sequence[Judged], count: int) -> list[str]:
    """The models, by GPU and software, whose mean error is largest."""
    by_model: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for group in judged:
        for point, error in zip(group.points, group.errors, strict=True):
            by_model[(f"{group.gpu} {group.software}", point.model, point.spec.precision.name)].append(error)
    worst = sorted(by_model.items(), key=lambda item: -abs(float(np.mean(item[1]))))[:count]
    rows = [[*names, str(len(errors)), f"{math.exp(np.mean(errors)) - 1:+.0%}"] for names, errors in worst]
    return _table(["GPU / software", "model", "precision", "rows", "predicted speed, mean error"], rows)


def _fraction(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}%}"


def in_sample_table(files: Mapping[str, Sequence[Predicted]]) -> list[str]:
    """What ``slipway validate`` prints of each file: speeds and memory with the constants as shipped."""
    rows = []
    for name, predicted in files.items():
        speed = [p.speed_error for p in predicted if p.speed_error is not None]
        memory = [p.memory_error for p in predicted if p.memory_error is not None]
        modelled = sum(p.read.spec is not None for p in predicted)
        for quantity, errors in (("tokens/s per GPU", speed), ("peak memory", memory)):
            found = statistics(errors)
            if errors:
                counts = [name, quantity, f"{modelled:,} of {len(predicted):,}", f"{len(errors):,}"]
                shares = [_fraction(found["mape"]), _fraction(found["median_ape"]), _fraction(found["within_10pct"], 0)]
                rows.append([*counts, *shares])
    return _table(["file", "quantity", "rows modelled", "compared", "MAPE", "median", "within 10 %"], rows)


def lora_table(predicted: Sequence[Predicted]) -> list[str]:
    """Speeds of finetuning with LoRA, to which no constant is fitted, by source."""
    by_source: dict[str, list[float]] = defaultdict(list)
    for p in predicted:
        if p.read.spec is not None and p.read.spec.task.lora_rank and p.speed_error is not None:
            by_source[document(p.row["source"])].append(math.log1p(p.speed_error))
    return _table(
        ["source", *_ERROR_COLUMNS], [[name, *_error_cells(errors)] for name, errors in sorted(by_source.items())]
    )


def skipped_table(predicted: Sequence[Predicted]) -> list[str]:
    """Why rows are not modelled, and the models concerned; the most frequent reason first."""
    models: dict[str, list[str]] = defaultdict(list)
    for p in predicted:
        if p.read.skipped:
            reason = re.sub(r"\".*?\"|'.*?'|\d+(\.\d+)?", "...", p.read.skipped.split(";")[0])
            models[reason].append(p.row["model"])
    rows = [[why, str(len(names)), ", ".join(sorted(set(names)))] for why, names in models.items()]
    return _table(["reason", "rows", "models"], sorted(rows, key=lambda row: -int(row[1])))


def golden_table(values: Sequence[Golden]) -> list[str]:
    """Memory between steps and at the peak, of Megatron-LM's own functional tests (small models on one node)."""
    static: dict[str, list[float]] = defaultdict(list)
    peak: dict[str, list[float]] = defaultdict(list)
    for golden in values:
        if golden.spec is not None:
            stage = stage_memory(golden.spec, golden.constants)[-1]
            static[golden.spec.gpu.name].append(golden.static_bytes / GIB - stage.static_gib)
            peak[golden.spec.gpu.name].append(stage.total_gib * GIB / golden.peak_bytes - 1)
    rows = []
    for gpu in sorted(static):
        low, middle, high = np.percentile(static[gpu], [25, 50, 75])
        errors = np.array(peak[gpu])
        between = f"{middle:.3f} GiB ({low:.3f} to {high:.3f})"
        rows.append([gpu, str(len(errors)), between, f"{np.median(np.abs(errors)):.1%}", f"{np.median(errors):+.1%}"])
    between_steps = "between steps, measured - predicted (median, quartiles)"
    return _table(["GPU", "values", between_steps, "peak, median error", "peak, bias"], rows)


def golden_sentences(values: Sequence[Golden]) -> list[str]:
    """How uneven the load of experts is that the measured peaks imply, how many peaks lie within the spread of the
    probability that a run fits, and how many values are left out.
    """
    loads, within = [], []
    for golden in values:
        if golden.spec is not None and golden.spec.layout.ep == 1:
            predicted = stage_memory(golden.spec, golden.constants)[-1].total_gib * GIB
            within.append(abs(np.log(predicted / golden.peak_bytes)) <= PEAK_SPREAD)
        if golden.spec is not None and golden.spec.layout.ep > 1:
            even = stage_memory(golden.spec, golden.constants)[-1]
            doubled = stage_memory(golden.spec, golden.constants, expert_load=DOUBLE_LOAD)[-1]
            measured_gib = (golden.peak_bytes - golden.static_bytes) / GIB
            loads.append(1 + (measured_gib - even.step_gib) / (doubled.total_gib - even.total_gib))
    left_out = sum(golden.spec is None for golden in values)
    sentences = [
        f"{left_out} values are left out: other model families, several nodes, or more on the GPU than the model."
    ]
    if loads:
        low, middle, high = np.percentile(loads, [25, 50, 75])
        load = f"{middle:.2f} times an even load of the experts in the median (quartiles {low:.2f} to {high:.2f})"
        sentences.insert(0, f"{len(loads)} peaks with expert parallelism correspond to {load}.")
    if within:
        share = f"{np.mean(within):.0%} of the {len(within)} peaks without expert parallelism"
        sentences.append(f"{share} lie within the {PEAK_SPREAD:.0%} that P(fits) takes for the standard deviation.")
    return sentences


_DIFFERENCES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.15)  # between the predictions of two layouts, upper ends


def order_table(points: Sequence[Point], errors: Sequence[float]) -> list[str]:
    """Of two layouts that compete, how often the one that is predicted to be faster is, by how far they are apart.

    Args:
        errors: ln(predicted / measured) of each point.
    """
    competing: dict[tuple[object, ...], list[tuple[float, float]]] = defaultdict(list)
    for point, error in zip(points, errors, strict=True):
        spec = point.spec
        group = (spec.gpu.name, point.software, point.model, spec.gpus, spec.layout.gbs, spec.seq_length)
        measured = math.log(point.tokens_per_s_per_gpu)
        competing[(*group, spec.precision.name)].append((measured + error, measured))
    right: dict[float, list[bool]] = defaultdict(list)
    for speeds in competing.values():
        for (predicted, measured), (other, its_measured) in itertools.combinations(speeds, 2):
            apart = abs(predicted - other)
            end = next((end for end in _DIFFERENCES if apart <= end), math.inf)
            if apart and measured != its_measured:
                right[end].append((predicted > other) == (measured > its_measured))
    rows = [
        [f"up to {end:.1%}" if math.isfinite(end) else "more", str(len(found)), f"{np.mean(found):.0%}"]
        for end, found in sorted(right.items())
    ]
    return _table(["predictions differ by", "pairs", "in the right order"], rows)
