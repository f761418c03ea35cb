"""What is trained of a model, and by which function of NeMo."""

from __future__ import annotations

from dataclasses import dataclass

from slipway.configs.schema.legal import Choice, Count


class Call(Choice):
    """The function of ``nemo.collections.llm`` that a task calls."""

    pretrain = "pretrain"
    finetune = "finetune"


class Adapter(Choice):
    """What is trained while the weights stay frozen; ``none`` trains the weights themselves."""

    none = "none"
    lora = "lora"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained of a model, and by which function of NeMo."""

    name: str = "pretrain"
    """Name of the file in configs/task."""

    call: Call = Call.pretrain
    """The function of ``nemo.collections.llm``."""

    adapter: Adapter = Adapter.none
    """What is trained while the weights stay frozen; ``none``: the weights themselves."""

    lora_rank: Count = 0
    """Inner width of a LoRA adapter; 0 without one."""

    source: str = ""
    """Where the values come from."""
