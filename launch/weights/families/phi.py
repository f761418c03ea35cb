"""Phi-3: queries, keys and values in one tensor, gates and up-projections in another."""

from __future__ import annotations

from slipway.configs import Model
from slipway.launch.weights.blocks import (
    ATTENTION,
    MLP,
    SIZES,
    THEIR_ATTENTION,
    THEIR_MLP,
    around,
    norms,
    read_window,
    same,
    write_window,
)
from slipway.launch.weights.family import Family
from slipway.launch.weights.rules import PACKED, Rule


def _rules(model: Model) -> list[Rule]:
    layer = [
        Rule(ATTENTION + "linear_qkv.weight", "qkv hidden", (THEIR_ATTENTION + "qkv_proj.weight",), PACKED),
        same(ATTENTION + "linear_proj.weight", "hidden heads", THEIR_ATTENTION + "o_proj.weight"),
        same(MLP + "linear_fc1.weight", "2ffn hidden", THEIR_MLP + "gate_up_proj.weight"),
        same(MLP + "linear_fc2.weight", "hidden ffn", THEIR_MLP + "down_proj.weight"),
    ]
    return around([*layer, *norms()], model)


FAMILIES = (
    Family(
        name="phi3",
        architecture="Phi3ForCausalLM",
        model_type="phi3",
        trained_as=("phi3",),
        sizes=SIZES | {"rotary_percent": "partial_rotary_factor"},
        constants={
            "hidden_act": "silu",
            "rope_scaling": None,
            "attention_dropout": 0.0,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
        },
        rules=_rules,
        read=read_window,
        write=write_window,
    ),
)
