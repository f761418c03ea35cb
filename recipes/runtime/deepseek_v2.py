"""The layers of DeepSeek-V2 (arXiv:2405.04434): a token's groups of experts are those with the best single experts.

Megatron-Core ranks groups as DeepSeek-V3 does, by the sum of several experts, and V2's equation 12 by the best one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from slipway.recipes.runtime import latent_attention


def best_expert_topk(
    scores: torch.Tensor, topk: int, num_tokens: int, num_experts: int, num_groups: int, group_topk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``topk`` experts of the ``group_topk`` groups whose best experts score most; ``scores`` is [tokens, experts].

    The arguments are those of ``moe_utils.group_limited_topk``, in whose place it stands.
    """
    best = scores.view(num_tokens, num_groups, -1).amax(-1)
    chosen = torch.zeros_like(best, dtype=torch.bool).scatter(1, best.topk(group_topk, dim=-1).indices, True)
    visible = chosen.repeat_interleave(num_experts // num_groups, dim=-1)
    return scores.masked_fill(~visible, float("-inf")).topk(topk, dim=-1)


@contextlib.contextmanager
def _by_best_expert() -> Iterator[None]:
    """Within it, Megatron-Core's routing calls :func:`best_expert_topk`: no argument chooses the ranking of groups."""
    upstream = moe_utils.group_limited_topk
    moe_utils.group_limited_topk = best_expert_topk
    try:
        yield
    finally:
        moe_utils.group_limited_topk = upstream


class BestExpertRouter(TopKRouter):  # type: ignore[misc]
    """Megatron-Core's router with V2's ranking of groups."""

    def routing(self, logits: torch.Tensor) -> Any:
        with _by_best_expert():
            return super().routing(logits)


class Experts(MoELayer):  # type: ignore[misc]
    """Megatron-Core's layer of experts with :class:`BestExpertRouter`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.router.__class__ = BestExpertRouter  # the layer builds its router itself, whatever its specification says


def layer_spec(config: TransformerConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """The layers of NeMo's DeepSeek with the attention of :mod:`latent_attention` and :class:`Experts`."""
    block = latent_attention.layer_spec(config, vp_stage=vp_stage)
    for layer in block.layer_specs:
        if layer.submodules.mlp.module is MoELayer:
            layer.submodules.mlp.module = Experts
    return block
