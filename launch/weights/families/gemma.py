"""Gemma 1, 2 and 3 (text): norms with weights around 0, GeGLU, tied embeddings; 2 and 3 normalize after blocks too."""

from __future__ import annotations

from typing import Any

from slipway.configs import Model
from slipway.configs.schema import Activation
from slipway.launch.weights.blocks import ATTENTION, MLP, SIZES, THEIRS, around, attention, gated_mlp, norms, same
from slipway.launch.weights.family import Family
from slipway.launch.weights.rules import Rule

ACTIVATION = "gelu_pytorch_tanh"
GELU = {"activation_func": Activation.gelu.value}
WINDOWS = SIZES | {"window_size": "sliding_window"}
AFTER_BLOCKS = GELU | {"post_layernorm": True}
CONSTANTS = {"hidden_activation": ACTIVATION, "attention_bias": False, "attention_dropout": 0.0, "rope_scaling": None}


def _gemma(model: Model) -> list[Rule]:
    return around([*attention(), *gated_mlp(), *norms()], model)


def _norms_around_blocks() -> list[Rule]:
    ours = (
        f"{ATTENTION}linear_qkv.layer_norm",
        f"{ATTENTION}linear_proj.post_layernorm.",
        f"{MLP}linear_fc1.layer_norm",
        f"{MLP}linear_fc2.post_layernorm.",
    )
    theirs = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    names = (name if name.endswith(".") else f"{name}_" for name in ours)
    return [
        same(f"{name}weight", "hidden", f"{THEIRS}{other}_layernorm.weight")
        for name, other in zip(names, theirs, strict=True)
    ]


def _gemma2(model: Model) -> list[Rule]:
    return around([*attention(), *gated_mlp(), *_norms_around_blocks()], model)


def _gemma3(model: Model) -> list[Rule]:
    return around([*attention(qk_norm=True), *gated_mlp(), *_norms_around_blocks()], model)


def _width(model: Model) -> dict[str, Any]:
    return {"head_dim": model.kv_channels}


FAMILIES = (
    Family(
        name="gemma",
        architecture="GemmaForCausalLM",
        model_type="gemma",
        trained_as=("gemma",),
        sizes=SIZES,
        facts=GELU,
        constants={
            "attention_bias": False,
            "attention_dropout": 0.0,
        },  # the activation is the tanh form, whatever its name
        rules=_gemma,
        write=lambda model: _width(model) | {"hidden_act": ACTIVATION, "hidden_activation": ACTIVATION},
    ),
    Family(
        name="gemma2",
        architecture="Gemma2ForCausalLM",
        model_type="gemma2",
        trained_as=("gemma2",),
        sizes=WINDOWS
        | {
            "query_pre_attn_scalar": "query_pre_attn_scalar",
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        facts=AFTER_BLOCKS | {"window_every": 2},
        constants={key: value for key, value in CONSTANTS.items() if key != "rope_scaling"},
        rules=_gemma2,
        write=_width,
    ),
    Family(
        name="gemma3",
        architecture="Gemma3ForCausalLM",
        model_type="gemma3_text",
        trained_as=("gemma3",),
        sizes=WINDOWS | {"rotary_base_local": "rope_local_base_freq"},
        facts=AFTER_BLOCKS | {"qk_layernorm": True, "window_every": 6},
        constants=CONSTANTS | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        rules=_gemma3,
        write=lambda model: _width(model) | {"query_pre_attn_scalar": model.kv_channels},
    ),
)
