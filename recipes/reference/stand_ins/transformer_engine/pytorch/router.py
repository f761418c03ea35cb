"""The fused kernels of a router, which only a GPU has."""

from __future__ import annotations

from typing import Any

import torch

_REFUSAL = "the fused kernels of a router need a GPU: use moe_router_fusion=False"


def fused_topk_with_score_function(
    logits: torch.Tensor,
    topk: int,
    use_pre_softmax: bool,
    num_groups: int,
    group_topk: int,
    scaling_factor: float,
    score_function: str,
    expert_bias: torch.Tensor,
) -> Any:
    raise NotImplementedError(_REFUSAL)


def fused_compute_score_for_moe_aux_loss(logits: torch.Tensor, topk: int, score_function: str) -> Any:
    raise NotImplementedError(_REFUSAL)


def fused_moe_aux_loss(
    probs: torch.Tensor,
    tokens_per_expert: torch.Tensor,
    total_num_tokens: int,
    num_experts: int,
    topk: int,
    coeff: float,
) -> Any:
    raise NotImplementedError(_REFUSAL)
