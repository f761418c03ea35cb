"""Optimizer and learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass, field

from slipway.configs.schema.legal import Choice, Count, Fraction, NonNegative, Positive
from slipway.configs.schema.stages import BatchStages, Changes, LrStages, Shape, Tokens, amount, lr_stage


class Algorithm(Choice):
    """The update rule. Only Adam: the planner's memory counts Adam's two moments."""

    adam = "adam"


class Moments(Choice):
    """The type of Adam's moments."""

    fp32 = "fp32"
    bf16 = "bf16"


class LrSchedule(Choice):
    """The shape of the learning rate after warm-up; ``stages``: the lines of ``optim.stages``."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"
    one_minus_sqrt = "one_minus_sqrt"
    inverse_sqrt = "inverse_sqrt"
    wsd = "wsd"
    stages = "stages"


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

    warmup_steps: Count = 0
    """Steps of linear warm-up."""

    warmup_tokens: Tokens = ""
    """Tokens of linear warm-up, in place of ``warmup_steps``."""

    decay_steps: Count = 0
    """Step at which the schedule reaches ``min_lr``; 0: ``decay_tokens`` says it, else ``run.max_steps`` of the first
    launch.
    """

    decay_tokens: Tokens = ""
    """Tokens after which the schedule reaches ``min_lr``, in place of ``decay_steps``."""

    schedule: LrSchedule = LrSchedule.cosine
    """The shape of the learning rate after warm-up."""

    stages: LrStages = field(default_factory=list)
    """With ``schedule=stages``: what follows the warm-up, one line a stage, such as ``cosine until 14.3T tokens to
    2.2e-5``. Positions count from the start of training.
    """

    wsd_decay_fraction: Fraction = 0.1
    """With ``schedule=wsd`` (warm-up, stable, decay): the share of the schedule that decays; 0.1 as in
    arXiv:2404.06395.
    """

    wsd_decay: Shape = Shape.one_minus_sqrt
    """With ``schedule=wsd``: the shape of the decay; ``one_minus_sqrt`` was the best of arXiv:2405.18392."""

    batch_ramp: BatchStages = field(default_factory=list)
    """Smaller global batches before ``layout.gbs``, in sequences, one line a stage: ``512 until 252M tokens``, or
    ``3072 by 768 until 469B tokens`` for a batch that grows. An override of ``layout.gbs`` turns a recipe's ramp off.
    """

    changes: Changes = field(default_factory=list)
    """Constants of the loss that change: ``mtp_loss_scaling_factor 0.1 from 10T tokens``."""

    context_extension: list[str] = field(default_factory=list)
    """The stages of longer sequences that were published for after this schedule, in words. They are not part of the
    run.
    """

    precision_aware: bool = False
    """Whether Adam's moments have a type of their own, ``moments`` (Megatron-Core's precision-aware optimizer)."""

    moments: Moments = Moments.bf16
    """With ``precision_aware``: the type of Adam's two moments."""

    def error(self) -> tuple[str, str] | None:
        """What is contradictory in the schedule and how to fix it; None where nothing is."""
        for kind in ("warmup", "decay"):
            steps, tokens = getattr(self, f"{kind}_steps"), getattr(self, f"{kind}_tokens")
            if steps and tokens:
                return (
                    f"optim.{kind}_steps={steps} and optim.{kind}_tokens={tokens} are both given",
                    f"Set one of them; optim.{kind}_steps=0 takes the tokens.",
                )
        if self.schedule is not LrSchedule.stages:
            return self._shape_error()
        if not self.stages:
            return "optim.schedule=stages has no optim.stages", "Give them, or use optim.schedule=cosine."
        return self._stages_error()

    def _shape_error(self) -> tuple[str, str] | None:
        if self.stages:
            return (
                f"optim.stages is given and optim.schedule={self.schedule} does not read it",
                "Use optim.schedule=stages, or optim.stages=[].",
            )
        if self.min_lr > self.lr:
            return f"optim.min_lr={self.min_lr:g} is above optim.lr={self.lr:g}", "Use optim.min_lr up to optim.lr."
        if self.schedule is LrSchedule.inverse_sqrt and not (self.warmup_steps or self.warmup_tokens):
            return (
                "optim.schedule=inverse_sqrt has no warm-up, and its learning rate is the peak times the root of "
                "warm-up over position",
                "Set optim.warmup_steps.",
            )
        if self.schedule is LrSchedule.wsd and self.wsd_decay in (Shape.constant, Shape.inverse_sqrt):
            return (
                f"optim.wsd_decay={self.wsd_decay} does not reach optim.min_lr",
                "Use one_minus_sqrt, linear or cosine.",
            )
        if self.schedule is LrSchedule.constant and self.min_lr != self.lr:
            return (
                f"optim.schedule=constant never reaches optim.min_lr={self.min_lr:g}",
                f"Use optim.min_lr={self.lr:g}, or another schedule.",
            )
        for kind, number in (("steps", int), ("tokens", lambda text: amount(text) if text else 0)):
            warmup, decay = (number(getattr(self, f"{name}_{kind}")) for name in ("warmup", "decay"))
            if decay and warmup >= decay:
                return (
                    f"optim.warmup_{kind}={warmup} does not end before optim.decay_{kind}={decay}",
                    f"Use a larger optim.decay_{kind} or a smaller optim.warmup_{kind}.",
                )
        return None

    def _stages_error(self) -> tuple[str, str] | None:
        if self.decay_steps or self.decay_tokens:
            return (
                "optim.decay_steps or optim.decay_tokens is given and optim.schedule=stages does not read them",
                "The last line of optim.stages is the end; or use optim.schedule=cosine optim.stages=[].",
            )
        last = [line.lr for line in map(lr_stage, self.stages) if line.lr is not None]
        if last and last[-1] != self.min_lr:
            return (
                f"optim.min_lr={self.min_lr:g} is not where optim.stages ends, which is {last[-1]:g}",
                f"Use optim.min_lr={last[-1]:g}, or change the last line of optim.stages.",
            )
        return None
