"""DeepSeek-V3: latent attention, leading dense layers, experts with a shared one, layers for multi-token prediction."""

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


def _experts() -> list[Rule]:
    only = Layers.experts
    bias = THEIR_MLP + "gate.e_score_correction_bias"
    shared, theirs = MLP + "shared_experts.", THEIR_MLP + "shared_experts."
    gate, up, down = (f"{part}_proj.weight" for part in ("gate", "up", "down"))
    expert = "mlp.experts.{e}."
    return [
        Rule(MLP + "router.expert_bias", "experts", (bias,), layers=only, keeps_type=True),
        *experts("mlp.gate.weight", expert + gate, expert + up, expert + down, only),
        gated(shared + "linear_fc1.weight", "2shared hidden", theirs + gate, theirs + up, only),
        same(shared + "linear_fc2.weight", "hidden shared", theirs + down, only),
    ]


def _layer(model: Model) -> list[Rule]:
    second = THEIRS + "post_attention_layernorm.weight"
    return [
        *_attention(model),
        *gated_mlp(Layers.dense),
        *_experts(),
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


def _read(config: Any) -> dict[str, Any]:
    if (
        config.num_experts_per_tok != 2 * config.topk_group
    ):  # Megatron-Core ranks groups by their best topk / group_topk
        raise Refusal(
            f"config.json has num_experts_per_tok={config.num_experts_per_tok} and topk_group={config.topk_group}, "
            "and deepseek_v3 ranks groups by their two best experts only where the first is twice the second"
        )
    facts = {
        "kv_channels": config.v_head_dim,  # transformers' head_dim is the rotary part
        "moe_shared_expert_intermediate_size": config.n_shared_experts * config.moe_intermediate_size,
        "mtp_num_layers": getattr(config, "num_nextn_predict_layers", 0) or 0,
        "q_lora_rank": config.q_lora_rank or 0,
    }
    scaling = config.rope_scaling
    if not scaling:
        return facts
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind != "yarn" or {key: scaling.get(key) for key in YARN} != YARN:
        raise Refusal(f"config.json has rope_scaling={scaling}, and deepseek_v3 is trained here with yarn of {YARN}")
    return facts | {"rope_scaling": RopeScaling.yarn.value, "rope_scaling_factor": scaling["factor"]}


def _write(model: Model) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "n_shared_experts": model.moe_shared_expert_intermediate_size // model.moe_ffn_hidden_size,
        "num_nextn_predict_layers": model.mtp_num_layers,
        "q_lora_rank": model.q_lora_rank or None,
    }
    if model.rope_scaling is RopeScaling.yarn and model.rope_scaling_factor != 1:
        keys["rope_scaling"] = {"type": "yarn", "factor": model.rope_scaling_factor, **YARN}
    return keys


def _adjust(model: Model, names: Iterable[str]) -> Model:
    """transformers does not load the layers for multi-token prediction, nor save them."""
    first = f"model.layers.{model.num_layers}."
    return model if any(name.startswith(first) for name in names) else replace(model, mtp_num_layers=0)


FAMILIES = (
    Family(
        name="deepseek_v3",
        architecture="DeepseekV3ForCausalLM",
        model_type="deepseek_v3",
        trained_as=("deepseek",),
        sizes=SIZES
        | {
            "num_moe_experts": "n_routed_experts",
            "moe_router_topk": "num_experts_per_tok",
            "moe_ffn_hidden_size": "moe_intermediate_size",
            "num_dense_layers": "first_k_dense_replace",
            "moe_router_num_groups": "n_group",
            "moe_router_group_topk": "topk_group",
            "kv_lora_rank": "kv_lora_rank",
            "qk_head_dim": "qk_nope_head_dim",
            "qk_pos_emb_head_dim": "qk_rope_head_dim",
            "v_head_dim": "v_head_dim",
        },
        facts={"qk_layernorm": True, "moe_router_enable_expert_bias": True},
        constants={
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "norm_topk_prob": True,
            "rope_interleave": True,
            "routed_scaling_factor": 2.5,
            "tie_word_embeddings": False,
        },
        rules=_rules,
        read=_read,
        write=_write,
        adjust=_adjust,
    ),
)
