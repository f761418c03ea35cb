"""Warm-up and cosine decay whose length is the recipe's, never silently a checkpoint's."""

from __future__ import annotations

import logging
from typing import Any

from nemo.core.optim.lr_scheduler import CosineAnnealing
from nemo.lightning.pytorch.optim import LRSchedulerModule

from slipway.configs import Refusal

_SHAPE = ("max_steps", "warmup_steps", "constant_steps", "decay_steps", "min_lr")
_log = logging.getLogger(__name__)


class _Cosine(CosineAnnealing):
    """Upstream stores the schedule's length in the checkpoint and takes it back on resume.

    A finished job that is extended then trains on at min_lr, without a word. Here the recipe decides: either the new
    length counts (``extend``), or the run stops and says what to do.
    """

    extend = False

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        stored = {k: state_dict[k] for k in _SHAPE if k in state_dict}
        ours = {k: getattr(self, k) for k in stored}
        if stored != ours and not self.extend:
            changed = ", ".join(f"{k} {stored[k]} -> {ours[k]}" for k in stored if stored[k] != ours[k])
            raise Refusal(
                f"the checkpoint's learning-rate schedule is not the recipe's ({changed})",
                "run.extend_schedule=true stretches it to the recipe's; "
                f"optim.decay_steps={stored.get('max_steps')} keeps the old one.",
            )
        super().load_state_dict({**state_dict, **ours})
        if stored != ours:
            _log.warning("learning-rate schedule stretched on resume: %s -> %s", stored, ours)


class CosineSchedule(LRSchedulerModule):
    """NeMo's cosine schedule with a stated answer to "what if the checkpoint's schedule differs".

    Args:
        decay_steps: the step at which ``min_lr`` is reached. Not ``max_steps``: the strategy overwrites that name with
            the trainer's, which ties the schedule to how long one job happens to run.
        extend: on resume, stretch a shorter stored schedule to this one instead of refusing.
    """

    def __init__(self, decay_steps: int, warmup_steps: int, min_lr: float, extend: bool = False) -> None:
        super().__init__()
        self.decay_steps = decay_steps
        self.warmup_steps = warmup_steps
        self.min_lr = min_lr
        self.extend = extend

    def scheduler(self, model: Any, optimizer: Any) -> dict[str, Any]:
        # a short trial run may end inside the warm-up: the policy then needs room for at least one decay step
        steps = max(self.decay_steps, self.warmup_steps + 1)
        policy = _Cosine(
            optimizer,
            max_steps=steps,
            warmup_steps=self.warmup_steps,
            constant_steps=0,
            min_lr=self.min_lr,
        )
        policy.extend = self.extend
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": policy, "interval": "step", "frequency": 1},
            "monitor": "val_loss",
        }
