"""The layers of Gemma 3 with megatron-core 0.15, for which NeMo 2.7.3's attention lacks an argument.

The norms after the blocks have the model's epsilon, as in :mod:`slipway.recipes.runtime.gemma2`.
"""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from nemo.collections.llm.gpt.model.gemma3 import Gemma3SelfAttention, gemma3_layer_spec

from slipway.recipes.runtime.gemma2 import with_norms_after_blocks


class SelfAttention(Gemma3SelfAttention):  # type: ignore[misc]
    """NeMo's, which takes the argument that megatron-core 0.15 added for inference and is None in training."""

    def forward(self, *args: Any, rotary_pos_cos_sin: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def layer_spec(config: TransformerConfig) -> ModuleSpec:
    """The layers of NeMo's Gemma 3, corrected."""
    spec = with_norms_after_blocks(gemma3_layer_spec(config))
    spec.submodules.self_attention.module = SelfAttention
    return spec
