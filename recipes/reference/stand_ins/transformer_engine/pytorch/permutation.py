"""The permutations of tokens to experts and back, by Megatron-Core's own unfused functions."""

from __future__ import annotations

from typing import Any

import torch


def _megatron() -> Any:
    """Imported late, since Megatron-Core imports this package."""
    from megatron.core.transformer.moe import moe_utils

    return moe_utils


def moe_permute(
    inp: torch.Tensor,
    routing_map: torch.Tensor,
    num_out_tokens: int = -1,
    max_token_num: int = -1,
    map_type: str = "mask",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the tokens in the order of their experts, and that order. Shapes: [t, h] -> [t x topk, h]."""
    out, _, order = _megatron().permute(inp, routing_map, num_out_tokens=num_out_tokens)
    return out, order


def moe_permute_with_probs(
    inp: torch.Tensor, probs: torch.Tensor, routing_map: torch.Tensor, num_out_tokens: int = -1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As :func:`moe_permute`, with the router's probability of each row."""
    return _megatron().permute(inp, routing_map, probs=probs, num_out_tokens=num_out_tokens)


def moe_unpermute(
    inp: torch.Tensor,
    row_id_map: torch.Tensor,
    merging_probs: torch.Tensor | None = None,
    restore_shape: torch.Size | None = None,
    map_type: str = "mask",
    probs: torch.Tensor | None = None,
) -> torch.Tensor:
    """The sum of each token's rows, in the order of the tokens. Shapes: [t x topk, h] -> [t, h]."""
    if merging_probs is not None or probs is not None:
        raise NotImplementedError("CPU ranks merge experts' outputs without probabilities")
    return _megatron().unpermute(inp, row_id_map, restore_shape)


def moe_sort_chunks_by_index(inp: torch.Tensor, split_sizes: torch.Tensor, sorted_index: torch.Tensor) -> torch.Tensor:
    """The chunks of these sizes in another order."""
    return _megatron().sort_chunks_by_idxs(inp, split_sizes, sorted_index)[0]


def moe_sort_chunks_by_index_with_probs(
    inp: torch.Tensor, probs: torch.Tensor, split_sizes: torch.Tensor, sorted_index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`moe_sort_chunks_by_index`, with the probabilities of the rows."""
    return _megatron().sort_chunks_by_idxs(inp, split_sizes, sorted_index, probs=probs)
