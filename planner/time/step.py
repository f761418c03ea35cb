"""Seconds of a training step from first principles: kernels by shape, communication by link, the pipeline by simulation.

Everything that depends only on how a layer is split is computed once and shared by all layouts that split it so.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from slipway.configs import Calibration, Dispatcher, Fsdp, Gpu, Model, Recompute, Spec
from slipway.configs.schema import FeedForward, LayerKind, LayerShape, Mixer, layer_kinds
from slipway.planner import flops
from slipway.planner.calibration import calibration_for
from slipway.planner.memory import offloaded_bytes
from slipway.planner.numerics import Dtype, Numerics, numerics_of
from slipway.planner.parameters import stage_shards
from slipway.planner.stages import chunks_of
from slipway.planner.time.kernels import Device, Link, link
from slipway.planner.time.schedule import lower_bound, pipeline_time

_SYNC = 3.0  # how sharply a layer is either the CPU's or the GPU's: between one after the other (1) and the slower one alone (infinity)

_HOST_LINK_EFFICIENCY = 0.85  # copies from and to pinned memory: 55 of 64 GB/s on PCIe 5.0 by NVIDIA's bandwidthTest
# Seconds of a FLOP in Mamba-2's scan over one in fused attention: both take the same time at a sequence of 2,048 (arXiv:2405.21060,
# figure 10), where attention has some four times the FLOPs.
_SCAN_OVER_ATTENTION = 4.0


@dataclass(frozen=True)
class Split:
    """Everything that the cost of one layer depends on."""

    model: Model
    gpu: Gpu
    cal: Calibration
    numerics: Numerics
    tp: int
    cp: int
    ep: int
    etp: int
    mbs: int
    seq_length: int
    sequence_parallel: bool
    recompute: Recompute
    modules: tuple[str, ...]
    tp_comm_overlap: bool
    cuda_graphs: bool
    fused_cross_entropy: bool
    lora_rank: int  # 0: every weight is trained
    capacity: float  # of an expert, over its even share of tokens; 0: it takes whatever comes
    padded: bool  # every expert is filled up to its capacity
    sent_once_a_node: (
        bool  # the flex dispatcher sends one copy of a token to each node, however many experts it meets there
    )

    @property
    def tokens(self) -> float:
        """Tokens of a micro-batch on one context rank."""
        return self.mbs * self.seq_length / self.cp


@dataclass(frozen=True)
class Cost:
    """Seconds of one layer's forward and backward on one rank, by what they are spent on."""

    forward: dict[str, float]
    backward: dict[str, float]
    kernels: int = 0  # launched in the forward pass

    @functools.cached_property
    def forward_s(self) -> float:
        return sum(self.forward.values())

    @functools.cached_property
    def backward_s(self) -> float:
        return sum(self.backward.values())


@dataclass(frozen=True)
class StepTime:
    """A step, predicted. ``breakdown`` are seconds on the busiest stage; they and the bubble sum to the step."""

    step_time_s: float
    low_s: float
    high_s: float
    tokens_per_s_per_gpu: float
    model_tflops_per_gpu: float
    model_tflops_full_attention: float
    mfu: float
    bubble_fraction: float
    breakdown: dict[str, float] = field(default_factory=dict)
    stage_forward_s: list[list[float]] = field(default_factory=list)
    stage_backward_s: list[list[float]] = field(default_factory=list)
    send_s: float = 0.0


def split_of(spec: Spec, cal: Calibration) -> Split:
    lay = spec.layout
    return Split(
        spec.model,
        spec.gpu,
        cal,
        numerics_of(spec),
        lay.tp,
        lay.cp,
        lay.ep,
        lay.expert_tp,
        lay.mbs,
        spec.seq_length,
        lay.sequence_parallel,
        lay.recompute,
        tuple(lay.recompute_modules),
        lay.tp_comm_overlap,
        lay.cuda_graphs,
        lay.fused_cross_entropy,
        spec.task.lora_rank,
        lay.moe_expert_capacity_factor,
        lay.moe_pad_expert_input_to_capacity,
        lay.dispatcher is Dispatcher.flex,
    )


class _Ledger:
    """Adds up one layer's costs as its operations are walked through."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.device = Device(split.gpu, split.cal)
        self.forward: dict[str, float] = {}
        self.backward: dict[str, float] = {}
        self.kernels = 0
        self.inside: list[str] = []  # the modules being walked through, by their names in recompute_modules
        self.by_module: dict[str, dict[str, float]] = {}  # forward seconds of each

    @contextlib.contextmanager
    def module(self, name: str) -> Iterator[None]:
        self.inside.append(name)
        yield
        self.inside.pop()

    def recompute(self, name: str) -> None:
        """The backward pass runs the module's forward again."""
        for what, seconds in self.by_module.get(name, {}).items():
            self.backward[what] += seconds

    def add(self, what: str, forward: float, backward: float, kernels: int = 0) -> None:
        for name in self.inside:
            module = self.by_module.setdefault(name, {})
            module[what] = module.get(what, 0.0) + forward
        self.forward[what] = self.forward.get(what, 0.0) + forward
        self.backward[what] = self.backward.get(what, 0.0) + backward
        self.kernels += kernels

    def linear(self, n_out: float, k_in: float, rows: float, groups: int = 1) -> None:
        """A linear layer and its two gradients, ``groups`` of them in one launch; fp8 adds casts of inputs and gradients."""
        s, d, numerics = self.split, self.device, self.split.numerics
        forward = d.gemm(rows, n_out, k_in, numerics.gemm, numerics.scaling, groups)
        backward = d.gemm(rows, k_in, n_out, numerics.gemm, numerics.scaling, groups)
        if not s.lora_rank:  # a frozen weight has no gradient
            backward += d.gemm(n_out, k_in, rows, numerics.gemm, numerics.scaling, groups)
        kernels = 1
        if numerics.gemm.quantized:  # the input is cast once, and the output's gradient once
            moved = groups * rows * numerics.cast_bytes
            self.add("elementwise", d.stream(moved * k_in, 2), d.stream(moved * n_out, 2))
            kernels += 3
        self.add("gemm", forward, backward, kernels)

    def adapter(self, n_out: float, k_in: float, rows: float) -> None:
        """A low-rank pair beside a frozen linear layer, in bf16: down, up, and the sum; its gradients twice that."""
        rank, d = self.split.lora_rank, self.device
        if rank:
            once = d.gemm(rows, rank, k_in, Dtype.bf16) + d.gemm(rows, n_out, rank, Dtype.bf16)
            self.add("gemm", once, 2 * once, 2)
            self.stream(6 * rows * n_out, 2 * rows * n_out, 1)

    def stream(self, forward_bytes: float, backward_bytes: float, kernels: int) -> None:
        passes = self.split.cal.elementwise_passes
        self.add(
            "elementwise",
            self.device.stream(forward_bytes * passes, kernels),
            self.device.stream(backward_bytes * passes, 2 * kernels),
            kernels,
        )


def _attention(ledger: _Ledger, full_keys: bool) -> None:
    s, m, d = ledger.split, ledger.split.model, ledger.device
    rows, h = s.tokens, m.hidden_size
    shard = s.tp if s.sequence_parallel else 1
    qk, v = (w / s.tp for w in flops.attention_width(m))
    if m.is_mla:
        heads = m.num_attention_heads / s.tp
        ledger.linear(m.kv_lora_rank + m.qk_pos_emb_head_dim, h, rows / shard)
        ledger.linear(m.q_lora_rank or qk, h, rows / (shard if m.q_lora_rank else 1))
        key_value = qk + v
        with ledger.module("mla_up_proj"):
            if m.q_lora_rank:
                ledger.linear(qk, m.q_lora_rank, rows)
            ledger.linear(heads * (m.qk_head_dim + m.v_head_dim), m.kv_lora_rank, rows)
            joined = 2 * rows * s.cal.mla_passes * (qk + v)
            ledger.stream(joined, joined, 6)
    else:
        groups = max(m.num_query_groups, s.tp) / s.tp
        key_value = 2 * groups * m.kv_channels
        ledger.linear(qk + key_value, h, rows)
        ledger.adapter(qk + key_value, h, rows)  # where NeMo's performance recipes put it
        rotated = 2 * rows * (qk + key_value / 2)
        ledger.stream(2 * rotated, 2 * rotated, 2)
    ledger.linear(h, v, rows)
    if m.qk_layernorm:
        ledger.stream(4 * rows * (qk + key_value / 2), 6 * rows * (qk + key_value / 2), 2)

    keys = flops.mean_keys(m, full_keys, s.seq_length, causal=s.cal.flash_attention)
    work = 2.0 * rows * keys * (qk + v)
    head = (m.qk_head_dim + m.qk_pos_emb_head_dim + m.v_head_dim) / 2 if m.is_mla else m.kv_channels
    forward = d.attention(work, head)
    backward = 2.5 * forward  # the backward computes the scores again
    if not s.cal.flash_attention:
        scores = m.num_attention_heads / s.tp * rows * s.seq_length * 2.0
        forward = d.attention(work) + d.stream(6 * scores, 4)  # write, mask and softmax, dropout, read
        backward = 2.0 * d.attention(work) + d.stream(7 * scores, 5)
    if s.cp > 1:
        ring = link(d, s.cp, s.tp)
        moved = 2.0 * rows * key_value * (s.cp - 1)
        exposed_forward = max(0.0, moved / ring.rate - 0.8 * forward) + ring.latency * (s.cp - 1)
        exposed_backward = max(0.0, 2 * moved / ring.rate - 0.8 * backward) + ring.latency * (s.cp - 1)
        ledger.add("cp", exposed_forward, exposed_backward)
        # each step's output is rescaled into an fp32 sum, each step's gradients are added to what the others left
        ledger.stream(s.cp * 10 * rows * v, s.cp * 6 * rows * (qk + key_value), 2 * s.cp)
    with ledger.module("core_attn"):
        ledger.add("attention", forward, backward, 2)


def _mamba(ledger: _Ledger) -> None:
    """A Mamba-2 block: projections, a short convolution, the chunked scan, a gated norm."""
    s, m, d = ledger.split, ledger.split.model, ledger.device
    rows, h = s.tokens, m.hidden_size
    width = m.mamba_width / s.tp
    projected = m.mamba_projection / s.tp
    ledger.linear(projected, h, rows)
    ledger.linear(h, width, rows)
    gate, rest = 2.0 * rows * width, 2.0 * rows * (projected - width)
    # [s, b, h] is copied to [b, s, h] and back (megatron-core's MambaMixer.forward)
    ledger.stream(2 * (gate + rest) + 2 * gate, 2 * (gate + rest) + 2 * gate, 2)
    # Convolution; then x, B and C are read by three kernels, each chunk's state is written, passed on and read in fp32, and the gated
    # norm reads and writes. The backward pass keeps none of it: it runs them again, and then their gradients.
    states = 4.0 * rows * width * m.mamba_state_dim / flops.MAMBA_CHUNK
    once = 2 * rest + 3 * rest + gate + 4 * states + 3 * gate
    ledger.stream(once, 3 * once, 7)
    if s.cp > 1:  # the sequence is exchanged for heads, and back
        one = link(d, s.cp, s.tp).all_to_all(2.0 * rows * (projected + width), 2.0 * rows * (projected + width))
        ledger.add("cp", one, one, 4)
    scan = _SCAN_OVER_ATTENTION * d.attention(flops.mamba_scan(m) * rows / s.tp)
    ledger.add("attention", scan, 3 * scan)


def _tensor_parallel(ledger: _Ledger, blocks: int) -> None:
    """One gather and one scatter a block and pass with sequence parallelism; all-reduces of the same volume without."""
    s = ledger.split
    if s.tp == 1:
        return
    ring = link(ledger.device, s.tp, 1)
    whole = 2.0 * s.tokens * s.model.hidden_size
    overlap = max(s.cal.tp_overlap, 0.7 if s.tp_comm_overlap else 0.0)
    one = ring.gather(whole) * (1 - overlap)
    backward = (
        3 if s.sequence_parallel and not s.lora_rank else 2
    )  # the input is gathered again for the weight gradient
    ledger.add("tp", 2 * blocks * one, backward * blocks * one, 2 * blocks)


def _norms_and_residuals(ledger: _Ledger, kind: LayerKind) -> None:
    s, m, parts = ledger.split, ledger.split.model, kind.parts
    rows = s.tokens / (s.tp if s.sequence_parallel else 1)
    one = 2.0 * rows * m.hidden_size
    dropout = 1 if s.cal.dropout else 0  # a mask is written and read
    for module, count in flops.norms(m, kind, all_separate=s.cal.separate_norms)._asdict().items():
        with ledger.module(module):
            ledger.stream(count * 2 * one, count * 3 * one, count)
    ledger.stream((parts * 3 + dropout) * one, (parts * 2 + dropout) * one, parts)


def _feed_forward(ledger: _Ledger, width: float, rows: float) -> None:
    m = ledger.split.model
    h, up = m.hidden_size, 2 if m.gated_linear_unit else 1
    ledger.linear(up * width, h, rows)
    ledger.linear(h, width, rows)
    ledger.stream(2.0 * rows * width * (up + 1), 2.0 * rows * width * (2 * up + 1), 1)


def _experts(ledger: _Ledger) -> None:
    s, m, d = ledger.split, ledger.split.model, ledger.device
    h = m.moe_latent_size or m.hidden_size  # the width at which tokens travel and experts work
    local = s.tokens / (s.tp if s.sequence_parallel else 1)  # tokens that this rank routes
    ledger.linear(m.num_moe_experts, m.hidden_size, local)
    if m.moe_latent_size:
        ledger.linear(h, m.hidden_size, local)
        ledger.linear(m.hidden_size, h, local)
    ledger.stream(4.0 * local * m.num_moe_experts * 3, 4.0 * local * m.num_moe_experts * 3, 8)
    routed = local * m.moe_router_topk * flops.sent_to_experts(s.capacity, s.padded)
    if s.ep > 1:
        group = link(d, s.ep, s.etp)
        moved = 2.0 * routed * h
        across = moved
        if s.sent_once_a_node and group.local < group.size:
            across = 2.0 * local * h * flops.nodes_met(m, group.size / group.local)
        one = group.all_to_all(moved, across) * (1 - s.cal.expert_overlap)
        ledger.add("ep", 2 * one, 2 * one, 6)
    if s.etp > 1:
        ring = link(d, s.etp, 1)
        one = ring.gather(2.0 * routed * s.etp * h)
        ledger.add("tp", 2 * one, 2 * one, 2)
    # The all-to-all dispatcher orders the copies by rank before they travel and by expert after, and back: each reads and writes them,
    # of which the exchange does a part. The flex dispatcher's kernels place the copies as they move them.
    ordered = (2 if s.sent_once_a_node else 6) * 2.0 * h * routed
    ledger.stream(ordered, ordered, 6)
    experts = m.num_moe_experts // s.ep
    busiest = 1.0 if s.padded else min(s.cal.expert_imbalance, s.capacity or math.inf)
    rows = routed * s.ep * s.etp * busiest / m.num_moe_experts
    width = m.moe_ffn_hidden_size / s.etp
    up = 2 if m.gated_linear_unit else 1
    ledger.linear(up * width, h, rows, experts)
    ledger.linear(h, width, rows, experts)
    with ledger.module("moe_act"):
        ledger.stream(2.0 * rows * experts * width * (up + 1), 2.0 * rows * experts * width * (2 * up + 1), 1)
    if m.add_bias_linear:
        # Megatron-Core adds the second bias expert by expert, times the router's probabilities, in fp32 (experts.py, _apply_bias)
        copies = rows * experts * h
        ledger.add(
            "elementwise", d.stream(28.0 * copies, 3 * experts), d.stream(36.0 * copies, 4 * experts), 3 * experts
        )
    if m.moe_shared_expert_intermediate_size:
        _feed_forward(ledger, m.moe_shared_expert_intermediate_size / s.tp, s.tokens)


@functools.lru_cache(maxsize=8192)
def layer_cost(split: Split, kind: LayerKind) -> Cost:
    """One decoder layer of this kind on one rank."""
    m = split.model
    ledger = _Ledger(split)
    _norms_and_residuals(ledger, kind)
    if kind.mixer is Mixer.attention:
        _attention(ledger, kind.full_keys)
    elif kind.mixer is Mixer.mamba:
        _mamba(ledger)
    blocks = int(kind.mixer is not Mixer.none)
    moe = kind.feed_forward is FeedForward.experts
    if moe:
        with ledger.module("moe"):
            _experts(ledger)
        blocks += bool(m.moe_shared_expert_intermediate_size)
    elif kind.feed_forward is FeedForward.dense:
        with ledger.module("mlp"):
            _feed_forward(ledger, m.ffn_hidden_size / split.tp, split.tokens)
        blocks += 1
    _tensor_parallel(ledger, blocks)
    if split.recompute is Recompute.full:
        for what, seconds in ledger.forward.items():
            ledger.backward[what] += seconds
    elif split.recompute is Recompute.selective:
        for name in split.modules or ("core_attn",):
            if not (name == "moe_act" and "moe" in split.modules):  # already inside
                ledger.recompute(name)
    launch = 0.0 if split.cuda_graphs else split.cal.launch_us * 1e-6
    for passes, times in ((1, ledger.forward), (2, ledger.backward)):
        host = ledger.kernels * launch
        if not split.cuda_graphs:
            host += 1e-6 * (
                split.cal.layer_host_us * kind.parts / 2 + (split.cal.moe_host_us if moe and not split.padded else 0.0)
            )
        busy = sum(times.values())
        # the CPU cannot launch kernels as fast as the GPU ends them, everywhere in a layer or in a part of it
        idle = ((passes * host) ** _SYNC + busy**_SYNC) ** (1 / _SYNC) - busy
        if idle > 0:
            times["launch"] = times.get("launch", 0.0) + idle
    return Cost(ledger.forward, ledger.backward, ledger.kernels)


@functools.lru_cache(maxsize=1024)
def embedding_cost(split: Split) -> Cost:
    m = split.model
    ledger = _Ledger(split)
    one = 2.0 * split.tokens * m.hidden_size
    ledger.stream(2 * one, 4 * one, 2)
    if split.tp > 1:
        ring = link(ledger.device, split.tp, 1)
        ledger.add("tp", ring.gather(one), ring.gather(one))
    return Cost(ledger.forward, ledger.backward)


@functools.lru_cache(maxsize=1024)
def loss_cost(split: Split) -> Cost:
    """Final norm, logits (never in fp8) and cross-entropy over this rank's vocabulary."""
    m, d = split.model, Device(split.gpu, split.cal)
    ledger = _Ledger(split)
    vocab = m.padded_vocab_size(split.tp) / split.tp
    rows = split.tokens
    dtype = split.numerics.unquantized.gemm
    # bytes of a logit read and written: unfused it is cast, searched for its maximum, shifted, exponentiated, summed and divided
    softmax, gradient = (8.0, 8.0) if split.fused_cross_entropy else (38.0, 16.0)
    ledger.add(
        "loss",
        d.gemm(rows, vocab, m.hidden_size, dtype) + d.stream(rows * vocab * softmax, 4),
        d.gemm(rows, m.hidden_size, vocab, dtype)
        + (0.0 if split.lora_rank else d.gemm(vocab, m.hidden_size, rows, dtype))
        + d.stream(rows * vocab * gradient, 3),
    )
    if split.tp > 1:
        ring = link(d, split.tp, 1)
        whole = 2.0 * rows * m.hidden_size
        ledger.add("tp", ring.gather(whole), 2 * ring.gather(whole))
    return Cost(ledger.forward, ledger.backward)


@functools.lru_cache(maxsize=1024)
def projection_cost(split: Split) -> Cost:
    """What stands before a multi-token prediction layer: the next token's embedding, both norms, and the projection of the two."""
    ledger = _Ledger(split)
    h, rows = split.model.hidden_size, split.tokens
    one = 2.0 * rows * h
    ledger.stream(2 * one + 3 * 2 * one, 4 * one + 3 * 3 * one, 5)
    ledger.linear(h / split.tp, 2 * h, rows)
    if split.tp > 1:
        gather = link(ledger.device, split.tp, 1).gather(one)
        ledger.add("tp", 2 * gather, 2 * gather)
    return Cost(ledger.forward, ledger.backward)


@dataclass(frozen=True)
class _Stage:
    """Seconds of one stage's chunks, and what they are spent on over one micro-batch."""

    forward: list[float]
    backward: list[float]
    spent: dict[str, float]


def _stages(spec: Spec, split: Split, *, account: bool) -> list[_Stage]:
    """Every stage's seconds; with ``account`` also what they are spent on."""
    model, lay = spec.model, spec.layout
    edge = replace(split, numerics=split.numerics.unquantized) if spec.precision.first_last_layers_bf16 else split
    forward = [[0.0] * lay.vpp for _ in range(lay.pp)]
    backward = [[0.0] * lay.vpp for _ in range(lay.pp)]
    spent: list[dict[str, float]] = [{} for _ in range(lay.pp)]

    def add(stage: int, virtual: int, cost: Cost, count: int = 1) -> None:
        forward[stage][virtual] += count * cost.forward_s
        backward[stage][virtual] += count * cost.backward_s
        if not account:
            return
        for times in (cost.forward, cost.backward):
            for what, seconds in times.items():
                spent[stage][what] = spent[stage].get(what, 0.0) + count * seconds

    first, last = 0, model.num_layers
    if spec.precision.first_last_layers_bf16:
        first, last = spec.precision.num_layers_at_start_in_bf16, last - spec.precision.num_layers_at_end_in_bf16
    shape = model.shape
    costs: dict[tuple[LayerKind, bool], Cost] = {}
    for index, chunk in enumerate(chunks_of(spec) or ()):
        virtual = index // lay.pp
        for kind, count in _kinds(shape, chunk.start, chunk.stop, first, last):
            if kind not in costs:
                costs[kind] = layer_cost(edge if kind[1] else split, kind[0])
            add(chunk.stage, virtual, costs[kind], count)
        if chunk.embeds:
            add(chunk.stage, virtual, embedding_cost(split))
        if chunk.loses:
            add(chunk.stage, virtual, loss_cost(split), 1 + model.mtp_num_layers)
            if model.mtp_num_layers:
                for cost in (layer_cost(split, model.mtp_kind), projection_cost(split)):
                    add(chunk.stage, virtual, cost, model.mtp_num_layers)
    if lay.cpu_offload_layers:  # of the one stage there is then; each layer's copies hide under the next layer
        copies = offloaded_bytes(spec, split.cal) / (spec.gpu.host_link_gb_per_s * 1e9 * _HOST_LINK_EFFICIENCY)
        share = lay.cpu_offload_layers / model.num_layers
        out, back = (max(copies - share * passes[0][0], 0.0) for passes in (forward, backward))
        add(0, 0, Cost({"offload": out}, {"offload": back}))
    return [_Stage(f, b, s) for f, b, s in zip(forward, backward, spent, strict=True)]


@functools.lru_cache(maxsize=65536)
def _kinds(
    shape: LayerShape, start: int, stop: int, first: int, last: int
) -> tuple[tuple[tuple[LayerKind, bool], int], ...]:
    """How many layers of [start, stop) are of each kind, and whether they are kept in bf16."""
    kinds = layer_kinds(shape)
    return tuple(Counter((kinds[i], i < first or i >= last) for i in range(start, stop)).items())


def _data_parallel(spec: Spec, cal: Calibration, device: Device, window: float) -> tuple[float, float]:
    """Exposed seconds of gradient reduction and parameter gathering, and the optimizer's seconds.

    Args:
        window: seconds of compute under which the communication may hide: one micro-batch's forward and backward.
    """
    lay = spec.layout
    if spec.task.lora_rank:  # adapters are under a thousandth of the weights
        return 0.0, 0.0
    dp_cp = max(spec.dp, 1) * lay.cp
    expert_dp = spec.expert_dp
    numerics = numerics_of(spec)
    weight_bytes, grad_bytes = numerics.gathered_weight_bytes, numerics.reduced_gradient_bytes
    dense_link = link(device, dp_cp, lay.tp)
    expert_link = link(device, expert_dp, lay.ep * lay.expert_tp)
    comm = optimizer = 0.0
    for shard in set(stage_shards(spec)):
        reduce = _reduce_time(dense_link, shard.dense, grad_bytes, weight_bytes, spec)
        reduce += _reduce_time(expert_link, shard.expert, grad_bytes, weight_bytes, spec)
        comm = max(comm, reduce)
        owned = float(shard.total)
        if lay.distributed_optimizer or lay.fsdp is not Fsdp.none:
            owned = shard.dense / dp_cp + shard.expert / expert_dp
        # read gradient, two moments and master weight; write the last three and the bf16 weight; norm reads the gradient
        optimizer = max(optimizer, device.stream(owned * 30.0 + shard.total / dp_cp * 4.0, 4))
    if lay.optimizer_cpu_offload:
        optimizer *= 8.0  # host memory and PCIe in place of HBM
    if not cal.overlapped or not lay.overlap_grad_reduce:
        return comm, optimizer
    if lay.fsdp is not Fsdp.none:  # each unit's weights are waited for where they are needed, in both passes
        return comm - cal.dp_overlap * min(comm, window), optimizer
    return max(comm - cal.dp_overlap * window, 0.05 * comm), optimizer


def _reduce_time(ring: Link, count: int, grad_bytes: float, weight_bytes: float, spec: Spec) -> float:
    if not count or ring.size == 1:
        return 0.0
    lay = spec.layout
    if lay.fsdp is not Fsdp.none:
        # weights are gathered for the forward and again for the backward pass of every micro-batch
        return spec.batch.num_micro_batches * 2 * ring.gather(count * weight_bytes) + ring.gather(count * grad_bytes)
    if lay.distributed_optimizer:
        return ring.gather(count * grad_bytes) + ring.gather(count * weight_bytes)
    return ring.all_reduce(count * grad_bytes)


@dataclass(frozen=True)
class _Parts:
    """A step before its pipeline is simulated."""

    stages: list[_Stage]
    send: float
    exposed: float
    optimizer: float
    fixed: float  # seconds added once a step
    stretch: float  # factor for stragglers


def _parts(spec: Spec, cal: Calibration, *, account: bool) -> _Parts:
    device = Device(spec.gpu, cal)
    split = split_of(spec, cal)
    lay, batch = spec.layout, spec.batch
    stages = _stages(spec, split, account=account)
    send = 0.0
    if lay.pp > 1:
        boundary = link(device, lay.pp, max(1, spec.gpus // lay.pp))
        moved = 2.0 * split.tokens * spec.model.hidden_size / (lay.tp if lay.sequence_parallel else 1)
        send = boundary.send(moved) * (0.5 if lay.vpp > 1 else 1.0)  # interleaving overlaps it with the next chunk
    one = max(sum(s.forward) + sum(s.backward) for s in stages)
    window = one * (batch.num_micro_batches if lay.fsdp is not Fsdp.none else 1)
    exposed, optimizer = _data_parallel(spec, cal, device, window)
    nodes = max(1.0, spec.gpus / spec.gpu.gpus_per_node)
    stretch = 1.0 + cal.jitter_per_doubling * math.log2(nodes)
    return _Parts(stages, send, exposed, optimizer, cal.step_overhead_s, stretch)


def step_time_bound(spec: Spec, cal: Calibration | None = None) -> float:
    """Seconds that the step cannot beat: everything but the simulation of its pipeline, and a bound of that."""
    parts = _parts(spec, cal or calibration_for(spec), account=False)
    pipeline = lower_bound(
        [s.forward for s in parts.stages], [s.backward for s in parts.stages], spec.batch.num_micro_batches
    )
    return (pipeline + parts.exposed + parts.optimizer + parts.fixed) * parts.stretch


def step_time(spec: Spec, cal: Calibration | None = None) -> StepTime:
    """Predict the seconds of one optimizer step of a legal spec."""
    cal = cal or calibration_for(spec)
    batch = spec.batch
    parts = _parts(spec, cal, account=True)
    pipeline, bubble = pipeline_time(
        [s.forward for s in parts.stages], [s.backward for s in parts.stages], batch.num_micro_batches, parts.send
    )
    busiest = max(parts.stages, key=lambda s: sum(s.forward) + sum(s.backward))
    one = sum(busiest.forward) + sum(busiest.backward)
    before = pipeline + parts.exposed + parts.optimizer + parts.fixed
    total = before * parts.stretch
    breakdown = {what: seconds * batch.num_micro_batches for what, seconds in busiest.spent.items()}
    breakdown |= {
        "bubble": max(pipeline - one * batch.num_micro_batches, 0.0),
        "dp": parts.exposed,
        "optimizer": parts.optimizer,
        "other": parts.fixed + total - before,
    }
    rate = batch.tokens / total / spec.gpus
    tflops = rate * flops.model_flops_per_token(spec) / 1e12
    peak = flops.peak_tflops(spec)
    width = math.exp(cal.spread)
    return StepTime(
        step_time_s=total,
        low_s=total / width,
        high_s=total * width,
        tokens_per_s_per_gpu=rate,
        model_tflops_per_gpu=tflops,
        model_tflops_full_attention=rate * flops.model_flops_per_token(spec, causal=False) / 1e12,
        mfu=tflops / peak if peak else 0.0,
        bubble_fraction=bubble,
        breakdown=breakdown,
        stage_forward_s=[s.forward for s in parts.stages],
        stage_backward_s=[s.backward for s in parts.stages],
        send_s=parts.send,
    )
