"""The layers of Gemma 2 as Google's, where NeMo 2.7.3's differ: windows, and the epsilon of the norms after a block.

NeMo's have the window in the layers that should have none, lose it wherever no mask is given (as in training), and add
1e-5 to the variance, whatever the model's epsilon is.
"""

from __future__ import annotations

from typing import Any

from megatron.core.extensions.transformer_engine import TENorm
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from nemo.collections.llm.gpt.model.gemma2 import (
    Gemma2DotProductAttention,
    TERowParallelLinearLayerNorm,
    gemma2_layer_spec,
)


class RowParallelLinearWithNorm(TERowParallelLinearLayerNorm):  # type: ignore[misc]
    """NeMo's projection and the norm after it, with the model's epsilon."""

    def __init__(self, input_size: int, output_size: int, *, config: TransformerConfig, **kwargs: Any) -> None:
        super().__init__(input_size, output_size, config=config, **kwargs)
        self.post_layernorm = TENorm(config, output_size, eps=config.layernorm_epsilon)


class SoftCappedAttention(Gemma2DotProductAttention):  # type: ignore[misc]
    """NeMo's attention with soft-capped scores; the first layer has a window, the second none, and so on."""

    def __init__(self, config: TransformerConfig, layer_number: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, layer_number, *args, **kwargs)
        self.window_size = None  # NeMo's own windows need a mask that training does not make
        if layer_number % 2:
            self.scale_mask_softmax.window_size = tuple(config.window_size)
            self.scale_mask_softmax.scaled_masked_softmax_fusion = False  # the fused kernel ignores windows


def with_norms_after_blocks(spec: ModuleSpec) -> ModuleSpec:
    """A layer of NeMo's whose projections have :class:`RowParallelLinearWithNorm`."""
    spec.submodules.self_attention.submodules.linear_proj = RowParallelLinearWithNorm
    spec.submodules.mlp.submodules.linear_fc2 = RowParallelLinearWithNorm
    return spec


def layer_spec(config: TransformerConfig) -> ModuleSpec:
    """The layers of NeMo's Gemma 2, corrected."""
    spec = with_norms_after_blocks(gemma2_layer_spec(config))
    spec.submodules.self_attention.submodules.core_attention = SoftCappedAttention
    return spec
