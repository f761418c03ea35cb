"""Attention by its definition: GQA, windows, sinks, unequal head dimensions, packed sequences, context parallelism."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from ..module.base import TransformerEngineBaseModule

_MASKS = ("no_mask", "padding", "causal", "padding_causal", "arbitrary")
_SOFTMAX_TYPES = ("vanilla", "off-by-one", "learnable")
_HIDDEN_SCORE = -1e30  # finite, so that a row without any key has no NaN


class _GatherSequence(torch.autograd.Function):
    """All-gather along a new leading dimension; the backward sums every rank's gradient and keeps ours."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(group.size())]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad[ctx.group.rank()], None


def _positions(rank: int, ranks: int, rows: int, start: int = 0) -> torch.Tensor:
    """Positions of `rows` of a rank: of 2 x ranks chunks it has chunks r and 2 x ranks - 1 - r, to balance the work."""
    if ranks == 1:
        return torch.arange(rows) + start
    half, mirror = rows // 2, 2 * ranks - 1 - rank
    first = torch.arange(rank * half, (rank + 1) * half)
    return torch.cat([first, torch.arange(mirror * half, (mirror + 1) * half)]) + start


class _Rows(NamedTuple):
    """Where the rows of a tensor stand: their positions, and of packed rows their sequence (-1: padding)."""

    position: torch.Tensor
    sequence: torch.Tensor | None


def _packed_rows(rank: int, ranks: int, rows: int, starts: list[int], lengths: list[int]) -> _Rows:
    """Rows of sequences that follow each other, each split over the context ranks by itself.

    Args:
        starts: the first row of each sequence, over all ranks, and at the end the number of rows.
        lengths: rows of each sequence that are not padding.
    """
    spans = [(start, end - start, n) for start, end, n in zip(starts, starts[1:], lengths, strict=False) if end > start]
    position, sequence = torch.full((rows,), -1), torch.full((rows,), -1)
    filled = 0
    for index, (start, size, length) in enumerate(spans):
        own = _positions(rank, ranks, size // ranks, start)
        position[filled : filled + len(own)] = own
        sequence[filled : filled + len(own)] = torch.where(own - start < length, index, -1)
        filled += len(own)
    return _Rows(position, sequence)


def _miss_no_extra_state(module: torch.nn.Module, keys: Any) -> None:
    """Accept a state without attention's extra state: Megatron-Core's checkpoints leave it out."""
    keys.missing_keys[:] = [key for key in keys.missing_keys if not key.endswith("core_attention._extra_state")]


class DotProductAttention(TransformerEngineBaseModule):
    """Attention of a rank's heads.

    Shapes: q [s, b, h, d], k [s, b, g, d], v [s, b, g, dv] -> [s, b, h * dv], s being the rank's share of the sequence;
    packed ("thd") without b. Scores are computed in fp32.
    """

    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: int | tuple[int, int],
        num_gqa_groups: int | None = None,
        attention_dropout: float = 0.0,
        qkv_format: str = "sbhd",
        attn_mask_type: str = "causal",
        window_size: tuple[int, int] | None = None,
        sequence_parallel: bool = False,
        tp_size: int = 1,
        get_rng_state_tracker: Callable[..., Any] | None = None,
        tp_group: Any = None,
        layer_number: int | None = None,
        attention_type: str = "self",
        cp_group: Any = None,
        cp_global_ranks: list[int] | None = None,
        cp_stream: Any = None,
        cp_comm_type: str = "p2p",
        softmax_scale: float | None = None,
        softmax_type: str = "vanilla",
        return_max_logit: bool | None = False,
    ) -> None:
        super().__init__()
        groups = num_attention_heads if num_gqa_groups is None else num_gqa_groups
        assert num_attention_heads % groups == 0, (
            "The number of attention heads must be divisible by the number of GQA groups!"
        )
        assert attention_type in ("self", "cross"), f"attention_type {attention_type} not supported"
        assert softmax_type in _SOFTMAX_TYPES, f"softmax_type {softmax_type} not supported"
        self.tp_size = tp_size if tp_group is None else tp_group.size()
        self.set_tensor_parallel_group(tp_group)
        channels = kv_channels if isinstance(kv_channels, int) else kv_channels[0]
        self.softmax_scale = softmax_scale or 1.0 / math.sqrt(channels)
        self.qkv_format, self.attn_mask_type, self.window_size = qkv_format, attn_mask_type, window_size
        self.attention_dropout = attention_dropout
        # The sequence-parallel ranks have other heads but the same sequence: they draw from one state.
        self.rng_tracker = None if sequence_parallel else get_rng_state_tracker
        self.cp_group = cp_group
        self.softmax_type = softmax_type
        heads = num_attention_heads // self.tp_size
        if softmax_type == "learnable":
            self.softmax_offset = torch.nn.Parameter(torch.zeros(heads))
        else:
            self.softmax_offset = torch.zeros(heads) if softmax_type == "off-by-one" else None
        self.register_load_state_dict_post_hook(_miss_no_extra_state)

    def set_context_parallel_group(
        self, cp_group: Any, cp_global_ranks: list[int], cp_stream: Any, cp_comm_type: str = "p2p"
    ) -> None:
        self.cp_group = cp_group

    def forward(
        self,
        query_layer: torch.Tensor,
        key_layer: torch.Tensor,
        value_layer: torch.Tensor,
        attention_mask: Any = None,
        qkv_format: str | None = None,
        cu_seqlens_q: torch.Tensor | None = None,
        cu_seqlens_kv: torch.Tensor | None = None,
        cu_seqlens_q_padded: torch.Tensor | None = None,
        cu_seqlens_kv_padded: torch.Tensor | None = None,
        max_seqlen_q: int | None = None,
        max_seqlen_kv: int | None = None,
        attn_mask_type: str | None = None,
        window_size: tuple[int, int] | None = None,
        checkpoint_core_attention: bool = False,
        core_attention_bias_type: str = "no_bias",
        core_attention_bias: torch.Tensor | None = None,
        alibi_slopes: torch.Tensor | None = None,
        fast_zero_fill: bool = True,
        inference_params: Any = None,
        pad_between_seqs: bool | None = None,
        fp8_output: bool | None = False,
    ) -> torch.Tensor:
        """Long because it has the arguments of Transformer Engine's."""
        if alibi_slopes is not None or inference_params is not None or fp8_output:
            raise NotImplementedError("attention on CPU ranks has no ALiBi, no inference cache and no fp8")
        mask = attn_mask_type or self.attn_mask_type
        if mask not in _MASKS:
            raise NotImplementedError(f"attention on CPU ranks has no mask {mask!r}")
        packed = (qkv_format or self.qkv_format) == "thd"
        query, key, value = (t.unsqueeze(1) if packed else t for t in (query_layer, key_layer, value_layer))
        q_rows, k_rows = self._rows(
            query.shape[0], key.shape[0], (cu_seqlens_q, cu_seqlens_q_padded) if packed else None
        )
        key, value = self._all_rows(key), self._all_rows(value)
        scores = self._scores(query, key)
        if core_attention_bias is not None:
            scores = scores + core_attention_bias
        hidden = self._hidden(q_rows, k_rows, mask, window_size or self.window_size)
        if mask in ("padding", "padding_causal", "arbitrary") and attention_mask is not None and not packed:
            hidden = hidden | attention_mask
        weights = self._softmax(scores.masked_fill(hidden, _HIDDEN_SCORE))
        repeat = query.shape[2] // value.shape[2]
        out = torch.einsum("bhqk,kbhd->qbhd", weights, value.float().repeat_interleave(repeat, dim=2))
        if q_rows.sequence is not None:  # padding between packed sequences attends to nothing
            out = out.masked_fill((q_rows.sequence < 0)[:, None, None, None], 0.0)
        out = out.to(query.dtype)
        return out.flatten(1).contiguous() if packed else out.flatten(2).contiguous()

    def _context(self) -> tuple[int, int]:
        """Ranks of the context-parallel group, and this one."""
        return (1, 0) if self.cp_group is None else (self.cp_group.size(), self.cp_group.rank())

    def _rows(self, q_rows: int, k_rows: int, lengths: tuple[Any, Any] | None) -> tuple[_Rows, _Rows]:
        """Where this rank's queries and every rank's keys stand."""
        ranks, rank = self._context()
        if lengths is None:
            keys = torch.cat([_positions(r, ranks, k_rows) for r in range(ranks)])
            return _Rows(_positions(rank, ranks, q_rows), None), _Rows(keys, None)
        ends, padded_ends = lengths
        starts = (ends if padded_ends is None else padded_ends).tolist()
        sizes = (ends[1:] - ends[:-1]).tolist()
        every = [_packed_rows(r, ranks, q_rows, starts, sizes) for r in range(ranks)]
        sequences = torch.cat([rows.sequence for rows in every if rows.sequence is not None])
        return every[rank], _Rows(torch.cat([rows.position for rows in every]), sequences)

    def _all_rows(self, x: torch.Tensor) -> torch.Tensor:
        """The rows of every context-parallel rank."""
        return x if self._context()[0] == 1 else _GatherSequence.apply(x, self.cp_group).flatten(0, 1)

    def _scores(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Scaled products [b, h, q, k] in fp32."""
        wide = key.float().repeat_interleave(query.shape[2] // key.shape[2], dim=2)
        return torch.einsum("qbhd,kbhd->bhqk", query.float(), wide) * self.softmax_scale

    @staticmethod
    def _hidden(q: _Rows, k: _Rows, mask: str, window: tuple[int, int] | None) -> torch.Tensor:
        """Which keys a query does not see, [q, k]. A window counts the keys before the query's own."""
        distance = q.position[:, None] - k.position[None, :]
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        if "causal" in mask:
            hidden |= distance < 0
        if window is not None and window[0] >= 0:
            hidden |= distance > window[0]
        if window is not None and window[1] >= 0:
            hidden |= -distance > window[1]
        if q.sequence is not None and k.sequence is not None:
            hidden |= (q.sequence[:, None] != k.sequence[None, :]) | (k.sequence[None, :] < 0)
        return hidden

    def _softmax(self, scores: torch.Tensor) -> torch.Tensor:
        """Weights over the keys; a sink takes a share of them that goes to no key."""
        if self.softmax_offset is None:
            weights = scores.softmax(-1)
        else:
            sink = self.softmax_offset.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            weights = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
        if not self.attention_dropout or not self.training:
            return weights
        if self.rng_tracker is None:
            return torch.nn.functional.dropout(weights, self.attention_dropout)
        with self.rng_tracker().fork():
            return torch.nn.functional.dropout(weights, self.attention_dropout)
