"""The architecture of a NeMo configuration, every fact read from it: no recipe of ours promises any. Needs NeMo."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from slipway.configs import Model, Refusal
from slipway.configs.schema.model import Activation, LoadBalancing, Normalization, PositionEmbedding, RopeScaling
from slipway.configs.schema.model import SoftmaxType as Softmax
from slipway.launch.foreign.megatron.arguments import bearing
from slipway.launch.foreign.megatron.model import MAMBA_EXPANSION, placement_of_experts, spread
from slipway.launch.foreign.reading import require_layers
from slipway.recipes.readback.parts import Parts, kind_of, value

# Classes of NeMo whose models the planner does not have, by a word in the name of the class or of one that it extends.
NOT_PLANNED = {
    "T5Config": "an encoder and a decoder (T5)",
    "BertConfig": "an encoder (BERT)",
    "HyenaConfig": "Hyena operators",
    "HeterogeneousTransformerConfig": "layers of different widths",
    "EmbeddingConfig": "embeddings of sentences as its output",
    "Reranker": "a score as its output",
    "CLIP": "a vision encoder",
    "Neva": "a vision encoder",
}
_AT_TWO = {4.0: Activation.squared_relu, 1.7616: Activation.silu}  # value of an activation at 2; any other is a GELU
_POST_NORMED = ("Gemma2", "Gemma3")  # classes whose layers have norms behind attention and feed-forward too
USUAL_VOCABULARY = "GPT2BPETokenizer"  # of a data module of NeMo without a tokenizer


class Fields:
    """The fields of a configuration, their defaults included."""

    def __init__(self, config: Any) -> None:
        self.config, self.kind = config, kind_of(config)

    def get(self, name: str, default: Any = None) -> Any:
        found = value(self.config, name)
        return default if found is None else found

    def whole(self, name: str, default: int = 0) -> int:
        return int(self.get(name, default))


def model_of(parts: Parts, name: str, what: str, assumed: list[str]) -> Model:
    """The architecture.

    Args:
        assumed: gains what the recipe leaves open.

    Raises:
        Refusal: the model cannot be planned.

    Long because it names every field of a model once.
    """
    _require_planned(parts, what)
    fields = Fields(parts.model)
    layers, hidden = fields.whole("num_layers"), fields.whole("hidden_size")
    heads = fields.whole("num_attention_heads") or 1
    require_layers(layers, what)
    if not layers or not hidden:
        raise Refusal(f"{what} has a model without layers or width", "Give its configuration both.")
    ffn, length = fields.whole("ffn_hidden_size", 4 * hidden), fields.whole("seq_length")
    positions = str(fields.get("position_embedding_type", "rope"))
    bias = bool(fields.get("add_bias_linear", True))
    base = fields.get("rotary_base", 10000)
    return Model(
        name=name,
        family="nemo",
        source=f"{fields.kind.__module__}.{fields.kind.__name__}",
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        num_query_groups=fields.whole("num_query_groups") or heads,
        kv_channels=fields.whole("kv_channels") or max(hidden // heads, 1),
        vocab_size=_vocabulary(parts, fields, assumed),
        seq_length=length,
        max_position_embeddings=max(
            fields.whole("max_position_embeddings"), length, value(parts.data, "seq_length", 1)
        ),
        gated_linear_unit=bool(fields.get("gated_linear_unit", False)),
        activation_func=_activation(fields.get("activation_func")),
        normalization=Normalization(str(fields.get("normalization", "LayerNorm"))),
        layernorm_epsilon=float(fields.get("layernorm_epsilon", 1e-5)),
        add_bias_linear=bias,
        add_qkv_bias=bias or bool(fields.get("add_qkv_bias", False)),
        qk_layernorm=bool(fields.get("qk_layernorm", False)),
        qk_l2_norm=bool(fields.get("qk_l2_norm", False)),
        softmax_type=Softmax.learnable if fields.get("softmax_type") == "learnable" else Softmax.vanilla,
        share_embeddings_and_output_weights=bool(fields.get("share_embeddings_and_output_weights", True)),
        position_embedding_type=PositionEmbedding({"yarn": "rope"}.get(positions, positions)),
        rotary_base=float(base[-1] if isinstance(base, tuple | list) else base),
        rotary_base_local=float(base[0]) if isinstance(base, tuple | list) else 0.0,
        rotary_percent=float(fields.get("rotary_percent", 1.0)),
        attn_logit_softcapping=float(fields.get("attn_logit_softcapping", 0.0)),
        final_logit_softcapping=float(fields.get("final_logit_softcapping", 0.0)),
        query_pre_attn_scalar=fields.whole("query_pre_attn_scalar"),
        post_layernorm=any(word in kind.__name__ for kind in fields.kind.__mro__ for word in _POST_NORMED),
        hidden_dropout=float(fields.get("hidden_dropout", 0.0)),
        attention_dropout=float(fields.get("attention_dropout", 0.0)),
        pad_vocab=fields.get("vocab_size") is None or _is_hybrid(fields),
        make_vocab_size_divisible_by=fields.whole("make_vocab_size_divisible_by", 128),
        init_method_std=float(fields.get("init_method_std", 0.02)),
        mtp_num_layers=fields.whole("mtp_num_layers"),
        **_rope_scaling(fields, positions),
        **_windows(fields, layers, what),
        **_experts(fields, ffn, layers, what, assumed),
        **_latent_attention(fields),
        **_hybrid(fields, layers, hidden),
    )


def _require_planned(parts: Parts, what: str) -> None:
    names = [kind.__name__ for kind in kind_of(parts.model).__mro__]
    for word, has in NOT_PLANNED.items():
        if any(word in name for name in names):
            raise Refusal(f"{what} has a model with {has}, which cannot be planned", "Give a decoder-only model.")


def _vocabulary(parts: Parts, fields: Fields, assumed: list[str]) -> int:
    """NeMo takes the configuration's size, and without one the tokenizer's."""
    if given := fields.whole("vocab_size"):
        return given
    tokenizer = parts.tokenizer
    if size := value(tokenizer, "vocab_size"):
        return int(size)
    words = [str(value(tokenizer, key, "")) for key in ("pretrained_model_name", "model_name", "tokenizer_model")]
    known = bearing()
    text = " ".join(words).lower()
    size = next((size for word, size in known.models.items() if word in text), 0)
    kind = next((word for word in words if word in known.vocabularies), "" if text.strip() else USUAL_VOCABULARY)
    size = size or known.vocabularies.get(kind or USUAL_VOCABULARY, 0)
    named = text.strip() or "no tokenizer is named"
    assumed.append(f"a vocabulary of {size:,} ({named}); model.vocab_size= corrects it")
    return size


def _activation(function: Any) -> Activation:
    """The activation, by what it makes of 2."""
    if function is None:
        return Activation.gelu
    try:
        made = round(float(function(torch.tensor([2.0]))[0]), 4)
    except Exception:  # a kernel of a GPU, or a function of pairs
        return Activation.silu if "silu" in getattr(function, "__name__", "") else Activation.gelu
    return _AT_TWO.get(made, Activation.gelu)


def _rope_scaling(fields: Fields, positions: str) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(fields.kind)}
    if "scale_factor" in names:  # Llama 3.1
        return {"rope_scaling": RopeScaling.llama3, "rope_scaling_factor": float(fields.get("scale_factor", 8))}
    if fields.get("multi_latent_attention") and fields.get("rope_type", "yarn") == "yarn":
        return {"rope_scaling": RopeScaling.yarn, "rope_scaling_factor": float(fields.get("rotary_scaling_factor", 40))}
    if positions == "yarn":
        factor = float(fields.get("yarn_rotary_scaling_factor", 1))
        return {"rope_scaling": RopeScaling.yarn, "rope_scaling_factor": factor}
    return {}


def _windows(fields: Fields, layers: int, what: str) -> dict[str, Any]:
    window = fields.get("window_size")
    if isinstance(window, tuple | list):
        window = window[0]
    if not window or int(window) < 1:
        return {}
    window = int(window) + 1  # the keys before a query, and its own
    if pattern := fields.get("interleaved_attn_pattern"):  # (windowed layers, full layers), of Gemma 3
        return {"window_size": int(window), "window_every": sum(pattern)}
    if any("Gemma2" in kind.__name__ for kind in fields.kind.__mro__):
        return {"window_size": int(window), "window_every": 2}
    every = fields.get("window_attn_skip_freq", 1)
    if not isinstance(every, int):
        steps = [
            n for n in range(1, layers + 1) if list(every) == [int(n == 1 or (i + 1) % n != 0) for i in range(layers)]
        ]
        if not steps:
            raise Refusal(
                f"{what}: window_attn_skip_freq={every} cannot be planned", "Use a window in every layer but each n-th."
            )
        every = steps[0]
    return {"window_size": int(window), "window_every": max(every, 1)}


def _experts(fields: Fields, ffn: int, layers: int, what: str, assumed: list[str]) -> dict[str, Any]:
    if not (experts := fields.whole("num_moe_experts")):
        return {}
    frequency = fields.get("moe_layer_freq", 1)
    holds = list(frequency) if not isinstance(frequency, int) else [int(i % frequency == 0) for i in range(layers)]
    dense, every = placement_of_experts(holds, layers, f"moe_layer_freq={frequency}", what, assumed)
    kind = fields.get("moe_router_load_balancing_type", "aux_loss")
    known = kind in {member.value for member in LoadBalancing}
    return {
        "num_moe_experts": experts,
        "moe_router_topk": fields.whole("moe_router_topk", 2),
        "moe_ffn_hidden_size": fields.whole("moe_ffn_hidden_size") or ffn,
        "moe_shared_expert_intermediate_size": fields.whole("moe_shared_expert_intermediate_size"),
        "num_dense_layers": dense,
        "moe_every": every,
        "moe_router_load_balancing_type": LoadBalancing(kind) if known else LoadBalancing.aux_loss,
        "moe_aux_loss_coeff": float(fields.get("moe_aux_loss_coeff", 0)),
        "moe_router_enable_expert_bias": bool(fields.get("moe_router_enable_expert_bias", False)),
        "moe_router_bias_update_rate": float(fields.get("moe_router_bias_update_rate", 1e-3)),
        "moe_router_num_groups": fields.whole("moe_router_num_groups"),
        "moe_router_group_topk": fields.whole("moe_router_group_topk"),
        "moe_router_topk_scaling_factor": float(fields.get("moe_router_topk_scaling_factor") or 0),
    }


def _latent_attention(fields: Fields) -> dict[str, Any]:
    if not fields.get("multi_latent_attention"):
        return {}
    names = ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")
    return {name: fields.whole(name) for name in names}


def _hybrid(fields: Fields, layers: int, hidden: int) -> dict[str, Any]:
    if not _is_hybrid(fields):
        return {}
    ratios = (float(fields.get(f"hybrid_{part}_ratio", 0)) for part in ("attention", "mlp"))
    head = fields.whole("mamba_head_dim", 64)
    return {
        "hybrid_override_pattern": fields.get("hybrid_override_pattern") or spread(layers, *ratios),
        "mamba_num_heads": fields.whole("mamba_num_heads") or MAMBA_EXPANSION * hidden // head,
        "mamba_head_dim": head,
        "mamba_state_dim": fields.whole("mamba_state_dim", 128),
        "mamba_num_groups": fields.whole("mamba_num_groups", 8),
    }


def _is_hybrid(fields: Fields) -> bool:
    return any(kind.__name__ == "SSMConfig" for kind in fields.kind.__mro__)
