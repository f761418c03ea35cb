"""Floating-point operations of a model, in both conventions that published numbers use.

"causal" counts the half of the attention matrix that a causal model needs (NeMo since August 2025, Megatron-Core since
0.12); "full" counts all of it (NeMo before that, Narayanan et al. 2021, PaLM's MFU). Model FLOPs count the forward and
the backward pass once, without recompute. A multiply-add is two operations.

Symbols:
    h      hidden size
    qk, v  query-key and value channels, summed over all heads
    w      keys of a sliding window
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from slipway.configs import Model, Spec
from slipway.configs.schema import FeedForward, LayerKind, Mixer, layer_kinds
from slipway.planner.numerics import dense_peak_tflops, numerics_of


@functools.lru_cache(maxsize=1024)
def attention_width(model: Model) -> tuple[int, int]:
    """Query-key and value channels summed over heads."""
    if model.is_mla:
        return (
            model.num_attention_heads * (model.qk_head_dim + model.qk_pos_emb_head_dim),
            model.num_attention_heads * model.v_head_dim,
        )
    width = model.num_attention_heads * model.kv_channels
    return width, width


@functools.lru_cache(maxsize=4096)
def mean_keys(model: Model, full_keys: bool, seq_length: int, *, causal: bool) -> float:
    """Keys that a query attends to, on average over the sequence, in a layer with or without a window."""
    if full_keys or model.window_size >= seq_length:
        return seq_length / 2 if causal else float(seq_length)
    w = model.window_size
    return w - w * w / (2 * seq_length) if causal else float(w)


class Norms(NamedTuple):
    """Norms of a layer, by the module whose selective recompute brings them back."""

    layernorm: int
    mlp: int
    none: int


def norms(model: Model, kind: LayerKind, *, all_separate: bool) -> Norms:
    """The number of a layer's norms that each kind of recompute brings back.

    Megatron-Core's layers fuse a norm into the linear layer that it feeds, except before latent attention and before
    experts, whose inputs go to more than one layer (gpt_layer_specs.py). Recomputing ``layernorm`` skips the fused
    norms; recomputing ``mlp`` includes the feed-forward's own.
    """
    attention, dense = kind.mixer is Mixer.attention, kind.feed_forward is FeedForward.dense
    separate = int(attention and (all_separate or model.is_mla))
    separate += int(kind.feed_forward is FeedForward.experts or (dense and all_separate))
    below = int(dense and not all_separate)
    return Norms(separate, below, kind.parts - separate - below)


def recomputes_norms(model: Model) -> bool:
    """Whether recomputing ``layernorm`` does anything in Megatron-Core's layers of this model."""
    return any(norms(model, kind, all_separate=False).layernorm for kind in set(layer_kinds(model.shape)))


def attention_linear(model: Model) -> int:
    """Multiply-adds per token of the attention block's linear layers."""
    h = model.hidden_size
    qk, v = attention_width(model)
    if model.is_mla:
        query = h * model.q_lora_rank + model.q_lora_rank * qk if model.q_lora_rank else h * qk
        down = h * (model.kv_lora_rank + model.qk_pos_emb_head_dim)
        up = model.kv_lora_rank * model.num_attention_heads * (model.qk_head_dim + model.v_head_dim)
        return query + down + up + v * h
    return h * (qk + 2 * model.num_query_groups * model.kv_channels) + v * h


def mamba_linear(model: Model) -> int:
    """Multiply-adds per token of a Mamba block's two projections."""
    return model.hidden_size * (model.mamba_projection + model.mamba_width)


# The state-space dual form works on chunks of the sequence (mamba_ssm's chunk_size): scores within a chunk, states
# between them.
MAMBA_CHUNK = 128


def mamba_scan(model: Model) -> float:
    """FLOPs per token of the scan (arXiv:2405.21060, section 6).

    They are the scores of each group, their product with x, and the writing and reading of the states.
    """
    within = 2.0 * MAMBA_CHUNK * (model.mamba_num_groups * model.mamba_state_dim + model.mamba_width)
    return within + 4.0 * model.mamba_state_dim * model.mamba_width


def feed_forward_linear(model: Model, experts: bool) -> int:
    """Multiply-adds per token of a feed-forward block; of its experts, those that the token is sent to."""
    h, matrices = model.hidden_size, 3 if model.gated_linear_unit else 2
    if not experts:
        return matrices * h * model.ffn_hidden_size
    routed = matrices * (model.moe_latent_size or h) * model.moe_router_topk * model.moe_ffn_hidden_size
    return (
        routed
        + matrices * h * model.moe_shared_expert_intermediate_size
        + h * (model.num_moe_experts + 2 * model.moe_latent_size)
    )


def sent_to_experts(capacity: float, padded: bool) -> float:
    """Tokens that experts compute, over those routed: 1 where none is dropped. Padding is computed, so it counts."""
    if not capacity:
        return 1.0
    return capacity if padded else min(capacity, 1.0)


def layer_flops(model: Model, kind: LayerKind, seq_length: int, *, causal: bool) -> float:
    """FLOPs per token of one layer's forward pass."""
    total = 0.0
    if kind.mixer is Mixer.attention:
        total += 2.0 * attention_linear(model) + 2.0 * mean_keys(
            model, kind.full_keys, seq_length, causal=causal
        ) * sum(attention_width(model))
    elif kind.mixer is Mixer.mamba:
        total += 2.0 * mamba_linear(model) + mamba_scan(model)
    if kind.feed_forward is not FeedForward.none:
        total += 2.0 * feed_forward_linear(model, kind.feed_forward is FeedForward.experts)
    return total


@functools.lru_cache(maxsize=1024)
def forward_flops_per_token(model: Model, seq_length: int, *, causal: bool = True) -> float:
    """FLOPs of one token's forward pass: linear layers, attention, logits, multi-token prediction."""
    predictions = (model.mtp_kind,) * model.mtp_num_layers
    total = 2.0 * model.hidden_size * model.vocab_size
    total += len(predictions) * 2.0 * model.hidden_size * (model.vocab_size + 2 * model.hidden_size)
    return total + sum(
        layer_flops(model, kind, seq_length, causal=causal) for kind in layer_kinds(model.shape) + predictions
    )


def model_flops_per_token(spec: Spec, *, causal: bool = True) -> float:
    """FLOPs of training on one token: the backward pass costs twice the forward pass.

    Beside adapters the weights are frozen: their gradients, a third of the work of linear layers, are neither computed
    nor counted. NeMo's and Megatron's own meters count them. Those of the adapters are too few to count.
    """
    forward = forward_flops_per_token(spec.model, spec.seq_length, causal=causal)
    return 3.0 * forward - (linear_flops_per_token(spec.model) if spec.task.lora_rank else 0.0)


@functools.lru_cache(maxsize=1024)
def linear_flops_per_token(model: Model) -> float:
    """FLOPs of one token's forward pass in what has weights: everything but the attention of tokens to each other."""
    return forward_flops_per_token(model, 0) - sum(
        mamba_scan(model) for kind in layer_kinds(model.shape) if kind.mixer is Mixer.mamba
    )


def peak_tflops(spec: Spec) -> float:
    """Dense peak of the GPU in TFLOP/s, in the dtype of the precision's matrix products; 0 where it has none."""
    return dense_peak_tflops(spec.gpu, numerics_of(spec).gemm)
