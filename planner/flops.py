"""Floating-point operations of a model, in both conventions that published numbers use.

"causal" counts the half of the attention matrix that a causal model needs (NeMo since August 2025, Megatron-Core since 0.12);
"full" counts all of it (NeMo before, Narayanan et al. 2021, PaLM's MFU). Model FLOPs count forward and backward once;
hardware FLOPs add what recompute does again. A multiply-add is two operations.
"""

from __future__ import annotations

import functools

from configs import Model, Spec


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
def mean_keys(model: Model, layer: int, seq_length: int, *, causal: bool) -> float:
    """Keys that a query of ``layer`` meets, on average over the sequence."""
    windowed = model.window_size and (model.window_every == 1 or (layer + 1) % model.window_every)
    if not windowed or model.window_size >= seq_length:
        return seq_length / 2 if causal else float(seq_length)
    w = model.window_size
    return w - w * w / (2 * seq_length) if causal else float(w)


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


def feed_forward_linear(model: Model, layer: int) -> int:
    """Multiply-adds per token of the feed-forward block that one token meets."""
    h, matrices = model.hidden_size, 3 if model.gated_linear_unit else 2
    if not model.layer_is_moe(layer):
        return matrices * h * model.ffn_hidden_size
    active = model.moe_router_topk * model.moe_ffn_hidden_size + model.moe_shared_expert_intermediate_size
    return matrices * h * active + h * model.num_moe_experts


@functools.lru_cache(maxsize=1024)
def forward_flops_per_token(model: Model, seq_length: int, *, causal: bool = True) -> float:
    """FLOPs of one token's forward pass: linear layers, attention, logits, multi-token prediction."""
    qk, v = attention_width(model)
    total = 2.0 * model.hidden_size * model.vocab_size
    further = [model.num_layers - 1] * model.mtp_num_layers
    total += len(further) * 2.0 * model.hidden_size * (model.vocab_size + 2 * model.hidden_size)
    for i in (*range(model.num_layers), *further):
        total += 2.0 * (attention_linear(model) + feed_forward_linear(model, i))
        total += 2.0 * mean_keys(model, i, seq_length, causal=causal) * (qk + v)
    return total


def model_flops_per_token(spec: Spec, *, causal: bool = True) -> float:
    """FLOPs of training on one token: the backward pass costs twice the forward."""
    return 3.0 * forward_flops_per_token(spec.model, spec.seq_length, causal=causal)


def peak_tflops(spec: Spec) -> float:
    """Dense peak of the GPU in the precision's GEMM dtype; 0 where it has none."""
    g = spec.gpu
    return {"fp32": g.tf32_tflops, "bf16": g.bf16_tflops, "fp8": g.fp8_tflops, "fp4": g.fp4_tflops}[spec.precision.gemm]
