"""Bytes of activations that one layer keeps for its backward pass, operation by operation.

Sources: Korthikanti et al. arXiv:2205.05198 section 4 for the accounting; Transformer Engine's modules and
Megatron-Core's layers for which tensors are saved.

Symbols (bytes unless a unit is given):
    t       tokens of a micro-batch on one context rank
    h       hidden size
    act     an element between matrix products
    gem     an element of the input that a linear layer keeps, in the dtype of its product
    shard   ranks that share the sequence between tensor-parallel regions: TP with sequence parallelism, else 1
    qk, v   query-key and value channels of one rank, summed over its heads
    up      matrices of the first feed-forward projection: 2 where it is gated, else 1
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import NamedTuple

from slipway.configs import Recompute
from slipway.configs.schema import FeedForward, LayerKind, Mixer
from slipway.planner import flops
from slipway.planner.numerics import FP32_BYTES
from slipway.planner.workload import LayerContext, Workload

# A dropout mask is one byte an element; Megatron-Core's layers have one after each of their two blocks.
_MASK_BYTES = 1.0
_MASKS_PER_LAYER = 2.0


@dataclass(frozen=True)
class Saved:
    """Bytes that one layer keeps for its backward pass, by what would bring them back."""

    inputs: float  # residual stream at the layer's entry
    norms: float  # joined to the linear layer that they feed
    norm_of_feed_forward: float  # the one of those that belongs to a dense feed-forward
    separate_norms: float
    attention_inputs: float  # q, k, v; a Mamba block's projected gate, x, B, C and dt
    attention_scores: float  # unfused attention only
    attention_output: float
    up_projection: float  # MLA: k, v (and q) after the up projections
    feed_forward_input: float
    activation_input: float
    activation_output: float
    experts: float  # permuted copies and routing
    shared_experts: float  # what is in them: the input and the output of their activation
    masks: float  # dropout

    @functools.cached_property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))

    def kept(self, modules: tuple[str, ...], moe: bool) -> float:
        """Bytes left when ``modules`` are recomputed."""
        left = self.total
        if "core_attn" in modules:
            left -= self.attention_scores
        if "layernorm" in modules:
            left -= self.separate_norms
        if "mla_up_proj" in modules:
            left -= self.up_projection
        if "moe_act" in modules and "moe" not in modules and moe:  # recomputing the experts includes their activation
            left -= self.activation_output
        if ("mlp" in modules and not moe) or ("moe" in modules and moe):
            left -= (
                self.activation_input + self.activation_output + (self.experts if moe else self.norm_of_feed_forward)
            )
        if "shared_experts" in modules or "moe" in modules:
            left -= self.shared_experts
        return left


class _MixerSaved(NamedTuple):
    """Bytes of what looks at other tokens: attention or a Mamba block."""

    inputs: float = 0.0
    scores: float = 0.0
    output: float = 0.0
    up_projection: float = 0.0


class _FeedForwardSaved(NamedTuple):
    """Bytes of a feed-forward block."""

    activation_input: float = 0.0
    activation_output: float = 0.0
    experts: float = 0.0
    shared_experts: float = 0.0


def _mamba(context: LayerContext) -> _MixerSaved:
    """The fused kernel recomputes the convolution and the scan, so it keeps only its inputs and its output."""
    m, t, numerics = context.model, context.tokens, context.numerics
    act, gem = numerics.activation_bytes, numerics.saved_input_bytes
    width = m.mamba_width / context.tp
    return _MixerSaved(
        inputs=act * t * m.mamba_projection / context.tp,
        output=(act + gem) * t * width,  # before and after the gate and its norm
    )


def _attention(context: LayerContext) -> _MixerSaved:
    m, t, tp, act = context.model, context.tokens, context.tp, context.numerics.activation_bytes
    qk, v = context.qk, context.v
    heads = m.num_attention_heads / tp
    up_projection = scores = 0.0
    if m.is_mla:
        low_rank = (m.q_lora_rank + m.kv_lora_rank + m.qk_pos_emb_head_dim) * t / context.sequence_shards
        inputs = act * low_rank * 2  # before and after the norms of the low ranks
        up_projection = act * t * (2 * qk + v)
    else:
        # with more tensor ranks than groups, each group is held more than once
        inputs = act * t * (qk + 2 * max(m.num_query_groups, tp) / tp * m.kv_channels)
    if context.keeps_scores:
        # the softmax's output; with dropout its mask and the masked copy; with soft-capping tanh's output
        per_score = (2 * act + _MASK_BYTES) if context.drops else act
        per_score += act if m.attn_logit_softcapping else 0.0
        scores = heads * t * context.seq_length * per_score
    # attention's output, of which the projection keeps a copy where it is quantized; the log-sum-exp of each head
    projected = context.kept_input_bytes("linear_proj")
    output = act * t * v + FP32_BYTES * heads * t + (projected * t * v if projected < act else 0.0)
    return _MixerSaved(inputs, scores, output, up_projection)


def _dense(context: LayerContext) -> _FeedForwardSaved:
    m, t, numerics = context.model, context.tokens, context.numerics
    up, width = 2 if m.gated_linear_unit else 1, m.ffn_hidden_size / context.tp
    return _FeedForwardSaved(
        numerics.activation_bytes * t * up * width, context.kept_input_bytes("linear_fc2") * t * width
    )


def _experts(context: LayerContext, expert_load: float) -> _FeedForwardSaved:
    m, t, numerics = context.model, context.tokens, context.numerics
    act, up = numerics.activation_bytes, 2 if m.gated_linear_unit else 1
    sent_in, put_out = context.kept_input_bytes("linear_fc1"), context.kept_input_bytes("linear_fc2")
    local = t / context.sequence_shards
    sent = context.sent_to_experts * expert_load
    routed = local * m.moe_router_topk * context.etp * sent
    width = m.moe_ffn_hidden_size / context.etp
    activation_input, activation_output = act * routed * up * width, put_out * routed * width
    # The permuted copies, the router's logits and probabilities in fp32, and the sum of what the experts return: the
    # router's weights are multiplied into the activation, so the single outputs are not kept.
    travelling = m.moe_latent_size or m.hidden_size
    experts = routed * travelling * sent_in + local * (FP32_BYTES * m.num_moe_experts * 2 + travelling * act)
    shared = (m.moe_shared_expert_intermediate_size or 0) / context.tp
    return _FeedForwardSaved(activation_input, activation_output, experts, (act * up + put_out) * t * shared)


_FED_BY_FIRST_NORM = ("linear_qkv", "linear_q_proj", "linear_q_down_proj", "linear_kv_down_proj", "in_proj")


@functools.lru_cache(maxsize=4096)
def saved_by_layer(context: LayerContext, kind: LayerKind, expert_load: float = 1.0) -> Saved:
    """Bytes that one layer of one rank keeps of a micro-batch; experts get ``expert_load`` times an even load."""
    m, t, h, shard = context.model, context.tokens, context.model.hidden_size, context.sequence_shards
    residual = context.numerics.activation_bytes * t * h / shard
    before_attention, before_mlp = (
        context.kept_input_bytes(*names) * t * h / shard for names in (_FED_BY_FIRST_NORM, ("linear_fc1",))
    )
    norms = flops.norms(m, kind, all_separate=context.calibration.separate_norms)
    mixer, feed_forward = _MixerSaved(), _FeedForwardSaved()
    if kind.mixer is Mixer.attention:
        mixer = _attention(context)
    elif kind.mixer is Mixer.mamba:
        mixer = _mamba(context)
    if kind.feed_forward is FeedForward.dense:
        feed_forward = _dense(context)
    elif kind.feed_forward is FeedForward.experts:
        feed_forward = _experts(context, expert_load)
    return Saved(
        inputs=residual,
        norms=norms.none * before_attention,
        norm_of_feed_forward=norms.mlp * before_mlp,
        separate_norms=norms.layernorm * max(before_attention, before_mlp),
        attention_inputs=mixer.inputs,
        attention_scores=mixer.scores,
        attention_output=mixer.output,
        up_projection=mixer.up_projection,
        feed_forward_input=residual if kind.parts == 2 else 0.0,
        activation_input=feed_forward.activation_input,
        activation_output=feed_forward.activation_output,
        experts=feed_forward.experts,
        shared_experts=feed_forward.shared_experts,
        masks=_MASKS_PER_LAYER * _MASK_BYTES * t * h / shard if context.drops else 0.0,
    )


class LayerBytes(NamedTuple):
    """Bytes of one layer and micro-batch under the layout's recompute."""

    kept: float  # from its forward to its backward pass
    working: float  # more, while its backward pass runs: what was recomputed
    whole: float  # what it would keep without recompute


def layer_bytes(context: LayerContext, kind: LayerKind, expert_load: float) -> LayerBytes:
    saved = saved_by_layer(context.without_recompute, kind, expert_load)
    if context.recompute is Recompute.full:
        return LayerBytes(saved.inputs, saved.total, saved.total)
    if context.recompute is Recompute.selective:
        kept = saved.kept(context.recompute_modules, kind.feed_forward is FeedForward.experts)
        return LayerBytes(kept, saved.total - kept, saved.total)
    return LayerBytes(saved.total, 0.0, saved.total)


def offloaded_bytes(work: Workload) -> float:
    """Bytes of one micro-batch's activations that go to host memory: of the first ``cpu_offload_layers`` layers.

    Offload is legal without a pipeline only, so that these layers stand on the one stage.
    """
    offloaded = work.kinds[: work.spec.layout.cpu_offload_layers]
    return sum(saved_by_layer(work.context, kind).total for kind in offloaded)
