"""The cases that are measured on one GPU, in the order in which they are run, and the planner's prediction of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks.gpu.measure import Case
from slipway import configs, planner

PRECISIONS = ("bf16", "fp8_current", "fp8_delayed", "fp8_blockwise")
# Megatron-Core's default selective recompute is that of core_attn, which fused attention does not need: that of mlp is
# measured instead.
RECOMPUTE = {
    "none": ["layout.recompute=none"],
    "selective": ["layout.recompute=selective", "layout.recompute_modules=[mlp]"],
    "full": ["layout.recompute=full"],
}
MICRO_BATCHES = (1, 2, 4)
PEERS = ("torch", "torch_float8", "transformers")  # as in benchmarks.gpu.peers, whose import would import torch
FEW_LAYERS = 8  # few enough that every case fits an 80 GB card
ALL_LAYERS = 32  # of Llama 3 8B
SEQUENCE_LENGTH = 8192
SEQUENCES = 4  # per step, whatever the micro-batch
# Single changes that could speed up a slow step.
VARIANTS = (
    ("bf16", "layout.attention_backend=flash"),
    ("bf16", "layout.fused_cross_entropy=false"),
    ("bf16", "layout.cuda_graphs=true"),
    ("fp8_current", "layout.cuda_graphs=true"),
    ("fp8_current", "precision.fp8_param_gather=false"),
)
# Few tokens: torch computes a float8 product on the CPU element by element.
TOY = ["gpus=1", "layout.tp=1", "precision=fp32", "layout.seq_length=16", "layout.mbs=1", "layout.gbs=2"]


def toy_cases() -> list[Case]:
    """One case for each contender, small enough for a CPU."""
    return [Case(who, "llama3_tiny", TOY, cpu=True, steps=2, warm_up=1, profile=True) for who in ("slipway", *PEERS)]


def gpu_cases(gpu: str, fitting_layers: int) -> list[Case]:
    """Every case once: first those that the ratios are taken from, last those that only complete the table.

    Args:
        gpu: name in configs/gpu.
        fitting_layers: the most layers that fit; every case is measured with :data:`FEW_LAYERS` too.
    """
    out: list[Case] = []
    for case in _in_order(gpu, fitting_layers):
        if not any(replace(case, profile=earlier.profile) == earlier for earlier in out):
            out.append(case)
    return out


def _in_order(gpu: str, fitting_layers: int) -> Iterator[Case]:
    """The cases as they are wanted, some of them repeated."""

    def case(
        layers: int, precision: str, mbs: int, recompute: str = "none", *changes: str, who: str = "slipway"
    ) -> Case:
        shape = ["gpus=1", "layout.tp=1", f"layout.seq_length={SEQUENCE_LENGTH}", f"layout.gbs={SEQUENCES}"]
        varied = [f"model.num_layers={layers}", f"precision={precision}", f"layout.mbs={mbs}"]
        return Case(who, overrides=[f"gpu={gpu}", *shape, *varied, *RECOMPUTE[recompute], *changes])

    def peer(who: str, mbs: int) -> Case:
        return case(FEW_LAYERS, "fp8_current" if who == "torch_float8" else "bf16", mbs, who=who)

    yield from (replace(case(FEW_LAYERS, precision, 1), profile=True) for precision in PRECISIONS)
    yield from (replace(peer(who, 1), profile=True) for who in PEERS)
    yield from (case(fitting_layers, precision, 1) for precision in PRECISIONS)
    for mbs, precision in itertools.product(MICRO_BATCHES[1:], PRECISIONS):
        yield case(FEW_LAYERS, precision, mbs)
    for mbs, who in itertools.product(MICRO_BATCHES[1:], PEERS):
        yield peer(who, mbs)
    yield from (case(FEW_LAYERS, precision, 1, "none", change) for precision, change in VARIANTS)
    for layers, recompute, mbs in itertools.product((FEW_LAYERS, fitting_layers), RECOMPUTE, MICRO_BATCHES):
        yield from (case(layers, precision, mbs, recompute) for precision in PRECISIONS)


def layers_that_fit(gpu: str) -> int:
    """The most layers that fit in bf16 without recompute, by the planner.

    Raises:
        Refusal: not even one layer fits.
    """
    shape = [f"gpu={gpu}", "gpus=1", "layout.tp=1", "layout.mbs=1", f"layout.gbs={SEQUENCES}", "precision=bf16"]
    for layers in range(ALL_LAYERS, 0, -1):
        spec = planner.complete(configs.load("llama3_8b", [*shape, f"model.num_layers={layers}"]))
        verdict = planner.check(spec)
        if verdict.memory and verdict.memory.fits:
            return layers
    raise configs.Refusal(f"not one layer fits on {gpu}")


def predict(case: Case) -> dict[str, Any]:
    """The planner's numbers for a case of ours; empty for the peers and on a CPU."""
    if case.who != "slipway" or case.cpu:
        return {}
    verdict = planner.check(case.spec)
    if not (verdict.legal and verdict.memory and verdict.time):
        return {"violations": [violation.rule for violation in verdict.violations]}
    memory, time = verdict.memory, verdict.time
    return {
        "step_time_s": time.step_time_s,
        "tokens_per_s": time.tokens_per_s_per_gpu,
        "mfu": time.mfu,
        "breakdown": time.breakdown,
        "peak_gib": memory.peak_gib,
        "needed_gib": memory.needed_gib,
        "fits": memory.fits,
    }
