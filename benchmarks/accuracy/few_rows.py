"""How many measurements of one's own it takes: calibrated on 0, 1, 2 and 4 rows of a group, the rest is predicted.

A group is one GPU under one software generation. Its constants start from those that are shipped for another generation
of the same GPU, to which no row of the group contributed, as they would on a cluster with software of its own. The rows
are drawn at random, and every number of rows predicts the same other rows.

    python -m benchmarks.accuracy TRUTH/throughput.csv --calibrate docs/img/calibrate.png
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.accuracy.points import Group, Point, by_group, load
from slipway import configs
from slipway.configs import Calibration
from slipway.planner.calibrate import Measurement, calibrate, residuals
from slipway.planner.calibration import calibration

COUNTS = (0, 1, 2, 4)  # of rows that are calibrated on
DRAWS = 4  # of these rows, for each group
MOST_TESTED = 30  # rows of a draw, so that large groups do not take hours
LEAST_ROWS = max(COUNTS) + 2
_SEED = 0
# The shipped constants that a group starts from. No row of the group is in their fit or in the pool of their priors.
STARTS: dict[Group, str] = {
    ("h100", "nemo_2025"): "nemo_2024",
    ("h100", "nemo_2024"): "nemo_2025",
    ("h100", "bridge_2025"): "nemo_2025",
    ("h100", "bridge_2026_spring"): "nemo_2025",
    ("h100", "automodel"): "nemo_2025",
    ("h100", "maxtext"): "nemo_2025",
    ("h100", "foundry"): "nemo_2025",
    ("h100", "torchtitan"): "nemo_2025",
    ("b200", "bridge_2025"): "bridge_2026_spring",
    ("b200", "bridge_2026_spring"): "bridge_2025",
    ("b300", "bridge_2026_spring"): "bridge_2026_summer",
    ("gb200", "bridge_2026_spring"): "bridge_2025",
    ("gb200", "bridge_2026_summer"): "bridge_2025",
    ("gb200", "nemo_2025"): "nemo_2024",
    ("gb300", "bridge_2025"): "bridge_2026_spring",
    ("gb300", "bridge_2026_spring"): "bridge_2025",
    ("gb300", "bridge_2026_summer"): "bridge_2025",
}


@dataclass
class Curve:
    """The errors of the predicted rows of a group by the number of rows that were calibrated on."""

    name: str
    rows: int
    errors: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))  # absolute, relative
    covered: dict[int, list[bool]] = field(default_factory=lambda: defaultdict(list))  # by the 68 % interval

    def mape(self, count: int) -> float:
        return float(np.mean(self.errors[count]))


def curves(truth: Path, *, same_model: bool) -> list[Curve]:
    """The curve of every group that is large enough.

    Args:
        same_model: calibrate on rows of the model that is predicted, in one precision, instead of any model's.
    """
    found = []
    for group, points in by_group(load(truth)).items():
        if group not in STARTS:
            continue
        shipped = calibration(configs.gpu(group[0]), STARTS[group], shipped=True)
        for name, alike in _parts(group, points, same_model):
            if len(alike) >= LEAST_ROWS:
                found.append(_curve(name, alike, shipped))
    return found


def _parts(group: Group, points: Sequence[Point], same_model: bool) -> Iterator[tuple[str, list[Point]]]:
    if not same_model:
        yield "/".join(group), list(points)
        return
    by_model: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        by_model[f"{'/'.join(group)} {point.model} {point.spec.precision.name}"].append(point)
    yield from by_model.items()


def _curve(name: str, points: Sequence[Point], shipped: Calibration) -> Curve:
    measured = [
        Measurement(p.model, p.spec, p.spec.batch.tokens / p.spec.gpus / p.tokens_per_s_per_gpu) for p in points
    ]
    curve, drawn = Curve(name, len(points)), random.Random(_SEED)
    for _ in range(DRAWS):
        order = drawn.sample(measured, len(measured))
        tested = order[max(COUNTS) :][:MOST_TESTED]
        for count in COUNTS:
            constants = calibrate(order[:count], shipped, name, "").constants if count else shipped
            errors = residuals(tested, constants)
            curve.errors[count] += [abs(math.expm1(error)) for error in errors]
            curve.covered[count] += [abs(error) <= constants.spread for error in errors]
    return curve


def table(found: Sequence[Curve]) -> list[str]:
    """The mean error of each group by the number of rows, and over all groups the mean and the interval's coverage."""
    lines = ["| group | rows | " + " | ".join(f"{count} rows" for count in COUNTS) + " |"]
    lines.append("|---|---|" + "---|" * len(COUNTS))
    for curve in sorted(found, key=lambda each: each.name):
        lines.append(f"| {curve.name} | {curve.rows} | " + " | ".join(f"{curve.mape(n):.1%}" for n in COUNTS) + " |")
    summary = {
        "mean of the groups": [np.mean([each.mape(n) for each in found]) for n in COUNTS],
        "median of the groups": [np.median([each.mape(n) for each in found]) for n in COUNTS],
        "in the 68 % interval": [np.mean([hit for each in found for hit in each.covered[n]]) for n in COUNTS],
    }
    for name, values in summary.items():
        lines.append(f"| {name} | | " + " | ".join(f"{value:.1%}" for value in values) + " |")
    return lines


def draw(any_model: Sequence[Curve], same_model: Sequence[Curve], path: Path) -> None:
    """The curves of all groups, grey, and their median."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    titles = ("rows of any model of the group", "rows of the predicted model")
    for axes, found, title in zip(both, (any_model, same_model), titles, strict=True):
        for curve in found:
            axes.plot(range(len(COUNTS)), [100 * curve.mape(n) for n in COUNTS], color="0.8", linewidth=1)
        middle = [100 * np.median([curve.mape(n) for curve in found]) for n in COUNTS]
        axes.plot(range(len(COUNTS)), middle, "o-", color="#4c78a8", linewidth=2, label=f"median of {len(found)}")
        axes.axhline(5, color="0.5", linestyle=":", linewidth=1)
        axes.set_xticks(range(len(COUNTS)), [str(n) for n in COUNTS])
        axes.set(ylim=(0, 40), xlabel="rows that were calibrated on")
        axes.set_title(title, loc="left", fontsize=10)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    both[0].set_ylabel("mean error of the other rows (%)")
    figure.savefig(path, dpi=150)
    plt.close(figure)
