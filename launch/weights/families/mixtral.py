"""Mixtral: every layer has experts, whose width config.json calls intermediate_size."""

from __future__ import annotations

from slipway.configs import Model
from slipway.launch.weights.blocks import SIZES, around, attention, experts, norms
from slipway.launch.weights.family import Family
from slipway.launch.weights.rules import Rule


def _rules(model: Model) -> list[Rule]:
    gate, down, up = (f"block_sparse_moe.experts.{{e}}.w{n}.weight" for n in (1, 2, 3))
    mlp = experts("block_sparse_moe.gate.weight", gate, up, down)
    return around([*attention(), *mlp, *norms(with_experts=True)], model)


FAMILIES = (
    Family(
        name="mixtral",
        architecture="MixtralForCausalLM",
        model_type="mixtral",
        trained_as=("mixtral",),
        sizes=SIZES | {"num_moe_experts": "num_local_experts", "moe_router_topk": "num_experts_per_tok"},
        constants={"hidden_act": "silu", "sliding_window": None, "attention_dropout": 0.0},
        rules=_rules,
        read=lambda config: {"moe_ffn_hidden_size": config.intermediate_size},
        write=lambda model: {"intermediate_size": model.moe_ffn_hidden_size, "head_dim": model.kv_channels},
    ),
)
