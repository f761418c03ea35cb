"""What ``--json`` prints of a layout and of a verdict. The keys are an interface: they do not change."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

from slipway.configs import Schedule, Spec
from slipway.planner.check import Verdict
from slipway.planner.cost import SECONDS_PER_DAY, Cost
from slipway.planner.course import Course
from slipway.planner.goodput import Goodput
from slipway.planner.layout import sizes
from slipway.planner.memory import Memory, StageMemory
from slipway.planner.rules import Violation
from slipway.planner.time.step import StepTime


def as_json(verdict: Verdict) -> dict[str, Any]:
    """The object that ``slipway check --json`` prints; ``memory`` and ``throughput`` are null for an illegal run."""
    spec, count = verdict.spec, verdict.parameters
    return {
        "name": spec.name,
        "gpu": spec.gpu.name,
        "gpus": spec.gpus,
        "precision": spec.precision.name,
        "layout": layout_json(spec),
        "legal": verdict.legal,
        "fits": verdict.fits,
        "violations": [_violation(v) for v in verdict.violations],
        "warnings": [_violation(v) for v in verdict.advice],
        "parameters": {"total": count.total, "active": count.active, "per_rank": count.per_rank},
        "memory": _memory(verdict.memory, verdict.expert_load, verdict.p_fits) if verdict.memory else None,
        "throughput": _throughput(verdict.time) if verdict.time else None,
        "calibration": verdict.time.calibration if verdict.time else None,
    }


def layout_json(spec: Spec) -> dict[str, Any]:
    """The layout with its sizes and what decides memory."""
    layout = spec.layout
    schedule = {} if layout.schedule is Schedule.auto else {"schedule": layout.schedule.value}
    return {
        **sizes(spec),
        **schedule,
        "seq_length": spec.seq_length,
        "recompute": layout.recompute.value,
        "recompute_modules": list(layout.recompute_modules),
        "fsdp": layout.fsdp.value,
        "account_for_embedding": layout.account_for_embedding,
        "account_for_loss": layout.account_for_loss,
        "num_layers_in_last_pipeline_stage": layout.num_layers_in_last_pipeline_stage,
        "pipeline_layout": layout.pipeline_layout,
        "source": layout.source,
    }


def plain(value: Any) -> Any:
    """A value of the layout as JSON holds it."""
    return value.value if isinstance(value, Enum) else value


def _violation(violation: Violation) -> dict[str, str]:
    return {"rule": violation.rule, "message": violation.message, "fix": violation.fix}


def _memory(memory: Memory, expert_load: float, p_fits: float) -> dict[str, Any]:
    return {
        "peak_gib": memory.peak_gib,
        "capacity_gib": memory.capacity_gib,
        "needed_gib": memory.needed_gib,
        "headroom_gib": memory.headroom_gib,
        "p_fits": p_fits,
        "host_gib_per_gpu": memory.host_gib_per_gpu,
        "checkpoint_gib": memory.checkpoint_gib,
        "expert_load_that_fits": expert_load if math.isfinite(expert_load) else None,
        "stages": [_stage(stage) for stage in memory.stages],
    }


def _stage(stage: StageMemory) -> dict[str, float]:
    return {
        "stage": stage.stage,
        "parameters_gib": stage.parameters_gib,
        "gradients_gib": stage.gradients_gib,
        "optimizer_gib": stage.optimizer_gib,
        "activations_gib": stage.activations_gib,
        "logits_gib": stage.logits_gib,
        "buffers_gib": stage.buffers_gib,
        "total_gib": stage.total_gib,
    }


def _throughput(time: StepTime) -> dict[str, Any]:
    return {
        "step_time_s": time.step_time_s,
        "step_time_low_s": time.low_s,
        "step_time_high_s": time.high_s,
        "tokens_per_s_per_gpu": time.tokens_per_s_per_gpu,
        "model_tflops_per_gpu": time.model_tflops_per_gpu,
        "model_tflops_per_gpu_full_attention": time.model_tflops_full_attention,
        "mfu": time.mfu,
        "bubble_fraction": time.bubble_fraction,
        "breakdown": time.breakdown,
    }


def cost_json(cost: Cost) -> dict[str, Any]:
    """What a run costs; null where nobody states a price or a power."""
    return {
        "days": cost.days,
        "gpu_hours": cost.gpu_hours,
        "dollars": cost.dollars,
        "gpu_kwh": cost.gpu_kwh,
        "system_kwh": cost.system_kwh,
    }


def goodput_json(found: Goodput, seconds: float) -> dict[str, Any]:
    """What a run whose steps take ``seconds`` loses to saves and interruptions."""
    return {
        "mtbf_s": found.mtbf_s,
        "interruptions": seconds / found.value / found.mtbf_s if found.value else None,
        "save_s": found.save_s,
        "write_s": found.write_s,
        "restart_s": found.restart_s,
        "interval_s": found.interval_s if math.isfinite(found.interval_s) else None,
        "goodput": found.value,
        "best_interval_s": found.best_s,
        "best_goodput": found.at(found.best_s),
        "young_interval_s": found.young_s,
        "spare_nodes": found.spare_nodes,
        "days": seconds / found.value / SECONDS_PER_DAY if found.value else None,
    }


def course_json(run: Course) -> dict[str, Any]:
    """The length of a run; ``batches`` are those of its ramp, in order."""
    return {
        "steps": run.steps,
        "tokens": run.tokens,
        "seconds": run.seconds,
        "batches": [{"gbs": part.gbs, "steps": part.steps, "step_time_s": part.step_time_s} for part in run.parts],
    }
