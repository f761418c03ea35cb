"""What a task calls: a function of ``nemo.collections.llm``, judged first, and the data module that feeds it.

To add a task (SFT, LoRA): add its call to ``_PARTS`` with the module that builds its data, let ``Parts`` carry the
function that builds its adapter (the argument ``peft`` of ``llm.finetune``), and pass both on in ``build``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slipway.configs import Adapter, Call, Refusal, Task
from slipway.recipes.build.data import pretraining_data
from slipway.recipes.runtime.start import pretrain


@dataclass(frozen=True)
class Parts:
    """What the builder takes from a task.

    Attributes:
        function: what the recipe calls.
        data: builds the configuration of the data module from ``(spec, cpu=)``.
    """

    function: Callable[..., Any]
    data: Callable[..., Any]


_PARTS = {Call.pretrain: Parts(function=pretrain, data=pretraining_data)}


def parts_of(task: Task) -> Parts:
    """The parts of ``task``.

    Raises:
        Refusal: the task can be planned for, but no recipe trains it.
    """
    parts = _PARTS.get(task.call)
    if parts is None or task.adapter is not Adapter.none:
        raise Refusal(f"task={task.name} can be planned for but not trained by these recipes", "Use task=pretrain.")
    return parts
