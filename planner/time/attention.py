"""What an attention block does: projections, rotary embedding, scores, and the exchange between context ranks.

Symbols:
    t       tokens of a micro-batch on one context rank
    h       hidden size
    qk, v   query-key and value channels of one rank, summed over its heads
    kv      channels of keys and values together, which context ranks exchange
    e       bytes of an activation's element
"""

from __future__ import annotations

from collections.abc import Iterator

from slipway.planner import flops
from slipway.planner.time.operations import Attention, Linear, Module, Operation, RingExchange, Stream, adapter
from slipway.planner.workload import LayerContext

# Bytes of one element that a step of the ring moves besides attention: its output is rescaled into an fp32 sum (read
# and write 4, read 2); its gradients are added to those that the other steps left (read 2 + 2, write 2).
_RESCALED_OUTPUT_BYTES = 10
_ADDED_GRADIENT_BYTES = 6


def attention(context: LayerContext, full_keys: bool) -> Iterator[Operation | Module]:
    """Operations of one block; without ``full_keys`` a query meets only the keys of its window."""
    m, t, e = context.model, context.tokens, context.element_bytes
    qk, v = context.qk, context.v
    if m.is_mla:
        kv = qk + v
        yield from _latent_projections(context, qk, v)
    else:
        # with more tensor ranks than groups, each group is held more than once
        kv = 2 * max(m.num_query_groups, context.tp) / context.tp * m.kv_channels
        yield from _projections(context, qk, kv)
    yield Linear(m.hidden_size, v, t)
    yield from adapter(context, "linear_proj", m.hidden_size, v)
    if m.qk_layernorm or m.qk_l2_norm:
        normed = qk + kv / 2  # queries and keys
        yield Stream(2 * e * t * normed, 3 * e * t * normed, 2)
    core = _core(context, full_keys, qk, v)
    if context.cp > 1:
        yield RingExchange(e * t * kv * (context.cp - 1), core)
        output = context.cp * _RESCALED_OUTPUT_BYTES * t * v
        yield Stream(output, context.cp * _ADDED_GRADIENT_BYTES * t * (qk + kv), 2 * context.cp)
    yield Module("core_attn", (core,))


def _projections(context: LayerContext, qk: float, kv: float) -> Iterator[Operation | Module]:
    """Queries, keys and values from the hidden state, and the rotary embedding of the first two."""
    h, t, e = context.model.hidden_size, context.tokens, context.element_bytes
    yield Linear(qk + kv, h, t)
    yield from adapter(context, "linear_qkv", qk + kv, h)
    rotated = e * t * (qk + kv / 2)
    yield Stream(2 * rotated, 2 * rotated, 2)


def _latent_projections(context: LayerContext, qk: float, v: float) -> Iterator[Operation | Module]:
    """Multi-latent attention: down to the low ranks on the sequence's shards, and up to the heads."""
    m, h, t, e, shards = (
        context.model,
        context.model.hidden_size,
        context.tokens,
        context.element_bytes,
        context.sequence_shards,
    )
    yield Linear(m.kv_lora_rank + m.qk_pos_emb_head_dim, h, t / shards)
    yield Linear(m.q_lora_rank or qk, h, t / (shards if m.q_lora_rank else 1))
    yield from adapter(context, "linear_kv_down_proj", m.kv_lora_rank + m.qk_pos_emb_head_dim, h)
    yield from adapter(context, "linear_q_down_proj" if m.q_lora_rank else "linear_q_proj", m.q_lora_rank or qk, h)
    up: list[Operation | Module] = []
    if m.q_lora_rank:
        up.append(Linear(qk, m.q_lora_rank, t))
    heads = m.num_attention_heads / context.tp
    up.append(Linear(heads * (m.qk_head_dim + m.v_head_dim), m.kv_lora_rank, t))
    up += adapter(context, "linear_q_up_proj", qk, m.q_lora_rank)
    up += adapter(context, "linear_kv_up_proj", heads * (m.qk_head_dim + m.v_head_dim), m.kv_lora_rank)
    touched = e * t * context.calibration.mla_passes * (qk + v)
    up.append(Stream(touched, touched, 6))
    yield Module("mla_up_proj", up)


def _core(context: LayerContext, full_keys: bool, qk: float, v: float) -> Attention:
    m, t = context.model, context.tokens
    flash = context.calibration.flash_attention and not m.attn_logit_softcapping
    keys = flops.mean_keys(m, full_keys, context.seq_length, causal=flash)
    head_dim = (m.qk_head_dim + m.qk_pos_emb_head_dim + m.v_head_dim) / 2 if m.is_mla else m.kv_channels
    scores = m.num_attention_heads / context.tp * t * context.seq_length
    return Attention(2.0 * t * keys * (qk + v), head_dim, 0.0 if flash else scores * context.element_bytes)
