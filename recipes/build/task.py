"""What a task calls: a function of ``nemo.collections.llm``, judged first, and the adapter that it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nemo_run as run

from slipway.configs import Adapter, Call, Spec
from slipway.recipes.finetune.adapters import DoRA, LoRA
from slipway.recipes.runtime.start import finetune, pretrain

FUNCTIONS: dict[Call, Callable[..., Any]] = {Call.pretrain: pretrain, Call.finetune: finetune}
"""What the recipe of each task calls."""

ADAPTERS: dict[Adapter, type] = {Adapter.lora: LoRA, Adapter.dora: DoRA}
"""The class of each adapter."""


def adapter(spec: Spec) -> dict[str, run.Config]:
    """The argument ``peft`` of ``llm.finetune``; nothing where the weights themselves train."""
    task = spec.task
    if task.adapter is Adapter.none:
        return {}
    config = run.Config(
        ADAPTERS[task.adapter],
        target_modules=list(task.lora_targets),
        dim=task.lora_rank,
        alpha=task.lora_alpha,
        dropout=task.lora_dropout,
        seed=spec.run.seed,
    )
    return {"peft": config}
