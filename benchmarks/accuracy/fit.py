"""Fit the planner's constants to published throughput, one set for a GPU and software generation.

Each constant has a prior (what it means physically, and how far it may plausibly lie from that); the fit is a MAP estimate
of ln(measured / predicted) with a robust loss, so that a constant which the rows say nothing about stays at its prior.

    python -m benchmarks.accuracy.fit TRUTH/throughput.csv            # print and cross-validate
    python -m benchmarks.accuracy.fit TRUTH/throughput.csv --write    # write configs/calibration
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from scipy.optimize import least_squares

from slipway.configs import Calibration, Spec
from slipway.planner.published.rows import interpret, stated_rate
from slipway.planner.published.table import read_rows
from slipway.planner.time.step import embedding_cost, layer_cost, loss_cost, step_time


@dataclass(frozen=True)
class Prior:
    """A constant's centre and its plausible spread: of its logarithm, or of its logit for a share between 0 and 1."""

    centre: float
    spread: float
    share: bool = False

    def forward(self, z: float) -> float:
        if self.share:
            logit = math.log(self.centre / (1 - self.centre)) + z * self.spread
            return 1 / (1 + math.exp(-logit))
        return self.centre * math.exp(z * self.spread)


PRIORS: dict[str, Prior] = {
    "gemm_efficiency": Prior(0.74, 0.40, share=True),
    "fp8_gemm_efficiency": Prior(0.62, 0.15),
    "mxfp8_gemm_efficiency": Prior(0.55, 0.15),
    "fp4_gemm_efficiency": Prior(0.45, 0.20),
    "attention_efficiency": Prior(0.50, 0.25),
    "memory_efficiency": Prior(0.80, 0.40, share=True),
    "elementwise_passes": Prior(1.5, 0.35),
    "gemm_tail": Prior(0.5, 0.8, share=True),
    "gemm_bytes_exposed": Prior(0.5, 0.5),
    "kernel_us": Prior(3.0, 0.5),
    "launch_us": Prior(5.0, 0.5),
    "layer_host_us": Prior(150.0, 0.8),
    "moe_host_us": Prior(2500.0, 0.5),
    "nvlink_efficiency": Prior(0.70, 0.50, share=True),
    "network_efficiency": Prior(0.70, 0.60, share=True),
    "collective_us": Prior(15.0, 0.6),
    "tp_overlap": Prior(0.3, 1.0, share=True),
    "dp_overlap": Prior(0.7, 1.0, share=True),
    "expert_overlap": Prior(0.2, 1.2, share=True),
    "expert_imbalance": Prior(1.05, 0.05),
    "jitter_per_doubling": Prior(0.004, 0.8),
    "step_overhead_s": Prior(0.02, 0.8),
}

# The generation that stands nearest to NeMo 2.7.3 on megatron-core 0.15.3, part by part.
DEFAULT = {
    "h100": "nemo_2025",
    "b200": "bridge_2025",
    "b300": "bridge_2026_spring",
    "gb200": "bridge_2025",
    "gb300": "bridge_2025",
    "a100": "nemo_2025",
    "a100_40gb": "nemo_2025",
}
# A generation without runs to fit on a part borrows the constants of one that has them, with a wider spread.
BORROWED = {
    ("a100", "nemo_2025"): ("h100", "nemo_2025"),
    ("a100_40gb", "nemo_2025"): ("h100", "nemo_2025"),
    ("h100", "torchtitan_2025"): ("h100", "torchtitan"),
}
BORROWED_SPREAD = 0.10

# Which generations share one stack; what is known of each, not fitted.
KNOWN: dict[str, dict[str, object]] = {
    "vtrain": {"flash_attention": False, "dropout": True},
    # Megatron-Bridge's recipes rotate and join MLA's heads in fused kernels (apply_rope_fusion)
    **{
        name: {"mla_passes": 2.2}
        for name in ("bridge_2025", "bridge_2026_spring", "bridge_2026_summer", "bridge_support")
    },
    # PyTorch's loss at its peak: bf16 logits, fp32 log-softmax, the fp32 gradients of both; since 2025 torchtitan compiles it
    "torchtitan": {"separate_norms": True, "logits_bytes": 14.0},
    "torchtitan_2025": {"separate_norms": True, "logits_bytes": 8.0},
    # DeepSpeed's ZeRO-1 keeps reduce and all-gather buckets of 5e8 elements; 2.2 GiB is the median over 47 fp16 BLOOM rows
    "megatron_2022": {"flash_attention": False, "dropout": True, "overlapped": False, "extra_memory_gib": 2.2},
}


@dataclass(frozen=True)
class Point:
    """One measurement."""

    spec: Spec
    tokens_per_s_per_gpu: float
    source: str
    model: str
    software: str
    moe: bool
    weight: float


def load(path: Path) -> list[Point]:
    """The rows that can be modelled and that state a speed."""
    rows = read_rows(path)
    out: list[Point] = []
    for row, read in zip(rows, interpret(rows), strict=True):
        if read.spec is None or read.spec.task.lora_rank:  # nothing is fitted to finetuning
            continue
        rate = stated_rate(row, read.spec)
        notes = row["notes"].lower()
        if not rate or any(w in notes for w in ("superseded", "inconsistent", "suspicious", "proxy")):
            continue
        if "tokendrop" in row["model"].lower() or (read.spec.model.is_moe and "container 25.09" in row["source"]):
            continue  # tokens are dropped to a capacity there: another computation
        out.append(
            Point(read.spec, rate, row["source"], read.spec.model.name, read.software, read.spec.model.is_moe, 1.0)
        )
    return out


def group(points: Sequence[Point]) -> dict[tuple[str, str], list[Point]]:
    out: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for p in points:
        out[(p.spec.gpu.name, p.software)].append(p)
    return dict(out)


def make(values: Mapping[str, float], software: str, name: str = "fit") -> Calibration:
    return Calibration(name=name, **values, **KNOWN.get(software, {}))  # type: ignore[arg-type]


def residuals(points: Sequence[Point], cal: Calibration) -> np.ndarray:
    """ln(predicted / measured) of each point."""
    for cache in (layer_cost, embedding_cost, loss_cost):
        cache.cache_clear()
    return np.array([math.log(step_time(p.spec, cal).tokens_per_s_per_gpu / p.tokens_per_s_per_gpu) for p in points])


def relevant(points: Sequence[Point]) -> list[str]:
    """The constants that these points can say something about."""
    names = list(PRIORS)
    gemms = {p.spec.precision.gemm for p in points}
    recipes = {p.spec.precision.fp8_recipe for p in points}
    if not recipes & {"delayed", "tensorwise", "blockwise"}:
        names.remove("fp8_gemm_efficiency")
    if "mxfp8" not in recipes:
        names.remove("mxfp8_gemm_efficiency")
    if "fp4" not in gemms:
        names.remove("fp4_gemm_efficiency")
    if not any(p.spec.layout.tp > 1 for p in points):
        names.remove("tp_overlap")
    if not any(p.moe for p in points):
        names.remove("expert_overlap")
        names.remove("moe_host_us")
        names.remove("expert_imbalance")
    return names


TIGHTER = 0.4  # of a prior's spread around a pooled centre
OWN = (
    "expert_overlap",
    "expert_imbalance",
    "moe_host_us",
    "launch_us",
)  # what a pool of mostly dense rows says little about


def fit(
    points: Sequence[Point], software: str, centres: Mapping[str, float] | None = None, noise: float = 0.06
) -> dict[str, float]:
    """MAP estimate of the constants. ``centres`` are those of a pooled fit, which a part may leave by less."""
    names = relevant(points)
    priors = {n: PRIORS[n] for n in names}
    if centres:
        priors = {
            n: replace(PRIORS[n], centre=centres[n], spread=PRIORS[n].spread * (1.0 if n in OWN else TIGHTER))
            for n in names
        }
    weights = np.sqrt(np.array([p.weight for p in points]))

    def unpack(z: np.ndarray) -> dict[str, float]:
        return {n: priors[n].forward(v) for n, v in zip(names, z, strict=True)}

    def cost(z: np.ndarray) -> np.ndarray:
        r = residuals(points, make(unpack(z), software)) / noise
        soft = np.sign(r) * np.sqrt(2 * (np.sqrt(1 + r * r) - 1))  # pseudo-Huber: a misread row must not bend the fit
        return np.concatenate([weights * soft, z])

    found = least_squares(cost, np.zeros(len(names)), method="trf", diff_step=1e-2, max_nfev=25)
    held = {n: (centres or {}).get(n, p.centre) for n, p in PRIORS.items()}
    return held | unpack(found.x)


FOLDS = 5


def cross_validate(points: Sequence[Point], software: str, centres: Mapping[str, float] | None = None) -> np.ndarray:
    """Residuals of each model when the constants were fitted without it: whole models are left out, in at most five folds."""
    models = sorted({p.model for p in points})
    out = np.zeros(len(points))
    for fold in range(min(FOLDS, len(models))):
        held_out = set(models[fold::FOLDS])
        train = [p for p in points if p.model not in held_out]
        test = [i for i, p in enumerate(points) if p.model in held_out]
        values = (
            fit(train, software, centres) if train else {n: p.centre for n, p in PRIORS.items()} | dict(centres or {})
        )
        out[test] = residuals([points[i] for i in test], make(values, software))
    return out


def summary(errors: np.ndarray) -> str:
    ape = np.abs(np.exp(errors) - 1)
    return f"n={len(errors):4d} MAPE {ape.mean():6.1%} median {np.median(ape):6.1%} within10 {np.mean(ape <= 0.1):5.0%} bias {errors.mean():+.3f}"


def pools(groups: Mapping[tuple[str, str], list[Point]]) -> dict[str, list[Point]]:
    """Groups whose parts share an architecture's kernels and a software generation: their fit is each part's centre."""
    out: dict[str, list[Point]] = defaultdict(list)
    for (gpu, software), points in groups.items():
        if pool_of(gpu, software):
            out[pool_of(gpu, software)] += points
    out["hopper/bridge"] = groups.get(("h100", "nemo_2025"), [])  # the same kernels, measured over far more layouts
    return dict(out)


def pool_of(gpu: str, software: str) -> str:
    if not software.startswith("bridge_20"):
        return ""
    return f"blackwell/{software}" if gpu != "h100" else "hopper/bridge"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--cv", action="store_true")
    args = parser.parse_args()
    groups = group(load(args.truth))
    out: dict[str, dict[str, dict[str, object]]] = defaultdict(dict)
    centres = {}
    for name, points in pools(groups).items():
        if not args.only or args.only.split("/")[-1] in name or "h100" in args.only:
            centres[name] = fit(points, name)
            print(f"{name}: {summary(residuals(points, make(centres[name], name)))}", flush=True)
    for (gpu, software), points in sorted(groups.items()):
        if args.only and args.only not in f"{gpu}/{software}":
            continue
        values = fit(points, software, centres.get(pool_of(gpu, software)))
        errors = residuals(points, make(values, software))
        print(f"{gpu}/{software}: {summary(errors)}", flush=True)
        print("   ", {k: round(v, 4) for k, v in values.items()})
        by_model: dict[str, list[float]] = defaultdict(list)
        for p, e in zip(points, errors, strict=True):
            by_model[f"{p.model} {p.spec.precision.name}"].append(e)
        for name, es in sorted(by_model.items()):
            print(f"      {name:34s} n={len(es):3d} mean {np.mean(es):+.3f} sd {np.std(es):.3f}")
        if args.cv and len({p.model for p in points}) > 1:
            print(
                "    cross-validated:",
                summary(cross_validate(points, software, centres.get(pool_of(gpu, software)))),
                flush=True,
            )
        spread = float(np.sqrt(np.mean(errors**2)))
        out[gpu][software] = (
            {k: float(f"{v:.4g}") for k, v in values.items()}
            | KNOWN.get(software, {})
            | {"spread": round(max(spread, 0.03), 3)}
        )
    for (gpu, software), (lender, lent) in BORROWED.items():
        if lent in out[lender]:
            note = f"borrowed from {lender}/{lent}: no speed of this software on this part is there to fit"
            out[gpu][software] = (
                out[lender][lent] | KNOWN.get(software, {}) | {"spread": BORROWED_SPREAD, "source": note}
            )
    if args.write:
        for gpu, held in out.items():
            path = Path(__file__).parents[2] / "configs" / "calibration" / f"{gpu}.yaml"
            path.write_text(
                yaml.safe_dump(
                    {"default": DEFAULT.get(gpu, next(iter(held))), "generations": dict(held)}, sort_keys=False
                )
            )


if __name__ == "__main__":
    main()
