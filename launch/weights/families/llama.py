"""Llama 2, 3, 3.1, 3.2 and 3.3, CodeLlama, Llama-Nemotron, and Mistral, which has the same tensors."""

from __future__ import annotations

from typing import Any

from slipway.configs import Model, Refusal
from slipway.configs.schema import RopeScaling
from slipway.launch.weights.blocks import SIZES, around, attention, gated_mlp, norms, read_window, write_window
from slipway.launch.weights.family import Family
from slipway.launch.weights.rules import Rule

# NeMo's constants beside the factor (Llama31Config8B), which are those of Meta's models.
ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def _rules(model: Model) -> list[Rule]:
    return around([*attention(), *gated_mlp(), *norms()], model)


def _read(config: Any) -> dict[str, Any]:
    scaling = config.rope_scaling
    if not scaling:
        return {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "default":
        return {}
    if kind != "llama3" or {key: scaling.get(key) for key in ROPE} != ROPE:
        raise Refusal(
            f"config.json has rope_scaling={scaling}, and llama is trained here with rope_type llama3, "
            "low_freq_factor 1, high_freq_factor 4 and original_max_position_embeddings 8192, or none"
        )
    return {"rope_scaling": RopeScaling.llama3.value, "rope_scaling_factor": scaling["factor"]}


def _write(model: Model) -> dict[str, Any]:
    width = {"head_dim": model.kv_channels}
    if model.rope_scaling is not RopeScaling.llama3 or model.rope_scaling_factor == 1:
        return width
    return width | {"rope_scaling": {"rope_type": "llama3", "factor": model.rope_scaling_factor, **ROPE}}


FAMILIES = (
    Family(
        name="llama",
        architecture="LlamaForCausalLM",
        model_type="llama",
        trained_as=("llama3", "llama2", "llama_nemotron"),
        sizes=SIZES,
        constants={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0},
        rules=_rules,
        read=_read,
        write=_write,
    ),
    Family(
        name="mistral",
        architecture="MistralForCausalLM",
        model_type="mistral",
        trained_as=("mistral",),
        sizes=SIZES,
        constants={"hidden_act": "silu", "attention_dropout": 0.0},
        rules=_rules,
        read=read_window,
        write=lambda model: {"head_dim": model.kv_channels} | write_window(model),
    ),
)
