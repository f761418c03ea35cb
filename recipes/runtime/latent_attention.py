"""Multi-latent attention whose replicated weights count once in the gradient norm."""

from __future__ import annotations

from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

_REPLICATED = ("linear_q_down_proj", "linear_kv_down_proj")


class LatentAttention(MLASelfAttention):
    """Megatron-Core's, with its down projections marked as what they are: the same weight on every tensor rank.

    Transformer Engine marks the weight of every linear layer as split over the tensor ranks, and Megatron-Core adds up
    the squares of such weights over them. A replicated weight then counts TP times: DeepSeek-V3's gradient norm is 1.36
    times too large at TP 8 (ROCm/TransformerEngine pull request 715), and the clipped step too small.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in _REPLICATED:
            for parameter in getattr(getattr(self, name, None), "parameters", list)():
                parameter.tensor_model_parallel = False


def layer_spec(config: TransformerConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """The layers of NeMo's DeepSeek, with :class:`LatentAttention`."""
    block = get_gpt_decoder_block_spec(config, use_transformer_engine=True, vp_stage=vp_stage)
    for layer in block.layer_specs:
        layer.submodules.self_attention.module = LatentAttention
    return block
