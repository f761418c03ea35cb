"""The task of what trains: its adapter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from slipway.configs import Adapter, Refusal, Task
from slipway.recipes.build.task import ADAPTERS
from slipway.recipes.readback.parts import Parts, kind_of, value

_KEYS = {"lora_rank": "dim", "lora_alpha": "alpha", "lora_dropout": "dropout", "lora_targets": "target_modules"}


def read_task(parts: Parts, base: Task) -> Task:
    """The task of ``parts``.

    Raises:
        Refusal: an adapter that is not a recipe's.
    """
    if parts.peft is None:
        return replace(base, adapter=Adapter.none, lora_rank=0, lora_alpha=0, lora_dropout=0.0, lora_targets=[])
    kind = kind_of(parts.peft)
    for adapter, ours in ADAPTERS.items():
        if kind is ours:
            changed: dict[str, Any] = {ours: value(parts.peft, theirs) for ours, theirs in _KEYS.items()}
            return replace(base, adapter=adapter, **changed | {"lora_targets": list(changed["lora_targets"])})
    raise Refusal(
        f"peft={kind.__name__} is no adapter of these recipes, whose first weights no layout changes",
        "Give peft=lora or peft=dora to the factory, and change its arguments: peft.dim=16.",
    )
