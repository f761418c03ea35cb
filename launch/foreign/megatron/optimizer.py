"""The optimizer that Megatron-LM's arguments describe. No prediction depends on it: what is written of a run does.

Source: megatron/training/arguments.py and megatron/training/training.py of github.com/NVIDIA/Megatron-LM at
core_v0.15.3.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from slipway.configs import Optimizer
from slipway.configs.schema.optimizer import LrSchedule
from slipway.launch.foreign.megatron.arguments import Arguments

STYLES = {
    "cosine": LrSchedule.cosine,
    "linear": LrSchedule.linear,
    "constant": LrSchedule.constant,
    "inverse-square-root": LrSchedule.inverse_sqrt,
    "WSD": LrSchedule.wsd,
}
READ = "read"
"""Name of an optimizer that a file describes."""


def optimizer_of(args: Arguments, base: Optimizer, gbs: int, steps: int) -> Optimizer:
    """The optimizer, under the name ``read``; ``base`` where the arguments do not describe one that is legal.

    Args:
        gbs: sequences of a batch.
        steps: the steps of the run.
    """
    lr, style = args.unpriced("lr"), STYLES.get(str(args.unpriced("lr_decay_style")))
    if not lr or style is None or args.unpriced("optimizer") != "adam":
        return base
    ends = _steps(args, "lr_decay", gbs) or steps
    warmup = _steps(args, "lr_warmup", gbs) or int((args.unpriced("lr_warmup_fraction") or 0) * ends)
    names = ("weight_decay", "adam_beta1", "adam_beta2", "adam_eps", "clip_grad")
    constants: dict[str, Any] = {name: float(args.unpriced(name) or 0) for name in names}
    low = lr if style is LrSchedule.constant else args.unpriced("min_lr") or 0.0
    made = replace(
        base, name=READ, lr=lr, min_lr=low, schedule=style, warmup_steps=warmup, decay_steps=ends, **constants
    )
    if style is LrSchedule.constant:
        made = replace(made, decay_steps=0)
    return base if made.error() or not made.adam_eps else made


def _steps(args: Arguments, name: str, gbs: int) -> int:
    """The steps of ``NAME_iters``, or of the samples of ``NAME_samples``."""
    return int(args.unpriced(f"{name}_iters") or 0) or int(args.unpriced(f"{name}_samples") or 0) // gbs
