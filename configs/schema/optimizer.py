"""Optimizer and learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass

from slipway.configs.schema.legal import Choice, Count, Fraction, NonNegative, Positive


class Algorithm(Choice):
    """The update rule. Only Adam: the planner's memory counts Adam's two moments."""

    adam = "adam"


class LrSchedule(Choice):
    """The shape of the learning rate after warm-up. Only cosine is built."""

    cosine = "cosine"


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Optimizer and schedule. Each family has its own file with its own source; families share no default."""

    name: str
    """Name of the file in configs/optim."""

    source: str = ""
    """Where the values come from."""

    optimizer: Algorithm = Algorithm.adam
    """The update rule (Adam with decoupled weight decay)."""

    lr: NonNegative
    """Peak learning rate."""

    min_lr: NonNegative
    """Learning rate at the end of the schedule."""

    weight_decay: NonNegative
    """Decoupled weight decay."""

    adam_beta1: Fraction
    """Decay rate of Adam's first moment."""

    adam_beta2: Fraction
    """Decay rate of Adam's second moment."""

    adam_eps: Positive
    """The number that Adam adds to the root of its second moment."""

    clip_grad: NonNegative = 1.0
    """Largest norm of the gradient; 0: no clipping."""

    warmup_steps: Count
    """Steps of linear warm-up."""

    decay_steps: Count = 0
    """Step at which the schedule reaches ``min_lr``; 0: ``run.max_steps`` of the run's first launch."""

    schedule: LrSchedule = LrSchedule.cosine
    """The shape of the learning rate after warm-up."""

    precision_aware: bool = False
    """Whether Adam's moments and the gradients are in bf16 (Megatron-Core's precision-aware optimizer)."""
