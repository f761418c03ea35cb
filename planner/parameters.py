"""The number of parameters of a model and of each rank: exact, tensor by tensor, as Megatron-Core builds them.

tests/planner/test_parameters.py compares them with the modules that Megatron-Core builds.

Symbols:
    h            hidden size
    tp, ep, etp  tensor-, expert- and expert-tensor-parallel sizes
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass

from slipway.configs import Model, Spec
from slipway.configs.schema import FeedForward, LayerKind, Mixer, Normalization, PositionEmbedding, layer_kinds
from slipway.planner.stages import chunks, chunks_of, layout_key


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
    shards: tuple[Shard, ...]  # of one rank of each stage; empty where the layout cannot be built

    @property
    def per_rank(self) -> list[int]:
        return [shard.total for shard in self.shards]


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
    if kind.feed_forward is FeedForward.dense:
        dense += feed_forward(model, model.ffn_hidden_size, tp)
    elif kind.feed_forward is FeedForward.experts:
        dense += (
            model.num_moe_experts + 2 * model.moe_latent_size
        ) * model.hidden_size  # router, and into the latent width and back
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


def embedding(model: Model, tp: int, seq_length: int) -> int:
    """Word embedding rows of one rank, and learned positions where the model has them."""
    count = model.padded_vocab_size(tp) // tp * model.hidden_size
    if model.position_embedding_type is PositionEmbedding.learned_absolute:
        count += seq_length * model.hidden_size
    return count


def output_layer(model: Model, tp: int) -> int:
    """Parameters of one rank's rows of the output projection."""
    return model.padded_vocab_size(tp) // tp * model.hidden_size


def stage_shards(spec: Spec) -> list[Shard]:
    """Parameters of one rank of each pipeline stage."""
    lay = spec.layout
    return list(_stage_shards(spec.model, layout_key(lay), lay.tp, lay.ep, lay.expert_tp, spec.seq_length))


@functools.lru_cache(maxsize=16384)
def _stage_shards(
    model: Model, key: tuple[int, int, int, int, bool, bool, bool], tp: int, ep: int, etp: int, seq_length: int
) -> tuple[Shard, ...]:
    pp = key[0]
    out = [Shard(0, 0)] * pp
    kinds = layer_kinds(model.shape)
    for chunk in chunks(model.num_layers, key) or ():
        shard = out[chunk.stage]
        for kind, count in Counter(kinds[chunk.start : chunk.stop]).items():
            one = layer(model, kind, tp, ep, etp)
            shard += Shard(one.dense * count, one.expert * count)
        if chunk.embeds:
            shard += Shard(embedding(model, tp, seq_length), 0)
        if chunk.loses:
            shard += Shard(norm(model, model.hidden_size), 0)
            shard += multi_token_prediction(model, tp, ep, etp)
            if model.mtp_num_layers and pp > 1:  # the last stage embeds the next token itself
                shard += Shard(embedding(model, tp, seq_length), 0)
            if not model.tied or pp > 1:  # tied weights on two stages are two copies
                shard += Shard(output_layer(model, tp), 0)
        out[chunk.stage] = shard
    return tuple(out)


@functools.lru_cache(maxsize=1024)
def model_parameters(model: Model, seq_length: int) -> tuple[int, int]:
    """Parameters of the whole model: all, and those that are active for one token."""
    total = active = embedding(model, 1, seq_length) + norm(model, model.hidden_size)
    if not model.tied:
        total += output_layer(model, 1)
        active += output_layer(model, 1)
    for shard in (
        *(layer(model, kind, 1, 1, 1) for kind in layer_kinds(model.shape)),
        multi_token_prediction(model, 1, 1, 1),
    ):
        total += shard.total
        active += shard.dense
        if shard.expert:
            active += shard.expert // model.num_moe_experts * model.moe_router_topk
    return total, active


def parameters(spec: Spec) -> ParameterCount:
    """Parameters of the whole model, those active for one token, and those of one rank of each stage."""
    total, active = model_parameters(spec.model, spec.seq_length)
    divides = chunks_of(spec) is not None and not spec.model.num_attention_heads % spec.layout.tp
    return ParameterCount(total, active, tuple(stage_shards(spec)) if divides else ())
