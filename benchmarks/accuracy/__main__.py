"""How far the planner is from published measurements, by cross-validation over whole models.

    python -m benchmarks.accuracy TRUTH/throughput.csv --out docs/img/accuracy.png
    python -m benchmarks.accuracy TRUTH/throughput.csv --golden TRUTH/megatron_golden_memory.csv

Each group is one GPU under one software generation. A model's rows are predicted with constants that were fitted without any row
of that model. Where a group holds one model only, its pool's constants (or the priors) predict it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.accuracy.fit import Point, cross_validate, fit, group, load, pool_of, pools
from benchmarks.accuracy.golden import load as load_golden
from slipway.planner.memory import GIB, stage_memory
from slipway.planner.published.validate import spearman


def layout_groups(points: Sequence[Point], errors: np.ndarray) -> dict[str, list[tuple[float, float]]]:
    """(measured, predicted) tokens/s of the layouts that compete for the same model, GPUs and batch."""
    out: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for p, e in zip(points, errors, strict=True):
        key = f"{p.software} {p.model} {p.spec.gpus} {p.spec.layout.gbs} {p.spec.seq_length}"
        out[key].append((p.tokens_per_s_per_gpu, p.tokens_per_s_per_gpu * float(np.exp(e))))
    return {k: v for k, v in out.items() if len(v) >= 5}


def regret(pairs: Sequence[tuple[float, float]]) -> float:
    """What is lost by running the layout that is predicted fastest instead of the one that is."""
    best = max(m for m, _ in pairs)
    return 1.0 - max(pairs, key=lambda x: x[1])[0] / best


def _row(name: str, errors: np.ndarray) -> str:
    ape = np.abs(np.exp(errors) - 1)
    return f"| {name} | {len(errors)} | {ape.mean():.1%} | {np.median(ape):.1%} | {np.mean(ape <= 0.1):.0%} | {np.exp(errors.mean()) - 1:+.1%} |"


def draw(results: dict[str, tuple[list[Point], np.ndarray]], path: Path) -> None:
    """Predicted against measured, one colour a GPU."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 6.5), layout="constrained")
    by_gpu: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for points, errors in results.values():
        for p, e in zip(points, errors, strict=True):
            by_gpu[p.spec.gpu.name].append((p.tokens_per_s_per_gpu, p.tokens_per_s_per_gpu * float(np.exp(e))))
    limits = [20.0, 120000.0]
    axes.fill_between(limits, [x * 0.9 for x in limits], [x * 1.1 for x in limits], color="0.92", label="within 10 %")
    axes.plot(limits, limits, color="0.6", linewidth=1)
    for gpu, pairs in sorted(by_gpu.items()):
        axes.scatter(*zip(*pairs, strict=True), s=9, alpha=0.6, label=gpu)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=limits,
        ylim=limits,
        xlabel="measured tokens/s per GPU",
        ylabel="predicted, model left out",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def judge_golden(path: Path) -> None:
    """Bytes that stay between steps, and the peak, of Megatron-LM's own functional tests (small models on one node)."""
    held: dict[str, list[float]] = defaultdict(list)
    peak: dict[str, list[float]] = defaultdict(list)
    loads: list[float] = []
    skipped = 0
    for golden in load_golden(path):
        if golden.spec is None:
            skipped += 1
            continue
        stage = stage_memory(golden.spec, golden.cal)[-1]
        held[golden.spec.gpu.name].append(golden.static_bytes / GIB - stage.static_gib)
        peak[golden.spec.gpu.name].append(stage.total_gib * GIB / golden.peak_bytes - 1)
        if golden.spec.layout.ep > 1:
            doubled = stage_memory(golden.spec, golden.cal, expert_load=2.0)[-1].total_gib - stage.total_gib
            loads.append(1 + ((golden.peak_bytes - golden.static_bytes) / GIB - stage.step_gib) / doubled)
    print(
        "| GPU | values | held between steps, measured - predicted (median, quartiles) | peak, median error | peak, bias |\n|---|---|---|---|---|"
    )
    for gpu in sorted(held):
        low, mid, high = np.percentile(held[gpu], [25, 50, 75])
        errors = np.array(peak[gpu])
        print(
            f"| {gpu} | {len(errors)} | {mid:.3f} GiB ({low:.3f} to {high:.3f}) | {np.median(np.abs(errors)):.1%} | {np.median(errors):+.1%} |"
        )
    low, mid, high = np.percentile(loads, [25, 50, 75])
    print(
        f"\n{len(loads)} peaks with experts are those of {mid:.2f} times an even load in the median ({low:.2f} to {high:.2f})"
    )
    print(f"{skipped} values are left out: other model families, several nodes, or more on the GPU than the model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--out", type=Path, help="draw the scatter here")
    parser.add_argument("--golden", type=Path, help="Megatron-LM's golden memory values: only these are judged")
    args = parser.parse_args()
    if args.golden:
        return judge_golden(args.golden)
    groups = group(load(args.truth))
    centres = {name: fit(points, name) for name, points in pools(groups).items() if points}
    results: dict[str, tuple[list[Point], np.ndarray]] = {}
    print("| GPU / software | rows | MAPE | median | within 10 % | bias |\n|---|---|---|---|---|---|")
    for (gpu, software), points in sorted(groups.items()):
        errors = cross_validate(points, software, centres.get(pool_of(gpu, software)))
        results[f"{gpu}/{software}"] = (points, errors)
        print(_row(f"{gpu} {software}", errors), flush=True)
    pooled: dict[str, list[float]] = defaultdict(list)
    for name, (points, errors) in results.items():
        for p, e in zip(points, errors, strict=True):
            nvidia = any(w in name for w in ("nemo", "bridge_20", "mlperf"))
            where = "H100" if p.spec.gpu.name == "h100" else "Blackwell" if p.spec.gpu.name != "a100" else ""
            if nvidia and where:
                pooled[f"NVIDIA's rows, {where}, {'experts' if p.moe else 'dense'}"].append(e)
                pooled["NVIDIA's rows, H100 and Blackwell"].append(e)
    for name, values in sorted(pooled.items()):
        print(_row(name, np.array(values)))
    print(
        "\n| layouts that compete | groups | layouts | Spearman, median | regret, median | regret, mean |\n|---|---|---|---|---|---|"
    )
    for software in sorted({name.split("/")[1] for name in results}):
        sets = [
            g
            for name, (points, errors) in results.items()
            if name.endswith("/" + software)
            for g in layout_groups(points, errors).values()
        ]
        if sets:
            ranks = [spearman([m for m, _ in g], [p for _, p in g]) for g in sets]
            lost = [regret(g) for g in sets]
            print(
                f"| {software} | {len(sets)} | {sum(map(len, sets))} | {np.nanmedian(ranks):.3f} | {np.median(lost):.1%} | {np.mean(lost):.1%} |"
            )
    if args.out:
        draw(results, args.out)
        print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
