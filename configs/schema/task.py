"""What is trained of a model, and by which function of NeMo."""

from __future__ import annotations

from dataclasses import dataclass, field

from slipway.configs.schema.legal import Choice, Count, Fraction


class Call(Choice):
    """The function of ``nemo.collections.llm`` that a task calls."""

    pretrain = "pretrain"
    finetune = "finetune"


class Adapter(Choice):
    """What is trained while the weights stay frozen; ``none`` trains the weights themselves."""

    none = "none"
    lora = "lora"
    dora = "dora"


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
    """Inner width of an adapter; 0 without one."""

    lora_alpha: Count = 0
    """An adapter's output is multiplied by ``lora_alpha / lora_rank``."""

    lora_dropout: Fraction = 0.0
    """Share of an adapter's inputs that training drops."""

    lora_targets: list[str] = field(default_factory=list)
    """The linear layers that get an adapter, by their names in Megatron-Core: linear_qkv, linear_proj, linear_fc1,
    linear_fc2, or with wildcards, such as ``*.layers.0.*.linear_qkv``.
    """

    source: str = ""
    """Where the values come from."""

    @property
    def finetunes(self) -> bool:
        """Whether training starts from a base and reads instructions."""
        return self.call is Call.finetune
