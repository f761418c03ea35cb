"""GPT-OSS: sinks, windows, biases; the experts of a layer in one tensor each, transposed, gates and ups interleaved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slipway.configs import Model, Refusal
from slipway.configs.schema import LoadBalancing, RopeScaling, SoftmaxType
from slipway.launch.weights.blocks import (
    ATTENTION,
    EXPERT,
    MLP,
    SIZES,
    THEIR_ATTENTION,
    THEIR_MLP,
    around,
    attention,
    both,
    norms,
    same,
)
from slipway.launch.weights.family import Family
from slipway.launch.weights.rules import TURNED, Fusion, Rule

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

# NeMo's constants beside the factor (GPTOSSConfig), which are OpenAI's.
YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096}


def _join_woven(parts: list[Tensor], model: Model) -> Tensor:
    import torch

    rows = parts[0].T if parts[0].dim() == 2 else parts[0]
    return torch.cat([rows[::2], rows[1::2]])


def _split_woven(whole: Tensor, model: Model) -> list[Tensor]:
    import torch

    woven = torch.stack(whole.chunk(2), dim=1).flatten(0, 1)
    return [woven.T if woven.dim() == 2 else woven]


WOVEN = Fusion(_join_woven, _split_woven)
"""Gate and up-projection by turns, transposed if a matrix; then all gates, then all up-projections."""


def _rules(model: Model) -> list[Rule]:
    theirs = THEIR_MLP + "experts."
    layer = [
        *attention(bias=True),
        same(ATTENTION + "linear_proj.bias", "hidden", THEIR_ATTENTION + "o_proj.bias"),
        same(ATTENTION + "core_attention.softmax_offset", "attention_heads", THEIR_ATTENTION + "sinks"),
        *both(MLP + "router", "experts hidden", THEIR_MLP + "router"),
        Rule(EXPERT + "linear_fc1.weight", "2expert hidden", (theirs + "gate_up_proj",), WOVEN),
        Rule(EXPERT + "linear_fc1.bias", "2expert", (theirs + "gate_up_proj_bias",), WOVEN),
        Rule(EXPERT + "linear_fc2.weight", "hidden expert", (theirs + "down_proj",), TURNED),
        same(EXPERT + "linear_fc2.bias", "hidden", theirs + "down_proj_bias"),
        *norms(with_experts=True),
    ]
    return around(layer, model)


def _read(config: Any) -> dict[str, Any]:
    scaling = config.rope_scaling or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind != "yarn" or {key: scaling.get(key) for key in YARN} != YARN:
        raise Refusal(
            f"config.json has rope_scaling={config.rope_scaling}, and gpt_oss is trained here with yarn of {YARN}"
        )
    windows = [kind == "sliding_attention" for kind in config.layer_types]
    if windows != [i % 2 == 0 for i in range(config.num_hidden_layers)]:
        raise Refusal("config.json has layer_types other than sliding and full attention by turns")
    return {"rope_scaling_factor": scaling["factor"], "moe_ffn_hidden_size": config.intermediate_size}


def _write(model: Model) -> dict[str, Any]:
    scaling = {"rope_type": "yarn", "factor": model.rope_scaling_factor, **YARN}
    return {"head_dim": model.kv_channels, "rope_scaling": scaling}


FAMILIES = (
    Family(
        name="gpt_oss",
        architecture="GptOssForCausalLM",
        model_type="gpt_oss",
        trained_as=("gpt_oss",),
        sizes=SIZES
        | {
            "num_moe_experts": "num_local_experts",
            "moe_router_topk": "num_experts_per_tok",
            "window_size": "sliding_window",
        },
        facts={
            "add_bias_linear": True,
            "add_qkv_bias": True,
            "softmax_type": SoftmaxType.learnable.value,
            "rope_scaling": RopeScaling.yarn.value,
            "window_every": 2,
            "moe_router_load_balancing_type": LoadBalancing.none.value,
        },
        constants={"hidden_act": "silu", "attention_bias": True, "attention_dropout": 0.0, "swiglu_limit": 7.0},
        rules=_rules,
        read=_read,
        write=_write,
    ),
)
