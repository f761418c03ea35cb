"""Nemotron-3 and Nemotron-4: LayerNorm with weights around 0, squared ReLU, RoPE on half of each head."""

from __future__ import annotations

from slipway.configs import Model
from slipway.configs.schema import Activation, Normalization
from slipway.launch.weights.blocks import MLP, SIZES, THEIR_MLP, around, attention, norms, same
from slipway.launch.weights.family import Family
from slipway.launch.weights.rules import Rule


def _rules(model: Model) -> list[Rule]:
    mlp = [
        same(MLP + "linear_fc1.weight", "ffn hidden", THEIR_MLP + "up_proj.weight"),
        same(MLP + "linear_fc2.weight", "hidden ffn", THEIR_MLP + "down_proj.weight"),
    ]
    return around([*attention(), *mlp, *norms("weight", "bias")], model, norm=("weight", "bias"))


FAMILIES = (
    Family(
        name="nemotron",
        architecture="NemotronForCausalLM",
        model_type="nemotron",
        trained_as=("nemotron4", "nemotron"),
        sizes=SIZES | {"layernorm_epsilon": "norm_eps", "rotary_percent": "partial_rotary_factor"},
        facts={
            "gated_linear_unit": False,
            "activation_func": Activation.squared_relu.value,
            "normalization": Normalization.LayerNorm.value,
        },
        constants={
            "hidden_act": "relu2",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
        },
        rules=_rules,
        write=lambda model: {"head_dim": model.kv_channels},
    ),
)
