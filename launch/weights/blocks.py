"""Parts that the tables of several families share."""

from __future__ import annotations

from typing import Any

from slipway.configs import Model
from slipway.launch.weights.rules import DECODER, GROUPS, HALVES, Layers, Rule

OURS = DECODER
THEIRS = "model.layers.{i}."
ATTENTION, MLP, EXPERT = OURS + "self_attention.", OURS + "mlp.", OURS + "mlp.experts.experts.{e}."
THEIR_ATTENTION, THEIR_MLP = THEIRS + "self_attn.", THEIRS + "mlp."

# fact -> key of config.json
SIZES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "layernorm_epsilon": "rms_norm_eps",
    "rotary_base": "rope_theta",
    "share_embeddings_and_output_weights": "tie_word_embeddings",
}


def same(ours: str, shape: str, theirs: str, layers: Layers = Layers.every) -> Rule:
    """A tensor that is the same in both."""
    return Rule(ours, shape, (theirs,), layers=layers)


def gated(ours: str, shape: str, gate: str, up: str, layers: Layers = Layers.every) -> Rule:
    """All gates, then all up-projections."""
    return Rule(ours, shape, (gate, up), HALVES, layers)


def around(layers: list[Rule], model: Model, norm: tuple[str, ...] = ("weight",)) -> list[Rule]:
    """The embedding, the layers, the last norm, and the output layer where it is not the embedding."""
    return [
        same("embedding.word_embeddings.weight", "vocab hidden", "model.embed_tokens.weight"),
        *layers,
        *(same(f"decoder.final_layernorm.{x}", "hidden", f"model.norm.{x}") for x in norm),
        *([] if model.tied else [same("output_layer.weight", "vocab hidden", "lm_head.weight")]),
    ]


def attention(*, bias: bool = False, qk_norm: bool = False) -> list[Rule]:
    """Grouped-query attention without its norm."""
    rules = []
    for x, shape in (("weight", "qkv hidden"), ("bias", "qkv")) if bias else (("weight", "qkv hidden"),):
        theirs = tuple(f"{THEIR_ATTENTION}{p}_proj.{x}" for p in "qkv")
        rules.append(Rule(f"{ATTENTION}linear_qkv.{x}", shape, theirs, GROUPS))
    rules.append(same(ATTENTION + "linear_proj.weight", "hidden heads", THEIR_ATTENTION + "o_proj.weight"))
    if qk_norm:
        rules += [same(f"{ATTENTION}{p}_layernorm.weight", "head", f"{THEIR_ATTENTION}{p}_norm.weight") for p in "qk"]
    return rules


def gated_mlp(layers: Layers = Layers.every) -> list[Rule]:
    """A dense gated feed-forward block without its norm."""
    gate, up, down = (f"{THEIR_MLP}{p}_proj.weight" for p in ("gate", "up", "down"))
    return [
        gated(MLP + "linear_fc1.weight", "2ffn hidden", gate, up, layers),
        same(MLP + "linear_fc2.weight", "hidden ffn", down, layers),
    ]


def experts(router: str, gate: str, up: str, down: str, layers: Layers = Layers.every) -> list[Rule]:
    """A router and its experts. The names are those of a layer's tensors."""
    return [
        same(MLP + "router.weight", "experts hidden", THEIRS + router, layers),
        gated(EXPERT + "linear_fc1.weight", "2expert hidden", THEIRS + gate, THEIRS + up, layers),
        same(EXPERT + "linear_fc2.weight", "hidden expert", THEIRS + down, layers),
    ]


def norms(*parts: str, with_experts: bool = False) -> list[Rule]:
    """The norms before attention and before the feed-forward block.

    Megatron-Core fuses a norm with the projection that follows it; a router is none.
    """
    rules = []
    for x in parts or ("weight",):
        second = f"{OURS}pre_mlp_layernorm.{x}" if with_experts else f"{MLP}linear_fc1.layer_norm_{x}"
        rules += [
            same(f"{ATTENTION}linear_qkv.layer_norm_{x}", "hidden", f"{THEIRS}input_layernorm.{x}"),
            same(second, "hidden", f"{THEIRS}post_attention_layernorm.{x}"),
        ]
    return rules


def both(ours: str, shape: str, theirs: str) -> list[Rule]:
    """A weight of these sizes, and a bias of the first of them."""
    return [same(f"{ours}.weight", shape, f"{theirs}.weight"), same(f"{ours}.bias", shape.split()[0], f"{theirs}.bias")]


def read_window(config: Any) -> dict[str, Any]:
    """The keys that a query sees, of transformers' configuration."""
    return {"window_size": getattr(config, "sliding_window", None) or 0}


def write_window(model: Model) -> dict[str, Any]:
    """The key of config.json that says how many keys a query sees."""
    return {"sliding_window": model.window_size or None}
