"""Predict every model with constants that were fitted without any row of it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.accuracy.fit import calibration_of, fit, residuals, unfitted
from benchmarks.accuracy.points import Point, by_group, load, pool_of, pools

FOLDS = 5
PREDICTED_DIGITS = 9  # significant; more are rounding errors of the logarithm
LEAST_COMPETITORS = 5  # layouts for the same model, GPUs and batch, below which a rank correlation says nothing


@dataclass(frozen=True)
class Judged:
    """One group's points with ln(predicted / measured) of each, predicted without the point's model."""

    gpu: str
    software: str
    points: Sequence[Point]
    errors: np.ndarray


def cross_validate(points: Sequence[Point], software: str, centres: Mapping[str, float] | None = None) -> np.ndarray:
    """ln(predicted / measured) of each point. Whole models are held out, in at most :data:`FOLDS` folds.

    Where all points are of one model, its pool's constants (or the centres of the priors) predict it.
    """
    models = sorted({p.model for p in points})
    errors = np.zeros(len(points))
    for fold in range(min(FOLDS, len(models))):
        held_out = set(models[fold::FOLDS])
        training = [p for p in points if p.model not in held_out]
        tested = [i for i, p in enumerate(points) if p.model in held_out]
        values = fit(training, software, centres) if training else unfitted(centres)
        errors[tested] = residuals([points[i] for i in tested], calibration_of(values, software))
    return errors


def judge(truth: Path, processes: int = 1) -> list[Judged]:
    """Every group of a CSV of published speeds, cross-validated; groups are spread over ``processes``."""
    grouped = by_group(load(truth))
    groups, pooled = sorted(grouped.items()), pools(grouped)
    with ProcessPoolExecutor(processes) as executor:
        centres = dict(zip(pooled, executor.map(fit, pooled.values(), pooled), strict=True))
        tasks = [
            executor.submit(cross_validate, points, software, centres.get(pool_of(gpu, software)))
            for (gpu, software), points in groups
        ]
        return [
            Judged(gpu, software, points, task.result())
            for ((gpu, software), points), task in zip(groups, tasks, strict=True)
        ]


Pairs = list[tuple[float, float]]  # (measured, predicted) tokens/s per GPU


def competing_layouts(judged: Judged) -> list[Pairs]:
    """The speeds of layouts that compete: the same software, model, GPUs, batch and sequence length.

    Predictions are rounded, so that two layouts that are predicted to be equally fast have equal ranks.
    """
    competitors: dict[tuple[str, int, int, int], Pairs] = defaultdict(list)
    for point, error in zip(judged.points, judged.errors, strict=True):
        measured = point.tokens_per_s_per_gpu
        key = (point.model, point.spec.gpus, point.spec.layout.gbs, point.spec.seq_length)
        predicted = float(f"{measured * math.exp(error):.{PREDICTED_DIGITS}g}")
        competitors[key].append((measured, predicted))
    return [pairs for pairs in competitors.values() if len(pairs) >= LEAST_COMPETITORS]


def regret(pairs: Pairs) -> float:
    """The share of speed that is lost by choosing the layout that is predicted to be fastest."""
    fastest = max(measured for measured, _ in pairs)
    return 1.0 - max(pairs, key=lambda pair: pair[1])[0] / fastest
