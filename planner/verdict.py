"""``check``: one spec judged. ``complete``: a recipe without a layout gets a published one, else the planner's best."""

from __future__ import annotations

import csv
import functools
import math
from dataclasses import dataclass, replace
from typing import Any

from slipway.configs import Fsdp, Layout, Recompute, Refusal, Resolved, Spec
from slipway.configs.load import ROOT
from slipway.planner.calibration import calibration_for
from slipway.planner.layout import PARALLEL, sizes, with_sizes
from slipway.planner.memory import Memory, expert_load_that_fits, memory
from slipway.planner.parameters import ParameterCount, parameters
from slipway.planner.rules import Severity, Violation, is_legal, violations
from slipway.planner.search import Candidate, plan
from slipway.planner.stages import chunks_of
from slipway.planner.time.step import StepTime, step_time


@dataclass(frozen=True)
class Verdict:
    """What ``slipway check`` says. ``memory`` and ``time`` are None where the layout is not legal."""

    spec: Spec
    violations: list[Violation]
    advice: list[Violation]
    parameters: ParameterCount
    memory: Memory | None
    time: StepTime | None
    expert_load: float = math.inf  # see planner.memory.expert_load_that_fits

    @property
    def legal(self) -> bool:
        return not self.violations

    @property
    def fits(self) -> bool:
        return self.memory is not None and self.memory.fits


def check(spec: Spec) -> Verdict:
    """Legality, memory and time of a complete spec."""
    broken, advice = violations(spec), violations(spec, Severity.advice)
    countable = chunks_of(spec) is not None and not spec.model.num_attention_heads % spec.layout.tp
    count = parameters(spec if countable else replace(spec, layout=Layout()))
    if broken:
        return Verdict(spec, broken, advice, replace(count, per_rank=count.per_rank if countable else []), None, None)
    cal = calibration_for(spec)
    return Verdict(
        spec, broken, advice, count, memory(spec, cal), step_time(spec, cal), expert_load_that_fits(spec, cal)
    )


def nearest_good(spec: Spec) -> Candidate | None:
    """The legal layout that fits and changes least of what was asked; among equals the fastest."""
    try:
        candidates = plan(spec, top=64).candidates
    except Refusal:
        return None

    def distance(c: Candidate) -> tuple[float, float]:
        a, b = spec.layout, c.layout
        pairs = ((getattr(a, name), getattr(b, name)) for name in ("tp", "pp", "vpp", "cp", "ep", "mbs"))
        moved = sum(abs(math.log2(x / y)) for x, y in pairs)
        return moved + (a.recompute is not b.recompute) + 2 * (a.fsdp is not b.fsdp), c.time.step_time_s

    return min(candidates, key=distance)


@functools.cache
def _published() -> list[dict[str, str]]:
    path = ROOT / "layout" / "published.csv"
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def published_layout(spec: Spec) -> Spec | None:
    """``spec`` with the fastest published layout of its model, GPU, count and precision that is legal here and fits."""
    best: tuple[float, Spec] | None = None
    for row in _published():
        if (row["model"], row["gpu"], row["precision"]) != (spec.model.name, spec.gpu.name, spec.precision.name):
            continue
        if int(row["gpus"]) != spec.gpus or int(row["seq_length"]) != spec.seq_length:
            continue
        layout = replace(
            with_sizes(spec.layout, {name: row[name] for name in (*PARALLEL, "mbs")}),
            fsdp=Fsdp(row["fsdp"]),
            recompute=Recompute(row["recompute"]),
            source=row["source"],
        )
        trial = split_layers(replace(spec, layout=layout))
        rate = float(row["tokens_per_s_per_gpu"])
        if is_legal(trial) and memory(trial).fits and (best is None or rate > best[0]):
            best = (rate, trial)
    return best[1] if best else None


def split_layers(spec: Spec) -> Spec:
    """Where ``layout.split_unevenly`` allows it: count the embedding and the loss as layers, else shorten the last stage."""
    lay, layers = spec.layout, spec.model.num_layers
    chosen = lay.account_for_embedding or lay.account_for_loss
    chosen = chosen or bool(lay.num_layers_in_first_pipeline_stage or lay.num_layers_in_last_pipeline_stage)
    if not lay.split_unevenly or chosen or layers % (lay.pp * lay.vpp) == 0:
        return spec
    if (layers + 2) % (lay.pp * lay.vpp) == 0:
        return replace(spec, layout=replace(lay, account_for_embedding=True, account_for_loss=True))
    each = -(-layers // lay.pp)
    last = layers - each * (lay.pp - 1)
    if last > 0 and each % lay.vpp == 0 and last % lay.vpp == 0:
        return replace(spec, layout=replace(lay, num_layers_in_last_pipeline_stage=last))
    return spec


def choose_layout(resolved: Resolved) -> tuple[Spec, str]:
    """The resolved recipe with a layout, and who chose it."""
    spec = resolved.spec
    if resolved.layout_given:
        return split_layers(spec), "given"
    published = published_layout(spec)
    if published is not None:
        return published, f"published: {published.layout.source}"
    return plan(spec, top=1).candidates[0].spec, "the planner's fastest that fits"


def complete(resolved: Resolved) -> Spec:
    """The resolved recipe with a layout."""
    return choose_layout(resolved)[0]


def as_json(verdict: Verdict) -> dict[str, Any]:
    """The object that ``slipway check --json`` prints."""
    out: dict[str, Any] = {
        "name": verdict.spec.name,
        "gpu": verdict.spec.gpu.name,
        "gpus": verdict.spec.gpus,
        "precision": verdict.spec.precision.name,
        "layout": layout_json(verdict.spec),
        "legal": verdict.legal,
        "fits": verdict.fits,
        "violations": [{"rule": v.rule, "message": v.message, "fix": v.fix} for v in verdict.violations],
        "warnings": [{"rule": v.rule, "message": v.message, "fix": v.fix} for v in verdict.advice],
        "parameters": {
            "total": verdict.parameters.total,
            "active": verdict.parameters.active,
            "per_rank": verdict.parameters.per_rank,
        },
        "memory": None,
        "throughput": None,
    }
    if verdict.memory:
        m = verdict.memory
        out["memory"] = {
            "peak_gib": m.peak_gib,
            "capacity_gib": m.capacity_gib,
            "needed_gib": m.needed_gib,
            "headroom_gib": m.headroom_gib,
            "host_gib_per_gpu": m.host_gib_per_gpu,
            "checkpoint_gib": m.checkpoint_gib,
            "expert_load_that_fits": verdict.expert_load if math.isfinite(verdict.expert_load) else None,
            "stages": [
                {
                    "stage": s.stage,
                    "parameters_gib": s.parameters_gib,
                    "gradients_gib": s.gradients_gib,
                    "optimizer_gib": s.optimizer_gib,
                    "activations_gib": s.activations_gib,
                    "logits_gib": s.logits_gib,
                    "buffers_gib": s.buffers_gib,
                    "total_gib": s.total_gib,
                }
                for s in m.stages
            ],
        }
    if verdict.time:
        t = verdict.time
        out["throughput"] = {
            "step_time_s": t.step_time_s,
            "step_time_low_s": t.low_s,
            "step_time_high_s": t.high_s,
            "tokens_per_s_per_gpu": t.tokens_per_s_per_gpu,
            "model_tflops_per_gpu": t.model_tflops_per_gpu,
            "model_tflops_per_gpu_full_attention": t.model_tflops_full_attention,
            "mfu": t.mfu,
            "bubble_fraction": t.bubble_fraction,
            "breakdown": t.breakdown,
        }
    return out


def layout_json(spec: Spec) -> dict[str, Any]:
    lay = spec.layout
    return {
        **sizes(spec),
        "seq_length": spec.seq_length,
        "recompute": lay.recompute.value,
        "recompute_modules": list(lay.recompute_modules),
        "fsdp": lay.fsdp.value,
        "account_for_embedding": lay.account_for_embedding,
        "account_for_loss": lay.account_for_loss,
        "num_layers_in_last_pipeline_stage": lay.num_layers_in_last_pipeline_stage,
        "source": lay.source,
    }
