"""StarCoder and StarCoder2: LayerNorm, biases everywhere, GELU in its tanh form."""

from __future__ import annotations

from slipway.configs import Model, Refusal
from slipway.configs.schema import Activation, Normalization, PositionEmbedding
from slipway.launch.weights.blocks import (
    ATTENTION,
    MLP,
    SIZES,
    THEIR_ATTENTION,
    THEIR_MLP,
    around,
    attention,
    both,
    norms,
    read_window,
    same,
    write_window,
)
from slipway.launch.weights.family import Family
from slipway.launch.weights.rules import PACKED, Rule

FACTS = {
    "gated_linear_unit": False,
    "activation_func": Activation.gelu.value,
    "normalization": Normalization.LayerNorm.value,
    "add_bias_linear": True,
}
ACTIVATION = "gelu_pytorch_tanh"
LAYERS = "transformer.h.{i}."


def _starcoder(model: Model) -> list[Rule]:
    layer = [
        Rule(f"{ATTENTION}linear_qkv.{x}", shape, (f"{LAYERS}attn.c_attn.{x}",), PACKED)
        for x, shape in (("weight", "qkv hidden"), ("bias", "qkv"))
    ]
    layer += both(ATTENTION + "linear_proj", "hidden heads", LAYERS + "attn.c_proj")
    layer += both(MLP + "linear_fc1", "ffn hidden", LAYERS + "mlp.c_fc")
    layer += both(MLP + "linear_fc2", "hidden ffn", LAYERS + "mlp.c_proj")
    for x in ("weight", "bias"):
        layer.append(same(f"{ATTENTION}linear_qkv.layer_norm_{x}", "hidden", f"{LAYERS}ln_1.{x}"))
        layer.append(same(f"{MLP}linear_fc1.layer_norm_{x}", "hidden", f"{LAYERS}ln_2.{x}"))
    return [
        same("embedding.word_embeddings.weight", "vocab hidden", "transformer.wte.weight"),
        same("embedding.position_embeddings.weight", "positions hidden", "transformer.wpe.weight"),
        *layer,
        *both("decoder.final_layernorm", "hidden", "transformer.ln_f"),
        *([] if model.tied else [same("output_layer.weight", "vocab hidden", "lm_head.weight")]),
    ]


def _starcoder2(model: Model) -> list[Rule]:
    layer = [
        *attention(bias=True),
        same(ATTENTION + "linear_proj.bias", "hidden", THEIR_ATTENTION + "o_proj.bias"),
        *both(MLP + "linear_fc1", "ffn hidden", THEIR_MLP + "c_fc"),
        *both(MLP + "linear_fc2", "hidden ffn", THEIR_MLP + "c_proj"),
        *norms("weight", "bias"),
    ]
    return around(layer, model, norm=("weight", "bias"))


def _write_dropout(model: Model) -> dict[str, float]:
    return dict.fromkeys(("resid_pdrop", "embd_pdrop"), model.hidden_dropout)


def _read_dropout(config: object) -> dict[str, float]:
    rates = {getattr(config, key) for key in ("resid_pdrop", "embd_pdrop")}
    if len(rates) > 1:
        raise Refusal("config.json has resid_pdrop and embd_pdrop, and Megatron-Core has one rate for both")
    return {"hidden_dropout": rates.pop()}


FAMILIES = (
    Family(
        name="starcoder",
        architecture="GPTBigCodeForCausalLM",
        model_type="gpt_bigcode",
        trained_as=("starcoder",),
        sizes={
            "num_layers": "n_layer",
            "hidden_size": "n_embd",
            "ffn_hidden_size": "n_inner",
            "num_attention_heads": "n_head",
            "vocab_size": "vocab_size",
            "max_position_embeddings": "n_positions",
            "layernorm_epsilon": "layer_norm_epsilon",
            "share_embeddings_and_output_weights": "tie_word_embeddings",
            "attention_dropout": "attn_pdrop",
        },
        facts=FACTS | {"num_query_groups": 1, "position_embedding_type": PositionEmbedding.learned_absolute.value},
        constants={"activation_function": ACTIVATION, "multi_query": True, "scale_attn_weights": True},
        rules=_starcoder,
        read=_read_dropout,
        write=_write_dropout,
    ),
    Family(
        name="starcoder2",
        architecture="Starcoder2ForCausalLM",
        model_type="starcoder2",
        trained_as=("starcoder2",),
        sizes=SIZES | {"layernorm_epsilon": "norm_epsilon"},
        facts=FACTS,
        constants={
            "hidden_act": ACTIVATION,
            "use_bias": True,
            "attention_dropout": 0.0,
            "residual_dropout": 0.0,
            "embedding_dropout": 0.0,
        },
        rules=_starcoder2,
        read=read_window,
        write=write_window,
    ),
)
