"""Qwen2 and Qwen2.5 (biases of queries, keys and values), Qwen3 (their norms), and Qwen3 with experts."""

from __future__ import annotations

from typing import Any

from slipway.configs import Model
from slipway.launch.weights.blocks import SIZES, around, attention, experts, gated_mlp, norms
from slipway.launch.weights.family import Family
from slipway.launch.weights.rules import Rule

CONSTANTS = {"hidden_act": "silu", "rope_scaling": None, "use_sliding_window": False, "attention_dropout": 0.0}
WITHOUT_BIAS = CONSTANTS | {"attention_bias": False}


def _qwen2(model: Model) -> list[Rule]:
    return around([*attention(bias=True), *gated_mlp(), *norms()], model)


def _qwen3(model: Model) -> list[Rule]:
    return around([*attention(qk_norm=True), *gated_mlp(), *norms()], model)


def _qwen3_moe(model: Model) -> list[Rule]:
    gate, up, down = (f"mlp.experts.{{e}}.{part}_proj.weight" for part in ("gate", "up", "down"))
    mlp = experts("mlp.gate.weight", gate, up, down)
    return around([*attention(qk_norm=True), *mlp, *norms(with_experts=True)], model)


def _width(model: Model) -> dict[str, Any]:
    return {"head_dim": model.kv_channels}


FAMILIES = (
    Family(
        name="qwen2",
        architecture="Qwen2ForCausalLM",
        model_type="qwen2",
        trained_as=("qwen2",),
        sizes=SIZES,
        facts={"add_qkv_bias": True},
        constants=CONSTANTS,
        rules=_qwen2,
    ),
    Family(
        name="qwen3",
        architecture="Qwen3ForCausalLM",
        model_type="qwen3",
        trained_as=("qwen3",),
        sizes=SIZES,
        facts={"qk_layernorm": True},
        constants=WITHOUT_BIAS,
        rules=_qwen3,
        write=_width,
    ),
    Family(
        name="qwen3_moe",
        architecture="Qwen3MoeForCausalLM",
        model_type="qwen3_moe",
        trained_as=("qwen3",),
        sizes=SIZES
        | {
            "num_moe_experts": "num_experts",
            "moe_router_topk": "num_experts_per_tok",
            "moe_ffn_hidden_size": "moe_intermediate_size",
        },
        facts={"qk_layernorm": True},
        constants=WITHOUT_BIAS | {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
        rules=_qwen3_moe,
        write=_width,
    ),
)
