"""Rules of what changes during a run: the batch's ramp and the constants of the loss."""

from __future__ import annotations

from slipway.configs import Spec
from slipway.configs.schedule import batch_ramp_error, batches_of, changes_error, has_length, schedule_of
from slipway.planner.rules.batch import batch_is_divided
from slipway.planner.rules.pipeline import interleaved_micro_batches
from slipway.planner.rules.registry import MCORE, Broken, Framework, Phase, Severity, rule

_MOSTLY = 0.95  # of a run: a schedule that ends later is taken to end with the run


@rule(
    "rate-ends",
    says="the learning rate does not reach its end long before the run does",
    why="the rest of the run would train at the least learning rate",
    source="slipway.configs.schedule: after its last stage the learning rate stays where it is",
    severity=Severity.advice,
)
def _rate_ends(spec: Spec) -> Broken | None:
    if not has_length(spec.optim):
        return None
    schedule, steps = schedule_of(spec), spec.run.max_steps
    end = schedule.learning_rate.steps
    if end >= _MOSTLY * steps:
        return None
    done, all_tokens = (schedule.batches.tokens_at(step) / 1e12 for step in (end, steps))
    return Broken(
        f"the learning rate ends after {end:,} of the run's {steps:,} steps, {done:.3g} of {all_tokens:.3g} T tokens",
        "Set optim.decay_tokens to the run's tokens and optim.decay_steps=0, or a smaller run.max_steps.",
    )


@rule(
    "batch-ramp",
    says="a batch ramp grows up to layout.gbs, and each of its batches obeys the rules of the batch",
    why="the number of micro-batches is computed anew for every batch of the ramp",
    source=MCORE + "num_microbatches_calculator.RampupBatchsizeNumMicroBatchesCalculator",
    phase=Phase.step,
)
def _batch_ramp(spec: Spec) -> Broken | None:
    if not spec.optim.batch_ramp:
        return None
    if error := batch_ramp_error(spec):
        return Broken(*error)
    for gbs in batches_of(spec).distinct:
        if broken := batch_is_divided(spec, gbs) or interleaved_micro_batches(spec, gbs):
            return Broken(
                f"optim.batch_ramp has a batch of {gbs} sequences: {broken.message}",
                "Use other batches or another increment, fewer data-parallel ranks, or optim.batch_ramp=[] for "
                f"{spec.layout.gbs} from the first step on.",
            )
    return None


@rule(
    "loss-changes",
    says="a constant of the loss that changes belongs to a part that the model has",
    why="Megatron-Core does not read the constant of a part that is not built",
    source=MCORE + "transformer_config.TransformerConfig",
    phase=Phase.never,
)
def _loss_changes(spec: Spec) -> Broken | None:
    error = changes_error(spec)
    return Broken(*error) if error else None


@rule(
    "rope-scaling",
    says="a factor of RoPE's scaling is given where the model's class scales, and is at least 1",
    why="a class without scaling has no such field, and trains without it",
    source="NeMo 2.7.3 llm.Llama31Config.scale_factor, llm.DeepSeekConfig.rotary_scaling_factor",
    phase=Phase.never,
    only_in=Framework.nemo,
)
def _rope_scaling(spec: Spec) -> Broken | None:
    error = spec.model.rope_scaling_error()
    return Broken(*error) if error else None
