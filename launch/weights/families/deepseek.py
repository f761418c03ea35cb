"""DeepSeek-V3, Moonlight and V2: latent attention, leading dense layers, experts, multi-token prediction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from slipway.configs import Model, Refusal
from slipway.configs.schema import RopeScaling
from slipway.launch.weights.blocks import (
    ATTENTION,
    MLP,
    OURS,
    SIZES,
    THEIR_ATTENTION,
    THEIR_MLP,
    THEIRS,
    experts,
    gated,
    gated_mlp,
    same,
)
from slipway.launch.weights.family import Family
from slipway.launch.weights.rules import COPIES, PREDICTION, Layers, Rule

# NeMo's constants beside the factor (MLATransformerConfig), which are DeepSeek's.
YARN = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}
YARN_V2 = YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}


def _attention(model: Model) -> list[Rule]:
    def projection(ours: str, shape: str, theirs: str) -> Rule:
        return same(f"{ATTENTION}{ours}", shape, f"{THEIR_ATTENTION}{theirs}")

    queries = [
        projection("linear_q_down_proj.weight", "latent_q hidden", "q_a_proj.weight"),
        projection("linear_q_up_proj.layer_norm_weight", "latent_q", "q_a_layernorm.weight"),
        projection("linear_q_up_proj.weight", "latent_q_up latent_q", "q_b_proj.weight"),
    ]
    if not model.q_lora_rank:
        queries = [projection("linear_q_proj.weight", "latent_q_up hidden", "q_proj.weight")]
    return [
        *queries,
        projection("linear_kv_down_proj.weight", "latent_kv_down hidden", "kv_a_proj_with_mqa.weight"),
        projection("linear_kv_up_proj.layer_norm_weight", "latent_kv", "kv_a_layernorm.weight"),
        projection("linear_kv_up_proj.weight", "latent_kv_up latent_kv", "kv_b_proj.weight"),
        projection("linear_proj.weight", "hidden values", "o_proj.weight"),
    ]


def _experts(model: Model) -> list[Rule]:
    only = Layers.experts
    bias = THEIR_MLP + "gate.e_score_correction_bias"
    shared, theirs = MLP + "shared_experts.", THEIR_MLP + "shared_experts."
    gate, up, down = (f"{part}_proj.weight" for part in ("gate", "up", "down"))
    expert = "mlp.experts.{e}."
    balanced = Rule(MLP + "router.expert_bias", "experts", (bias,), layers=only, keeps_type=True)
    return [
        *([balanced] if model.moe_router_enable_expert_bias else []),
        *experts("mlp.gate.weight", expert + gate, expert + up, expert + down, only),
        gated(shared + "linear_fc1.weight", "2shared hidden", theirs + gate, theirs + up, only),
        same(shared + "linear_fc2.weight", "hidden shared", theirs + down, only),
    ]


def _layer(model: Model) -> list[Rule]:
    second = THEIRS + "post_attention_layernorm.weight"
    return [
        *_attention(model),
        *gated_mlp(Layers.dense),
        *_experts(model),
        same(OURS + "input_layernorm.weight", "hidden", THEIRS + "input_layernorm.weight"),
        same(MLP + "linear_fc1.layer_norm_weight", "hidden", second, Layers.dense),
        same(OURS + "pre_mlp_layernorm.weight", "hidden", second, Layers.experts),
    ]


def _rules(model: Model) -> list[Rule]:
    """With multi-token prediction, DeepSeek's files repeat the embedding and the output layer in its layer."""
    last = f"model.layers.{model.num_layers}."
    ends = []
    for ours, theirs, copy in (
        ("embedding.word_embeddings.weight", "model.embed_tokens.weight", "embed_tokens.weight"),
        ("output_layer.weight", "lm_head.weight", "shared_head.head.weight"),
    ):
        copies = Rule(ours, "vocab hidden", (theirs, last + copy), COPIES)
        ends.append(copies if model.mtp_num_layers else same(ours, "vocab hidden", theirs))
    inner = [replace(rule, ours=rule.ours.replace(OURS, PREDICTION + "transformer_layer.")) for rule in _layer(model)]
    prediction = [
        same(PREDICTION + "enorm.weight", "hidden", THEIRS + "enorm.weight"),
        same(PREDICTION + "hnorm.weight", "hidden", THEIRS + "hnorm.weight"),
        same(PREDICTION + "eh_proj.weight", "hidden 2hidden", THEIRS + "eh_proj.weight"),
        *inner,
        same(PREDICTION + "final_layernorm.weight", "hidden", THEIRS + "shared_head.norm.weight"),
    ]
    norm = same("decoder.final_layernorm.weight", "hidden", "model.norm.weight")
    return [ends[0], *_layer(model), norm, *prediction, ends[1]]


def _read(config: Any, yarn: dict[str, float]) -> dict[str, Any]:
    facts = {
        "kv_channels": config.v_head_dim,  # transformers' head_dim is the rotary part
        "moe_shared_expert_intermediate_size": config.n_shared_experts * config.moe_intermediate_size,
        "mtp_num_layers": getattr(config, "num_nextn_predict_layers", 0) or 0,
        "q_lora_rank": config.q_lora_rank or 0,
        "rope_scaling": RopeScaling.yarn.value,
        "rope_scaling_factor": 1.0,
    }
    scaling = config.rope_scaling
    if not scaling:
        return facts
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind != "yarn" or {key: scaling.get(key) for key in yarn} != yarn:
        raise Refusal(f"config.json has rope_scaling={scaling}, and its class is trained here with yarn of {yarn}")
    return facts | {"rope_scaling_factor": scaling["factor"]}


def _read_v3(config: Any) -> dict[str, Any]:
    best = config.num_experts_per_tok // config.topk_group  # Megatron-Core ranks groups by so many of their best
    if config.n_group > 1 and best != 2:
        raise Refusal(
            f"config.json has num_experts_per_tok={config.num_experts_per_tok} and topk_group={config.topk_group}, "
            "and deepseek_v3 ranks groups by their two best experts only where the first is twice the second"
        )
    return _read(config, YARN)


def _read_v2(config: Any) -> dict[str, Any]:
    groups = {"moe_router_num_groups": config.n_group or 1, "moe_router_group_topk": config.topk_group or 1}
    if config.topk_method == "greedy":
        groups = dict.fromkeys(groups, 1)
    return _read(config, YARN_V2) | groups


def _write(model: Model, yarn: dict[str, float]) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "n_shared_experts": model.moe_shared_expert_intermediate_size // model.moe_ffn_hidden_size,
        "q_lora_rank": model.q_lora_rank or None,
    }
    if model.rope_scaling is RopeScaling.yarn and model.rope_scaling_factor != 1:
        keys["rope_scaling"] = {"type": "yarn", "factor": model.rope_scaling_factor, **yarn}
    return keys


def _write_v2(model: Model) -> dict[str, Any]:
    method = "group_limited_greedy" if model.moe_router_num_groups > 1 else "greedy"
    groups = {"n_group": model.moe_router_num_groups, "topk_group": model.moe_router_group_topk, "topk_method": method}
    return _write(model, YARN_V2) | groups


def _adjust(model: Model, names: Iterable[str]) -> Model:
    """transformers does not load the layers for multi-token prediction, nor save them."""
    first = f"model.layers.{model.num_layers}."
    return model if any(name.startswith(first) for name in names) else replace(model, mtp_num_layers=0)


LATENT = SIZES | {
    "num_moe_experts": "n_routed_experts",
    "moe_router_topk": "num_experts_per_tok",
    "moe_router_topk_scaling_factor": "routed_scaling_factor",
    "moe_ffn_hidden_size": "moe_intermediate_size",
    "num_dense_layers": "first_k_dense_replace",
    "kv_lora_rank": "kv_lora_rank",
    "qk_head_dim": "qk_nope_head_dim",
    "qk_pos_emb_head_dim": "qk_rope_head_dim",
    "v_head_dim": "v_head_dim",
}
CONSTANTS = {"hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": False}

FAMILIES = (
    Family(
        name="deepseek_v3",
        architecture="DeepseekV3ForCausalLM",
        model_type="deepseek_v3",
        trained_as=("deepseek",),
        sizes=LATENT | {"moe_router_num_groups": "n_group", "moe_router_group_topk": "topk_group"},
        facts={"qk_layernorm": True, "moe_router_enable_expert_bias": True},
        constants=CONSTANTS | {"norm_topk_prob": True, "rope_interleave": True},
        rules=_rules,
        read=_read_v3,
        write=lambda model: _write(model, YARN) | {"num_nextn_predict_layers": model.mtp_num_layers},
        adjust=_adjust,
    ),
    Family(
        name="deepseek_v2",
        architecture="DeepseekV2ForCausalLM",
        model_type="deepseek_v2",
        trained_as=("deepseek_v2",),
        sizes=LATENT,
        facts={"qk_layernorm": True},
        constants=CONSTANTS | {"mlp_bias": False, "norm_topk_prob": False},
        rules=_rules,
        read=_read_v2,
        write=_write_v2,
    ),
)
