"""Fit the planner's constants to published throughput, one set for each GPU and software generation.

Each constant has a prior: what it means physically, and how far it may plausibly lie from that. The fit maximizes the
posterior of ln(measured / predicted) under a robust loss, so that a constant which the rows do not determine stays at
its prior.

    python -m benchmarks.accuracy.fit TRUTH/throughput.csv                    # print the fits
    python -m benchmarks.accuracy.fit TRUTH/throughput.csv --only h100/nemo   # of some groups only
    python -m benchmarks.accuracy.fit TRUTH/throughput.csv --write            # write configs/calibration
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from scipy.optimize import least_squares

from benchmarks.accuracy.points import Point, by_group, load, pool_of, pools
from slipway.configs import Calibration
from slipway.planner.calibrate import DIFFERENCE_STEP, LEAST_SPREAD, NOISE, PRIORS, Prior
from slipway.planner.time.step import embedding_cost, layer_cost, loss_cost, step_time

# The constants that a recipe is planned with unless `software=` says otherwise: on each GPU, those of the generation
# nearest to NeMo 2.7.3 on megatron-core 0.15.3.
DEFAULT = {
    "h100": "nemo_2025",
    "b200": "bridge_2025",
    "b300": "bridge_2026_spring",
    "gb200": "bridge_2025",
    "gb300": "bridge_2025",
    "a100": "nemo_2025",
    "a100_40gb": "nemo_2025",
}
# A GPU and generation without rows to fit takes the constants of another, with a wider spread.
BORROWED = {
    ("a100", "nemo_2025"): ("h100", "nemo_2025"),
    ("a100_40gb", "nemo_2025"): ("h100", "nemo_2025"),
    ("h100", "torchtitan_2025"): ("h100", "torchtitan"),
}
BORROWED_SPREAD = (
    0.10  # of ln(measured / predicted): about the error of a fitted generation on a GPU that it was not fitted to
)

# Megatron-Bridge's recipes rotate and join the heads of multi-latent attention in fused kernels (apply_rope_fusion):
# each value is read or written 2.2 times instead of 5.
FUSED_MLA: dict[str, object] = {"mla_passes": 2.2}
# NVIDIA's performance recipes overlap tensor-parallel communication through user buffers (configs/levers/nvidia.csv).
USER_BUFFERS: dict[str, object] = {"user_buffers": True}
# What is known of a generation's kernels and therefore not fitted.
KNOWN: dict[str, dict[str, object]] = {
    "vtrain": {"flash_attention": False, "dropout": True},
    "nemo_2024": USER_BUFFERS,
    "nemo_2025": USER_BUFFERS,
    "bridge_2025": FUSED_MLA | USER_BUFFERS,
    "bridge_2026_spring": FUSED_MLA | USER_BUFFERS,
    "bridge_2026_summer": FUSED_MLA | USER_BUFFERS,
    "bridge_support": FUSED_MLA,
    # PyTorch's loss at its peak holds bf16 logits, their fp32 log-softmax and the fp32 gradients of both: 14 bytes per
    # logit. Since 2025 torchtitan compiles it: 8 bytes.
    "torchtitan": {"separate_norms": True, "logits_bytes": 14.0},
    "torchtitan_2025": {"separate_norms": True, "logits_bytes": 8.0},
    # DeepSpeed's ZeRO-1 keeps reduce and all-gather buckets of 5e8 elements; 2.2 GiB is the median over 47 fp16 rows of
    # BLOOM's chronicles.
    "megatron_2022": {"flash_attention": False, "dropout": True, "overlapped": False, "extra_memory_gib": 2.2},
}

WITHIN_POOL = 0.4  # of a prior's spread: how far one GPU's constant lies from its pool's
# Constants about which a pool of mostly dense rows says little: their priors stay as wide as without a pool.
NOT_POOLED = ("expert_overlap", "expert_imbalance", "moe_host_us", "launch_us")
MOST_EVALUATIONS = 25  # of the residuals' Jacobian: fits settle in fewer than 20

Values = dict[str, float]


def calibration_of(values: Mapping[str, float], software: str, name: str = "fit") -> Calibration:
    """The fitted values together with what is known of the generation."""
    return Calibration(name=name, **values, **KNOWN.get(software, {}))  # type: ignore[arg-type]


def residuals(points: Sequence[Point], constants: Calibration) -> np.ndarray:
    """ln(predicted / measured) of each point."""
    for cache in (layer_cost, embedding_cost, loss_cost):  # keyed by the constants: they would grow with each trial
        cache.cache_clear()
    return np.array(
        [math.log(step_time(p.spec, constants).tokens_per_s_per_gpu / p.tokens_per_s_per_gpu) for p in points]
    )


def determined_by(points: Sequence[Point]) -> list[str]:
    """The constants that these points can determine."""
    recipes = {p.spec.precision.fp8_recipe for p in points}
    absent: set[str] = set()
    if not recipes & {"delayed", "tensorwise", "blockwise"}:
        absent.add("fp8_gemm_efficiency")
    if "mxfp8" not in recipes:
        absent.add("mxfp8_gemm_efficiency")
    if all(p.spec.precision.gemm != "fp4" for p in points):
        absent.add("fp4_gemm_efficiency")
    if all(p.spec.layout.tp == 1 for p in points):
        absent.add("tp_overlap")
    if not any(p.moe for p in points):
        absent |= {"expert_overlap", "moe_host_us", "expert_imbalance"}
    return [name for name in PRIORS if name not in absent]


def _priors(names: Sequence[str], centres: Mapping[str, float] | None) -> dict[str, Prior]:
    if not centres:
        return {name: PRIORS[name] for name in names}
    return {
        name: replace(
            PRIORS[name],
            centre=centres[name],
            spread=PRIORS[name].spread * (1.0 if name in NOT_POOLED else WITHIN_POOL),
        )
        for name in names
    }


def fit(points: Sequence[Point], software: str, centres: Mapping[str, float] | None = None) -> Values:
    """The most probable constants. ``centres`` are those of a pool's fit, from which a single GPU's lie less far."""
    names = determined_by(points)
    priors = _priors(names, centres)

    def unpack(deviations: np.ndarray) -> Values:
        return {name: priors[name].value_at(d) for name, d in zip(names, deviations, strict=True)}

    def cost(deviations: np.ndarray) -> np.ndarray:
        scaled = residuals(points, calibration_of(unpack(deviations), software)) / NOISE
        robust = np.sign(scaled) * np.sqrt(
            2 * (np.sqrt(1 + scaled * scaled) - 1)
        )  # pseudo-Huber: outliers count linearly
        return np.concatenate([robust, deviations])

    found = least_squares(
        cost, np.zeros(len(names)), method="trf", diff_step=DIFFERENCE_STEP, max_nfev=MOST_EVALUATIONS
    )
    return unfitted(centres) | unpack(found.x)


def unfitted(centres: Mapping[str, float] | None) -> Values:
    """Every constant at its pool's value, or at its prior's centre where there is no pool."""
    return {name: (centres or {}).get(name, prior.centre) for name, prior in PRIORS.items()}


def summary(errors: np.ndarray) -> str:
    """Residuals in one line."""
    ape = np.abs(np.exp(errors) - 1)
    return (
        f"n={len(errors):4d} MAPE {ape.mean():6.1%} median {np.median(ape):6.1%} "
        f"within10 {np.mean(ape <= 0.1):5.0%} bias {errors.mean():+.3f}"
    )


def _print_by_model(points: Sequence[Point], errors: np.ndarray) -> None:
    by_model: dict[str, list[float]] = defaultdict(list)
    for point, error in zip(points, errors, strict=True):
        by_model[f"{point.model} {point.spec.precision.name}"].append(error)
    for name, values in sorted(by_model.items()):
        print(f"      {name:34s} n={len(values):3d} mean {np.mean(values):+.3f} sd {np.std(values):.3f}")


def fit_all(truth: Path, only: str) -> dict[str, dict[str, dict[str, object]]]:
    """Constants by GPU and generation, as configs/calibration stores them; prints each fit.

    Args:
        only: part of "GPU/generation"; groups without it are left out.
    """
    groups = by_group(load(truth))
    wanted = {group: points for group, points in sorted(groups.items()) if only in "/".join(group)}
    needed_pools = {pool_of(*group) for group in wanted}
    centres = {name: fit(points, name) for name, points in pools(groups).items() if name in needed_pools}
    constants: dict[str, dict[str, dict[str, object]]] = defaultdict(dict)
    for (gpu, software), points in wanted.items():
        values = fit(points, software, centres.get(pool_of(gpu, software)))
        errors = residuals(points, calibration_of(values, software))
        print(f"{gpu}/{software}: {summary(errors)}", flush=True)
        print("   ", {name: round(value, 4) for name, value in values.items()})
        _print_by_model(points, errors)
        spread = max(float(np.sqrt(np.mean(errors**2))), LEAST_SPREAD)
        rounded: dict[str, object] = {name: float(f"{value:.4g}") for name, value in values.items()}
        constants[gpu][software] = rounded | KNOWN.get(software, {}) | {"spread": round(spread, 3)}
    for (gpu, software), (lender, lent) in BORROWED.items():
        if lent in constants[lender]:
            source = f"borrowed from {lender}/{lent}: no published speed of this software on this GPU to fit"
            known = KNOWN.get(software, {}) | {"spread": BORROWED_SPREAD, "source": source}
            constants[gpu][software] = constants[lender][lent] | known
    return dict(constants)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truth", type=Path, help="a CSV with the columns that `slipway validate` reads")
    parser.add_argument("--write", action="store_true", help="write configs/calibration; with --only, of that GPU only")
    parser.add_argument("--only", default="", help="part of GPU/generation, as h100/nemo_2025")
    options = parser.parse_args()
    folder = Path(__file__).parents[2] / "configs" / "calibration"
    for gpu, generations in fit_all(options.truth, options.only).items():
        if options.write and generations:
            contents = {"default": DEFAULT.get(gpu, next(iter(generations))), "generations": generations}
            (folder / f"{gpu}.yaml").write_text(yaml.safe_dump(contents, sort_keys=False))


if __name__ == "__main__":
    main()
