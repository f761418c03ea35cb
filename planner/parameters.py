"""The number of parameters of a model and of each rank: exact, tensor by tensor, as Megatron-Core builds them.

tests/planner/test_parameters.py compares them with the modules that Megatron-Core builds.

Symbols:
    h            hidden size
    tp, ep, etp  tensor-, expert- and expert-tensor-parallel sizes
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from slipway.configs import Layout, Model, Spec
from slipway.configs.schema import (
    FeedForward,
    LayerKind,
    Mixer,
    Normalization,
    Placement,
    PositionEmbedding,
    SoftmaxType,
    layer_kinds,
)
from slipway.planner.stages import layers_of_stages


@dataclass(frozen=True)
class Shard:
    """Parameters of one rank. Data and context ranks replicate ``dense``, expert-data ranks replicate ``expert``."""

    dense: int
    expert: int

    @property
    def total(self) -> int:
        return self.dense + self.expert

    def __add__(self, other: Shard) -> Shard:
        return Shard(self.dense + other.dense, self.expert + other.expert)


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of the whole model, those that are active for one token, and those of one rank of each stage."""

    total: int
    active: int
    per_rank: list[int]  # of each stage; empty where the layout does not divide the layers or the heads


_CONVOLUTION_KERNEL = 4  # taps of Mamba-2's convolution, d_conv in megatron-core's MambaMixer


def norm(model: Model, size: int) -> int:
    """Parameters of a norm over ``size`` channels: a weight, and a bias in LayerNorm."""
    return size * (2 if model.normalization is Normalization.LayerNorm else 1)


def attention(model: Model, tp: int) -> int:
    """Parameters of one attention block on one of ``tp`` ranks, its input norm included."""
    h = model.hidden_size
    if model.is_mla:
        q_dim = model.num_attention_heads * (model.qk_head_dim + model.qk_pos_emb_head_dim) // tp
        if model.q_lora_rank:
            query = h * model.q_lora_rank + model.q_lora_rank * q_dim
            query += norm(model, model.q_lora_rank) if model.qk_layernorm else 0
        else:
            query = h * q_dim
        rank = model.kv_lora_rank
        key_value = h * (rank + model.qk_pos_emb_head_dim)
        key_value += rank * model.num_attention_heads * (model.qk_head_dim + model.v_head_dim) // tp
        key_value += norm(model, rank) if model.qk_layernorm else 0
        project = model.num_attention_heads * model.v_head_dim // tp * h
        return norm(model, h) + query + key_value + project
    width = model.num_attention_heads * model.kv_channels // tp
    groups = max(model.num_query_groups, tp)  # with more tensor ranks than groups, several ranks hold the same group
    qkv = width + 2 * groups * model.kv_channels // tp
    count = norm(model, h) + h * qkv + width * h
    if model.add_bias_linear or model.add_qkv_bias:
        count += qkv
    if model.add_bias_linear:
        count += h
    if model.qk_layernorm:
        count += 2 * norm(model, model.kv_channels)
    if model.softmax_type is SoftmaxType.learnable:
        count += model.num_attention_heads // tp
    return count


def mamba(model: Model, tp: int) -> int:
    """Parameters of one Mamba-2 block on one of ``tp`` ranks, its input norm included (ssm.mamba_mixer)."""
    h, width = model.hidden_size, model.mamba_width // tp
    groups = 2 * model.mamba_num_groups * model.mamba_state_dim // tp
    heads = model.mamba_num_heads // tp
    convolution = (width + groups) * (_CONVOLUTION_KERNEL + 1)  # and a bias
    per_head = 3 * heads  # A, D and the bias of dt
    return norm(model, h) + h * (2 * width + groups + heads) + convolution + per_head + width + width * h


def feed_forward(model: Model, size: int, tp: int, hidden: int = 0) -> int:
    """Parameters of a feed-forward block of inner width ``size`` on one of ``tp`` ranks, without its norm."""
    h = hidden or model.hidden_size
    up = size * (2 if model.gated_linear_unit else 1) // tp
    count = h * up + size // tp * h
    return count + (up + h if model.add_bias_linear else 0)


def layer(model: Model, kind: LayerKind, tp: int, ep: int, etp: int) -> Shard:
    """Parameters of a decoder layer of this kind on one rank."""
    dense = experts = 0
    if kind.mixer is Mixer.attention:
        dense += attention(model, tp)
    elif kind.mixer is Mixer.mamba:
        dense += mamba(model, tp)
    if kind.feed_forward is not FeedForward.none:
        dense += norm(model, model.hidden_size)
    if model.post_layernorm:
        dense += kind.parts * norm(model, model.hidden_size)
    if kind.feed_forward is FeedForward.dense:
        dense += feed_forward(model, model.ffn_hidden_size, tp)
    elif kind.feed_forward is FeedForward.experts:
        dense += (
            model.num_moe_experts + 2 * model.moe_latent_size
        ) * model.hidden_size  # router, and into the latent width and back
        dense += model.num_moe_experts if model.add_bias_linear else 0
        if model.moe_shared_expert_intermediate_size:
            dense += feed_forward(model, model.moe_shared_expert_intermediate_size, tp)
        experts = (
            model.num_moe_experts // ep * feed_forward(model, model.moe_ffn_hidden_size, etp, model.moe_latent_size)
        )
    return Shard(dense, experts)


def multi_token_prediction(model: Model, tp: int, ep: int, etp: int) -> Shard:
    """Parameters of the multi-token prediction layers on one rank: each is a projection and a decoder layer."""
    if not model.mtp_num_layers:
        return Shard(0, 0)
    h, one = model.hidden_size, layer(model, model.mtp_kind, tp, ep, etp)
    # norms of the embedding, of the hidden state and of the output; a projection of [h, 2h]
    projection = 3 * norm(model, h) + 2 * h * h // tp
    return Shard(model.mtp_num_layers * (one.dense + projection), model.mtp_num_layers * one.expert)


def stage_shards(spec: Spec) -> list[Shard]:
    """Parameters of one rank of each pipeline stage; empty if the layers do not divide."""
    lay = spec.layout
    return list(_stage_shards(spec.model, lay.placement, lay.tp, lay.ep, lay.expert_tp, spec.seq_length))


@functools.lru_cache(maxsize=16384)
def _stage_shards(model: Model, placement: Placement, tp: int, ep: int, etp: int, seq_length: int) -> tuple[Shard, ...]:
    pp, contents = placement.pp, layers_of_stages(model.shape, placement)
    output = model.padded_vocab_size(tp) // tp * model.hidden_size
    learned_positions = model.position_embedding_type is PositionEmbedding.learned_absolute
    embedding = output + (seq_length * model.hidden_size if learned_positions else 0)
    layers = {kind: layer(model, kind, tp, ep, etp) for kind in set(layer_kinds(model.shape))}
    out: list[Shard] = []
    for stage in contents:
        dense = sum(layers[kind].dense * count for kind, count in stage.kinds.items())
        shard = Shard(dense, sum(layers[kind].expert * count for kind, count in stage.kinds.items()))
        if stage.embeds:
            shard += Shard(embedding, 0)
        if stage.computes_loss:
            shard += Shard(norm(model, model.hidden_size), 0)
            shard += multi_token_prediction(model, tp, ep, etp)
            if model.mtp_num_layers and pp > 1:  # the last stage embeds the next token itself
                shard += Shard(embedding, 0)
            if not model.tied or pp > 1:  # tied weights on two stages are two copies
                shard += Shard(output, 0)
        out.append(shard)
    return tuple(out)


@functools.lru_cache(maxsize=1024)
def model_parameters(model: Model, seq_length: int) -> tuple[int, int]:
    """Parameters of the whole model: all, and those that are active for one token."""
    (whole,) = _stage_shards(model, Layout().placement, 1, 1, 1, seq_length)
    active_experts = whole.expert // model.num_moe_experts * model.moe_router_topk if whole.expert else 0
    return whole.total, whole.dense + active_experts


def parameters(spec: Spec) -> ParameterCount:
    """Parameters of the whole model, those active for one token, and those of one rank of each stage."""
    divides = not spec.model.num_attention_heads % spec.layout.tp
    per_rank = [shard.total for shard in stage_shards(spec)] if divides else []
    total, active = model_parameters(spec.model, spec.seq_length)
    return ParameterCount(total, active, per_rank)
