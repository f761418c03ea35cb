"""Rotary embeddings by Megatron-Core's own unfused functions."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class _ContextRank(NamedTuple):
    """What Megatron-Core asks of a context-parallel group."""

    ranks: int
    place: int

    def size(self) -> int:
        return self.ranks

    def rank(self) -> int:
        return self.place


def apply_rotary_pos_emb(
    t: torch.Tensor,
    freqs: torch.Tensor,
    tensor_format: str = "sbhd",
    start_positions: torch.Tensor | None = None,
    interleaved: bool = False,
    fused: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    cp_size: int = 1,
    cp_rank: int = 0,
) -> torch.Tensor:
    """``t`` rotated by ``freqs``. Shapes: t [s, b, h, d] or, packed, [t, h, d]; freqs [s, 1, 1, d]."""
    from megatron.core.models.common.embeddings import rope_utils

    if tensor_format == "thd":
        group: Any = _ContextRank(cp_size, cp_rank)
        return rope_utils._apply_rotary_pos_emb_thd(
            t, cu_seqlens, freqs, rotary_interleaved=interleaved, cp_group=group
        )
    return rope_utils._apply_rotary_pos_emb_bshd(t, freqs, rotary_interleaved=interleaved)


def apply_fused_qkv_rotary_pos_emb(
    qkv: torch.Tensor,
    q_freqs: torch.Tensor,
    k_freqs: torch.Tensor,
    qkv_split_arg_list: list[int],
    tensor_format: str = "sbhd",
    start_positions: torch.Tensor | None = None,
    interleaved: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    cp_size: int = 1,
    cp_rank: int = 0,
) -> torch.Tensor:
    """Rotation of the joint projection."""
    raise NotImplementedError("a CPU rank does not rotate queries and keys in one kernel")
