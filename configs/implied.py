"""What the values that a user gave imply for those of the recipe that say the same in another way.

A recipe states its warm-up in steps or in tokens and its schedule as a shape or as stages. A user who gives one form
means it to replace the other. Two forms that a user gave are both kept, so that a contradiction is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from typing import Any

from slipway.configs.schema.optimizer import LrSchedule, Optimizer
from slipway.configs.schema.stages import lr_stage


def implied_optimizer(optim: Optimizer, given: Container[str]) -> dict[str, Any]:
    """The fields of ``optim`` that the user's keys imply, with their values.

    Args:
        given: the dotted keys that the user gave.
    """
    user = {field.name for field in dataclasses.fields(optim) if f"optim.{field.name}" in given}
    implied = _other_unit(optim, user)
    schedule = optim.schedule
    if "stages" in user and optim.stages and "schedule" not in user:
        implied["schedule"] = schedule = LrSchedule.stages
    if schedule is LrSchedule.stages and user & {"stages", "schedule"}:
        implied |= _of_stages(optim)
    elif schedule is not LrSchedule.stages and optim.stages and "stages" not in user:
        implied |= _of_a_shape(optim)
    if schedule is LrSchedule.constant and user & {"lr", "schedule"}:
        implied["min_lr"] = optim.lr
    return {key: value for key, value in implied.items() if key not in user and value != getattr(optim, key)}


def _other_unit(optim: Optimizer, user: set[str]) -> dict[str, Any]:
    """Steps that are given replace the recipe's tokens, and tokens its steps."""
    implied: dict[str, Any] = {}
    for kind in ("warmup", "decay"):
        if f"{kind}_steps" in user:
            implied[f"{kind}_tokens"] = "" if getattr(optim, f"{kind}_steps") else getattr(optim, f"{kind}_tokens")
        if f"{kind}_tokens" in user and getattr(optim, f"{kind}_tokens"):
            implied[f"{kind}_steps"] = 0
    return implied


def _of_stages(optim: Optimizer) -> dict[str, Any]:
    rates = [stage.lr for stage in map(lr_stage, optim.stages) if stage.lr is not None]
    return {"decay_steps": 0, "decay_tokens": "", "min_lr": rates[-1] if rates else optim.lr}


def _of_a_shape(optim: Optimizer) -> dict[str, Any]:
    """A shape takes the length of the stages that it replaces."""
    implied: dict[str, Any] = {"stages": []}
    if not optim.decay_steps and not optim.decay_tokens:
        until = lr_stage(optim.stages[-1]).until
        tokens = until.unit == "tokens"
        implied |= {"decay_tokens": str(until.at) if tokens else "", "decay_steps": 0 if tokens else until.at}
    return implied
