"""The picture of predicted against measured speed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy.cross_validation import Judged

RANGE = (20.0, 200_000.0)  # tokens/s per GPU
CLOSE = 0.10  # relative error of the shaded band


def draw(judged: Sequence[Judged], path: Path) -> None:
    """Predicted against measured tokens/s per GPU of every point, one colour for each GPU."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    by_gpu: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for group in judged:
        for point, error in zip(group.points, group.errors, strict=True):
            measured = point.tokens_per_s_per_gpu
            by_gpu[group.gpu].append((measured, measured * math.exp(error)))
    figure, axes = plt.subplots(figsize=(7, 6.5), layout="constrained")
    low, high = ([x * factor for x in RANGE] for factor in (1 - CLOSE, 1 + CLOSE))
    axes.fill_between(RANGE, low, high, color="0.9", label="within 10 %")
    axes.plot(RANGE, RANGE, color="0.6", linewidth=1)
    for gpu, pairs in sorted(by_gpu.items()):
        name = gpu.upper().replace("_40GB", " 40 GB")
        axes.scatter(*zip(*pairs, strict=True), s=9, alpha=0.6, label=f"{name} ({len(pairs)})")
    axes.set(xscale="log", yscale="log", xlim=RANGE, ylim=RANGE)
    axes.set_xlabel("measured tokens/s per GPU")
    axes.set_ylabel("predicted tokens/s per GPU")
    axes.set_title("Each model predicted with constants fitted without it", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, markerscale=2)
    figure.savefig(path, dpi=150)
    plt.close(figure)
