"""Bytes of one rank of each pipeline stage, by what they hold, and whether they fit.

Parameters, gradients and optimizer states are counted tensor by tensor; activations operation by operation as Transformer
Engine and Megatron-Core save them for the backward pass; the rest (logits, buffers, what lives outside the allocator) by
formula. Sources: Korthikanti et al. arXiv:2205.05198 section 4 for the accounting, Megatron-Core's schedules for what is
in flight, Transformer Engine's modules for what fp8 saves.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import dataclass, replace

from slipway.configs import Calibration, Fsdp, Model, Recompute, Spec
from slipway.configs.schema import FeedForward, LayerKind, Mixer, layer_kinds
from slipway.planner import flops
from slipway.planner.calibration import calibration_for
from slipway.planner.numerics import FP32_BYTES, Numerics, numerics_of
from slipway.planner.parameters import Shard, layer, parameters, stage_shards
from slipway.planner.stages import chunks_of

GIB = 2**30
# Outside the allocator: CUDA context and kernels, NCCL channels (NCCL_BUFFSIZE 4 MiB x channels x peers), cuDNN and cuBLAS.
CONTEXT_GIB = 1.0
NCCL_GIB_PER_GROUP = 0.35
# cuBLAS and Transformer Engine workspaces, inside the allocator for good: Megatron-LM's golden values hold 0.07 GiB (A100) to
# 0.11 GiB (H100) more between steps than parameters, gradients and states come to.
WORKSPACE_GIB = 0.1
# Reserved over allocated by PyTorch's caching allocator. The two published runs that died of it (Llama 3 70B in fp8 on 32 H100,
# NeMo's Megatron-Bridge tuning notes) are refused from 1.09 on; with expandable segments, which our recipes set, it is less.
FRAGMENTATION = 1.09
# Times an even load that experts are sent at the worst moment of a real run: the median that explains 82 of Megatron-LM's golden
# peaks (quartiles 1.34 to 1.59; python -m benchmarks.accuracy --golden). Published speeds are of routing forced to be even.
REAL_EXPERT_LOAD = 1.45
# Of one logit at the loss. Transformer Engine's kernel writes the gradient over the bf16 value; Megatron-Core's unfused loss
# keeps an fp32 copy too, which becomes the softmax and then the gradient in place. Megatron-LM's golden peaks show the 6.
_LOGITS_BYTES = {True: 2.0, False: 6.0}


@dataclass(frozen=True)
class StageMemory:
    """GiB on one rank of one stage. ``total_gib`` is the allocator's peak; outside it ``outside_gib`` is taken too."""

    stage: int
    parameters_gib: float
    gradients_gib: float
    optimizer_gib: float
    activations_gib: float
    logits_gib: float
    buffers_gib: float

    @property
    def total_gib(self) -> float:
        return (
            self.parameters_gib
            + self.gradients_gib
            + self.optimizer_gib
            + self.activations_gib
            + self.logits_gib
            + self.buffers_gib
        )

    @property
    def static_gib(self) -> float:
        """What stays between steps, but for the workspaces."""
        return self.parameters_gib + self.gradients_gib + self.optimizer_gib

    @property
    def step_gib(self) -> float:
        """What a step adds at its peak to what stays, workspaces included, between steps."""
        return self.total_gib - self.static_gib - WORKSPACE_GIB


@dataclass(frozen=True)
class Memory:
    """All stages. ``peak_gib`` is the allocator's peak on the fullest stage, as torch.cuda.max_memory_allocated counts."""

    stages: list[StageMemory]
    capacity_gib: float
    outside_gib: float
    host_gib_per_gpu: float
    checkpoint_gib: float

    @property
    def peak_stage(self) -> StageMemory:
        return max(self.stages, key=lambda s: s.total_gib)

    @property
    def peak_gib(self) -> float:
        return self.peak_stage.total_gib

    @property
    def reserved_gib(self) -> float:
        """By the caching allocator: the peak with fragmentation."""
        return self.peak_gib * FRAGMENTATION

    @property
    def needed_gib(self) -> float:
        """Of the device: what the allocator reserves, and what lives outside it."""
        return self.reserved_gib + self.outside_gib

    @property
    def headroom_gib(self) -> float:
        return self.capacity_gib - self.needed_gib

    @property
    def fits(self) -> bool:
        return self.headroom_gib >= 0


@dataclass(frozen=True)
class _Split:
    """What the saved activations of a layer depend on."""

    model: Model
    numerics: Numerics
    tp: int
    cp: int
    ep: int
    etp: int
    mbs: int
    seq_length: int
    sequence_parallel: bool
    flash: bool
    dropout: bool
    separate_norms: bool
    sent_to_experts: float  # of a token's copies, the share that an expert takes


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
    masks: float  # dropout

    @property
    def total(self) -> float:
        return (
            self.inputs
            + self.norms
            + self.norm_of_feed_forward
            + self.separate_norms
            + self.attention_inputs
            + self.attention_scores
            + self.attention_output
            + self.up_projection
            + self.feed_forward_input
            + self.activation_input
            + self.activation_output
            + self.experts
            + self.masks
        )

    def kept(self, modules: tuple[str, ...], moe: bool) -> float:
        """Bytes left when ``modules`` are recomputed."""
        left = self.total
        if "core_attn" in modules:
            left -= self.attention_scores
        if "layernorm" in modules:
            left -= self.separate_norms
        if "mla_up_proj" in modules:
            left -= self.up_projection
        if "moe_act" in modules and moe:
            left -= self.activation_output
        if ("mlp" in modules and not moe) or ("moe" in modules and moe):
            left -= (
                self.activation_input + self.activation_output + (self.experts if moe else self.norm_of_feed_forward)
            )
        return left


@functools.lru_cache(maxsize=4096)
def saved_by_layer(split: _Split, kind: LayerKind) -> Saved:
    """Bytes one micro-batch leaves behind in one layer of one rank."""
    m = split.model
    rows = split.mbs * split.seq_length / split.cp
    shard = split.tp if split.sequence_parallel else 1
    wide, saved = split.numerics.activation_bytes, split.numerics.saved_input_bytes
    h = m.hidden_size
    residual = wide * rows * h / shard
    up_projection = scores = attention_inputs = attention_output = 0.0
    qk, v = (w / split.tp for w in flops.attention_width(m))
    if kind.mixer is Mixer.mamba:  # the fused kernel runs the convolution and the scan's parts again
        width = m.mamba_width / split.tp
        attention_inputs = wide * rows * m.mamba_projection / split.tp
        attention_output = (wide + saved) * rows * width  # before and after the gate and its norm
    elif kind.mixer is Mixer.attention and m.is_mla:
        low_rank = (m.q_lora_rank + m.kv_lora_rank + m.qk_pos_emb_head_dim) * rows / shard
        attention_inputs = wide * low_rank * 2
        up_projection = wide * rows * (2 * qk + v)
    elif kind.mixer is Mixer.attention:
        attention_inputs = wide * rows * (qk + 2 * max(m.num_query_groups, split.tp) / split.tp * m.kv_channels)
    if kind.mixer is Mixer.attention:
        heads = m.num_attention_heads / split.tp
        if not split.flash:  # softmax output, its dropout mask and the dropped-out copy
            scores = heads * rows * split.seq_length * ((2 * wide + 1) if split.dropout else wide)
        attention_output = saved * rows * v + 4.0 * heads * rows + (wide * rows * v if saved < wide else 0.0)
    one_norm = saved * rows * h / shard
    norms = flops.norms(m, kind, all_separate=split.separate_norms)
    masks = 2.0 * rows * h / shard if split.dropout else 0.0
    up = 2 if m.gated_linear_unit else 1
    activation_in = activation_out = experts = 0.0
    if kind.feed_forward is FeedForward.dense:
        width = m.ffn_hidden_size / split.tp
        activation_in, activation_out, experts = wide * rows * up * width, saved * rows * width, 0.0
    elif kind.feed_forward is FeedForward.experts:
        local = rows / shard
        routed = local * m.moe_router_topk * split.etp * split.sent_to_experts
        width = m.moe_ffn_hidden_size / split.etp
        activation_in, activation_out = wide * routed * up * width, saved * routed * width
        # permuted copies; what the experts return is summed at once, their weights having gone into the activation
        travelling = m.moe_latent_size or h
        experts = routed * travelling * saved + local * (4.0 * m.num_moe_experts * 2 + travelling * wide)
        if m.moe_shared_expert_intermediate_size:
            shared = m.moe_shared_expert_intermediate_size / split.tp
            activation_in += wide * rows * up * shared
            activation_out += saved * rows * shared
    return Saved(
        residual,
        norms.none * one_norm,
        norms.mlp * one_norm,
        norms.layernorm * one_norm,
        attention_inputs,
        scores,
        attention_output,
        up_projection,
        residual if kind.parts == 2 else 0.0,
        activation_in,
        activation_out,
        experts,
        masks,
    )


def in_flight(stage: int, pp: int, vpp: int, micro_batches: int) -> float:
    """Micro-batches whose activations stage ``stage`` holds at its peak, in whole-stage units."""
    if pp == 1:
        return 1.0
    if vpp == 1:
        return float(min(micro_batches, pp - stage))
    chunks = min(micro_batches * vpp, (pp - stage - 1) * 2 + (vpp - 1) * pp + 1)
    return chunks / vpp


def _static(spec: Spec, shard: Shard) -> tuple[float, float, float]:
    """Bytes of parameters, gradients and optimizer states."""
    lay = spec.layout
    dp = max(spec.dp, 1) * lay.cp
    expert_dp = spec.expert_dp
    numerics = numerics_of(spec)
    weight, grad, states = numerics.weight_bytes, numerics.gradient_bytes, numerics.state_bytes
    full = lay.fsdp is not Fsdp.none
    sharded = full or lay.distributed_optimizer
    dense_by, expert_by = (dp, expert_dp) if sharded else (1, 1)
    optimizer = states * (shard.dense / dense_by + shard.expert / expert_by)
    if lay.optimizer_cpu_offload:
        optimizer = 0.0
    if spec.task.lora_rank:  # frozen: adapters' own are under a thousandth
        grad = optimizer = 0.0
    if full:
        owned = shard.dense / dp + shard.expert / expert_dp
        return weight * owned, grad * owned, optimizer
    return weight * shard.total, grad * shard.total, optimizer


def _layer_bytes(spec: Spec, split: _Split, kind: LayerKind) -> tuple[float, float]:
    """Bytes that stay after a layer's forward pass, and the most that exist while it runs its backward pass."""
    saved = saved_by_layer(split, kind)
    lay = spec.layout
    if lay.recompute is Recompute.full:
        return saved.inputs, saved.total
    if lay.recompute is Recompute.selective:
        kept = saved.kept(tuple(lay.recompute_modules) or ("core_attn",), kind.feed_forward is FeedForward.experts)
        return kept, saved.total - kept
    return saved.total, 0.0


def _split_of(spec: Spec, cal: Calibration) -> _Split:
    lay = spec.layout
    return _Split(
        spec.model,
        numerics_of(spec),
        lay.tp,
        lay.cp,
        lay.ep,
        lay.expert_tp,
        lay.mbs,
        spec.seq_length,
        lay.sequence_parallel,
        cal.flash_attention and lay.attention_backend not in ("unfused", "local"),
        cal.dropout,
        cal.separate_norms,
        flops.sent_to_experts(lay.moe_expert_capacity_factor, lay.moe_pad_expert_input_to_capacity),
    )


def offloaded_bytes(spec: Spec, cal: Calibration) -> float:
    """Bytes of one micro-batch's activations that go to host memory, from the first ``cpu_offload_layers`` layers of the one stage."""
    split = _split_of(spec, cal)
    return sum(
        saved_by_layer(split, kind).total for kind in layer_kinds(spec.model.shape)[: spec.layout.cpu_offload_layers]
    )


def stage_memory(spec: Spec, cal: Calibration | None = None, expert_load: float = 1.0) -> list[StageMemory]:
    """GiB of one rank of each stage; its experts are sent ``expert_load`` times the tokens of an even routing."""
    cal = cal or calibration_for(spec)
    model, lay, batch = spec.model, spec.layout, spec.batch
    split = _split_of(spec, cal)
    split = replace(split, sent_to_experts=split.sent_to_experts * expert_load)
    rows = lay.mbs * spec.seq_length / lay.cp
    wide = split.numerics.activation_bytes
    boundary = wide * rows * model.hidden_size / (lay.tp if lay.sequence_parallel else 1)
    kinds = layer_kinds(model.shape)
    per_stage: list[Counter[LayerKind]] = [Counter() for _ in range(lay.pp)]
    embeds, loses = [False] * lay.pp, [False] * lay.pp
    for chunk in chunks_of(spec) or ():
        per_stage[chunk.stage].update(kinds[chunk.start : chunk.stop])
        embeds[chunk.stage] |= chunk.embeds
        loses[chunk.stage] |= chunk.loses
    bytes_of = {kind: _layer_bytes(spec, split, kind) for kind in {*kinds, model.mtp_kind}}
    per_logit = cal.logits_bytes or _LOGITS_BYTES[lay.fused_cross_entropy]
    by_block = lay.recompute is Recompute.full and lay.recompute_method == "block" and lay.recompute_num_layers > 0
    out: list[StageMemory] = []
    for stage, shard in enumerate(stage_shards(spec)):
        weights, grads, states = _static(spec, shard)
        held = per_stage[stage]
        layers = held.total()
        dense = any(kind.feed_forward is FeedForward.dense for kind in held)
        depth = in_flight(stage, lay.pp, lay.vpp, batch.num_micro_batches)
        kept = sum(count * bytes_of[kind][0] for kind, count in held.items())
        if by_block:  # the layers after the first few keep everything
            whole = max(layers - lay.recompute_num_layers, 0) / max(layers, 1)
            kept += whole * (sum(count * saved_by_layer(split, kind).total for kind, count in held.items()) - kept)
        elif lay.recompute is Recompute.full and lay.recompute_num_layers > 1:
            kept /= lay.recompute_num_layers
        if lay.cpu_offload_layers:
            kept *= max(layers - lay.cpu_offload_layers, 0) / max(layers, 1)
        working = max((bytes_of[kind][1] for kind in held), default=0.0)
        if lay.recompute is Recompute.full and lay.recompute_num_layers > 1 and lay.recompute_method != "block":
            working *= lay.recompute_num_layers
        # while one layer's backward runs, the gradients of its widest activation and of its input exist too
        gradients = wide * rows * (2 * model.ffn_hidden_size / lay.tp if dense else model.hidden_size) + 2 * boundary
        activations = depth * kept + working + gradients
        if embeds[stage]:
            activations += depth * boundary
        logits = 0.0
        if loses[stage]:
            vocabulary = model.padded_vocab_size(lay.tp) / lay.tp
            logits = (1 + model.mtp_num_layers) * (per_logit * rows * vocabulary + 2 * boundary)
            further = saved_by_layer(split, model.mtp_kind).total if by_block else bytes_of[model.mtp_kind][0]
            activations += (
                depth * model.mtp_num_layers * (further + 5 * boundary)
            )  # and its inputs: embedding, norms, the two joined
            if lay.pp == 1:  # logits live before the first layer's backward, whose working set then does not
                activations -= min(working + gradients, logits)
        buffers = WORKSPACE_GIB * GIB
        if lay.pp > 1:
            buffers += 4 * boundary
        if lay.sequence_parallel:
            buffers += wide * rows * model.hidden_size  # the gathered sequence
        if lay.tp_comm_overlap:
            buffers += 4 * wide * rows * model.hidden_size
        if lay.fsdp is not Fsdp.none:
            biggest = max(layer(model, kind, lay.tp, lay.ep, lay.expert_tp).total for kind in set(kinds))
            table = model.padded_vocab_size(lay.tp) // lay.tp * model.hidden_size
            buffers += (2 * biggest + table) * wide + (
                biggest + table
            ) * FP32_BYTES  # two units gathered, one unit's gradients
        out.append(
            StageMemory(
                stage,
                weights / GIB,
                grads / GIB,
                states / GIB,
                activations / GIB,
                logits / GIB,
                buffers / GIB,
            )
        )
    return out


def memory(spec: Spec, cal: Calibration | None = None, expert_load: float = 1.0) -> Memory:
    """The memory of a legal spec on its GPU; ``expert_load`` as in :func:`stage_memory`."""
    lay = spec.layout
    cal = cal or calibration_for(spec)
    stages = stage_memory(spec, cal, expert_load)
    groups = 2 + sum(size > 1 for size in (lay.tp, lay.pp, lay.cp, lay.ep)) + (lay.ep > 1)
    numerics = numerics_of(spec)
    weights, states = numerics.checkpoint_weight_bytes, 0.0 if spec.task.lora_rank else numerics.state_bytes
    total = parameters(spec).total
    offloaded = states * total / spec.gpus if lay.optimizer_cpu_offload else 0.0
    shard = (weights + states) * total / spec.gpus
    return Memory(
        stages=stages,
        capacity_gib=spec.gpu.usable_memory_gib,
        outside_gib=CONTEXT_GIB + NCCL_GIB_PER_GROUP * groups + cal.extra_memory_gib,
        # a process with CUDA and its data workers, the copy that an asynchronous save drains from, offloaded states
        host_gib_per_gpu=6.0 + (shard + offloaded) / GIB,
        checkpoint_gib=(weights + states) * total / GIB,
    )


def has_room(spec: Spec, held: Memory, expert_load: float = REAL_EXPERT_LOAD) -> bool:
    """Whether ``held``, the memory of the spec, fits, and fits still when a rank's experts are sent ``expert_load`` times an even load."""
    return held.fits and (not _unevenly_routed(spec) or memory(spec, expert_load=expert_load).fits)


def expert_load_that_fits(spec: Spec, cal: Calibration | None = None) -> float:
    """Times an even load that the experts of a rank may be sent before a stage is full, to 0.001; infinite where none can fill it.

    At the most a rank is sent all tokens of its expert-parallel group.
    """
    low, high = 0.0, float(spec.layout.ep)
    if not _unevenly_routed(spec) or memory(spec, cal, high).fits:
        return math.inf
    while high - low > 0.001:
        middle = (low + high) / 2
        low, high = (middle, high) if memory(spec, cal, middle).fits else (low, middle)
    return low


def _unevenly_routed(spec: Spec) -> bool:
    return spec.model.is_moe and spec.layout.ep > 1 and not spec.layout.moe_expert_capacity_factor
