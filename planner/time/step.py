"""Seconds of one optimizer step: kernels by shape, communication by link, the pipeline by simulation.

A layer is priced once for all layouts that split it alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from slipway.configs import Calibration, Fsdp, Spec
from slipway.planner import flops
from slipway.planner.bands import band_of
from slipway.planner.levers import deferred_micro_batches
from slipway.planner.numerics import dense_peak_tflops
from slipway.planner.time.communication import DataParallel, data_parallel, send_seconds
from slipway.planner.time.kernels import device_of
from slipway.planner.time.layer import Cost, embedding_cost, layer_cost, loss_cost, output_weight_gradient_s
from slipway.planner.time.operations import Term
from slipway.planner.time.pipeline import Stage, stages
from slipway.planner.time.schedule import kind_of, lower_bound, pipeline_time
from slipway.planner.workload import Workload, workload_of

__all__ = [
    "Cost",
    "StepTime",
    "embedding_cost",
    "layer_cost",
    "loss_cost",
    "step_time",
    "step_time_bound",
    "workload_step_time",
]


@dataclass(frozen=True)
class StepTime:
    """The prediction of a step. ``breakdown`` has the seconds of the busiest stage by term; they sum to the step."""

    step_time_s: float
    low_s: float
    high_s: float
    tokens_per_s_per_gpu: float
    model_tflops_per_gpu: float
    model_tflops_full_attention: float
    mfu: float
    bubble_fraction: float
    breakdown: dict[str, float] = field(default_factory=dict)
    stage_forward_s: list[list[float]] = field(default_factory=list)
    stage_backward_s: list[list[float]] = field(default_factory=list)
    send_s: float = 0.0
    calibration: str = ""  # name of the constants that it was computed with: part/software generation


@dataclass(frozen=True)
class _Parts:
    """A step before its pipeline is simulated, in seconds."""

    stages: list[Stage]
    send: float  # from one stage to the next
    drain: float  # of weight gradients after the last stage's last pass, beyond what the other stages hide
    once: DataParallel
    fixed: float  # added once a step
    stretch: float  # factor for stragglers


def _parts(work: Workload, *, account: bool) -> _Parts:
    spec, cal = work.spec, work.calibration
    device = device_of(work.context)
    priced = stages(work, account=account)
    drain = _defer_weight_gradients(work, priced)
    window = max(stage.work for stage in priced)
    if spec.layout.fsdp is not Fsdp.none:
        window *= work.num_micro_batches
    nodes = max(1.0, spec.gpus / spec.gpu.gpus_per_node)
    return _Parts(
        stages=priced,
        send=send_seconds(work, device),
        drain=drain,
        once=data_parallel(work, device, window),
        fixed=cal.step_overhead_s,
        stretch=1.0 + cal.jitter_per_doubling * math.log2(nodes),
    )


def _defer_weight_gradients(work: Workload, priced: list[Stage]) -> float:
    """Take the deferred weight gradients of the output layer out of the last stage's passes.

    They follow its last pass, while the other stages still run the backward passes of their first chunks.

    Returns:
        Seconds of them that those do not hide.
    """
    deferred = deferred_micro_batches(work.spec)
    if not deferred:
        return 0.0
    seconds = output_weight_gradient_s(work.context)
    share, last = deferred / work.num_micro_batches * seconds, priced[-1]
    last.backward[-1] -= share
    if last.spent:
        last.spent[Term.loss] -= share
    hidden = sum(stage.backward[0] for stage in priced[:-1])
    return max(deferred * seconds - hidden, 0.0)


def step_time_bound(work: Workload) -> float:
    """Seconds that the step cannot beat: everything but the simulation of its pipeline, and a lower bound of that."""
    parts = _parts(work, account=False)
    pipeline = lower_bound(
        [stage.forward for stage in parts.stages],
        [stage.backward for stage in parts.stages],
        work.num_micro_batches,
        kind_of(work.spec.layout),
    )
    return (pipeline + parts.drain + parts.once.exposed + parts.once.optimizer + parts.fixed) * parts.stretch


def step_time(spec: Spec, cal: Calibration | None = None) -> StepTime:
    """Predict the seconds of one optimizer step of a legal spec."""
    return workload_step_time(workload_of(spec, cal))


def workload_step_time(work: Workload) -> StepTime:
    """As :func:`step_time`, of a workload that is derived already."""
    spec, cal, micro_batches = work.spec, work.calibration, work.num_micro_batches
    parts = _parts(work, account=True)
    forward = [stage.forward for stage in parts.stages]
    backward = [stage.backward for stage in parts.stages]
    pipeline, bubble = pipeline_time(forward, backward, micro_batches, parts.send, kind_of(spec.layout))
    pipeline += parts.drain
    before = pipeline + parts.once.exposed + parts.once.optimizer + parts.fixed
    total = before * parts.stretch
    rate = spec.batch.tokens / total / spec.gpus
    tflops = rate * flops.model_flops_per_token(spec) / 1e12
    peak = dense_peak_tflops(spec.gpu, work.context.numerics.gemm)
    busiest = max(parts.stages, key=lambda stage: stage.work)
    width = band_of(spec, cal).factor
    return StepTime(
        step_time_s=total,
        low_s=total / width,
        high_s=total * width,
        tokens_per_s_per_gpu=rate,
        model_tflops_per_gpu=tflops,
        model_tflops_full_attention=rate * flops.model_flops_per_token(spec, causal=False) / 1e12,
        mfu=tflops / peak if peak else 0.0,
        bubble_fraction=bubble,
        breakdown={term.value: seconds * micro_batches for term, seconds in busiest.spent.items()}
        | {
            Term.bubble.value: max(pipeline - busiest.work * micro_batches, 0.0),
            Term.data_parallel.value: parts.once.exposed,
            Term.optimizer.value: parts.once.optimizer,
            Term.other.value: parts.fixed + total - before,
        },
        stage_forward_s=forward,
        stage_backward_s=backward,
        send_s=parts.send,
        calibration=cal.name,
    )
