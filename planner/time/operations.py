"""The operations of a layer and their prices: the blocks (attention, mlp, experts, ...) list what this module prices.

An operation's price is a list of entries: seconds of the forward and of the backward pass under one term of the step's
breakdown. To add a cost, add an operation here and yield it in its block; to add a term of the breakdown, add it to
:class:`Term`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from slipway.planner.time.kernels import Device
from slipway.planner.time.links import link
from slipway.planner.workload import LayerContext

# FlashAttention's backward pass has five matrix products where the forward pass has two: it computes the scores again
# (arXiv:2307.08691, section 3.1).
_ATTENTION_BACKWARD = 2.5
# Unfused attention writes its scores; times that they are read or written, and kernels that do so. Forward: write, mask
# and softmax, dropout, read. Backward: the same scores and their gradients.
_SCORES_FORWARD, _SCORES_BACKWARD = 6, 7
_SCORES_FORWARD_KERNELS, _SCORES_BACKWARD_KERNELS = 4, 5
_UNFUSED_BACKWARD = 2.0  # the scores are kept: two products for each of the forward's
# Share of attention's time under which a context-parallel exchange can hide. Assumed: the ring's last step has no
# exchange to hide, and no published run separates the two.
_RING_OVERLAP = 0.8
# Seconds of a FLOP in Mamba-2's scan over one in fused attention: both take the same time at a sequence of 2,048
# (arXiv:2405.21060, figure 10), where attention has some four times the FLOPs.
_SCAN_OVER_ATTENTION = 4.0
_SCAN_BACKWARD = 3  # the scan again, and its two gradients

# Bytes that the loss reads and writes of one logit, forward and backward, by whether it is fused. Unfused, a logit is
# cast to fp32, searched for its maximum, shifted, exponentiated, summed and divided, by a kernel each.
_LOGIT_BYTES = {True: (8.0, 8.0), False: (38.0, 16.0)}


class Term(Enum):
    """What the seconds of a step are spent on: the keys of its breakdown. The last four are of no layer."""

    gemm = "gemm"
    attention = "attention"
    elementwise = "elementwise"
    tensor_parallel = "tp"
    context_parallel = "cp"
    expert_parallel = "ep"
    loss = "loss"
    launch = "launch"
    offload = "offload"
    bubble = "bubble"
    data_parallel = "dp"
    optimizer = "optimizer"
    other = "other"

    __hash__ = object.__hash__  # members are singletons; Enum hashes the name, in Python


TERM_WORDS = {
    Term.gemm: "matrix products",
    Term.attention: "attention",
    Term.elementwise: "memory-bound kernels",
    Term.tensor_parallel: "tensor-parallel communication",
    Term.context_parallel: "context-parallel exchange",
    Term.expert_parallel: "expert all-to-all",
    Term.loss: "logits and loss",
    Term.launch: "kernel launches",
    Term.offload: "activations to host memory and back",
    Term.bubble: "pipeline bubble",
    Term.data_parallel: "exposed data-parallel communication",
    Term.optimizer: "optimizer step",
    Term.other: "stragglers and step overhead",
}
"""Each term as sentences name it."""


class Entry(NamedTuple):
    """One line of a price."""

    term: Term
    forward_s: float
    backward_s: float
    kernels: int = 0  # launched in the forward pass; twice as many in the backward pass


class Operation(Protocol):
    """Something that a layer does on one rank."""

    def price(self, context: LayerContext, device: Device) -> Sequence[Entry]: ...


@dataclass(frozen=True)
class Module:
    """Operations that selective recompute brings back together, under their name in recompute_modules."""

    name: str
    operations: Sequence[Operation | Module]


@dataclass(frozen=True)
class Linear:
    """``groups`` linear layers in one launch, each [rows, inputs] to [rows, outputs], and their two gradients."""

    outputs: float
    inputs: float
    rows: float
    groups: int = 1

    def price(self, context: LayerContext, device: Device) -> Sequence[Entry]:
        numerics, groups = context.numerics, self.groups
        dtype, scaling = numerics.gemm, numerics.scaling
        forward = device.gemm(self.rows, self.outputs, self.inputs, dtype, scaling, groups)
        backward = device.gemm(self.rows, self.inputs, self.outputs, dtype, scaling, groups)
        if not context.lora_rank:  # a frozen weight has no gradient
            backward += device.gemm(self.outputs, self.inputs, self.rows, dtype, scaling, groups)
        if not dtype.quantized:
            return (Entry(Term.gemm, forward, backward, 1),)
        cast = (
            groups * self.rows * numerics.cast_bytes
        )  # of each channel: of the input once, of the output's gradient once
        return (
            Entry(Term.elementwise, device.stream(cast * self.inputs, 2), device.stream(cast * self.outputs, 2)),
            Entry(Term.gemm, forward, backward, 4),
        )


@dataclass(frozen=True)
class LowRankPair:
    """LoRA's two products beside a frozen linear layer, never quantized; the gradients take twice their time."""

    outputs: float
    inputs: float
    rows: float

    def price(self, context: LayerContext, device: Device) -> Sequence[Entry]:
        rank, dtype = context.lora_rank, context.numerics.unquantized.gemm
        down = device.gemm(self.rows, rank, self.inputs, dtype)
        up = device.gemm(self.rows, self.outputs, rank, dtype)
        return (Entry(Term.gemm, down + up, 2 * (down + up), 2),)


@dataclass(frozen=True)
class Stream:
    """Memory-bound kernels: bytes that they read and write, at the fused minimum."""

    forward_bytes: float
    backward_bytes: float
    kernels: int

    def price(self, context: LayerContext, device: Device) -> Sequence[Entry]:
        passes = context.calibration.elementwise_passes
        forward = device.stream(self.forward_bytes * passes, self.kernels)
        backward = device.stream(self.backward_bytes * passes, 2 * self.kernels)
        return (Entry(Term.elementwise, forward, backward, self.kernels),)


def adapter(context: LayerContext, layer: str, outputs: float, inputs: float) -> Iterator[LowRankPair | Stream]:
    """What the adapter beside a frozen layer does, if it has one: its output is added to the layer's."""
    if layer in context.adapted:
        added = context.element_bytes * context.tokens * outputs
        yield LowRankPair(outputs, inputs, context.tokens)
        yield Stream(3 * added, added, 1)


@dataclass(frozen=True)
class ExpertBias:
    """The bias of the experts' second linear layer, which Megatron-Core adds expert by expert in fp32.

    The router's probabilities multiply it first (experts.py, _apply_bias): for each expert three kernels read and write
    fp32, and two casts go from and to bf16; the backward pass has four such kernels.
    """

    elements: float
    experts: int

    def price(self, context: LayerContext, device: Device) -> Sequence[Entry]:
        forward = device.stream(28.0 * self.elements, 3 * self.experts)  # 3 x (4 + 4) + 2 + 2 bytes
        backward = device.stream(36.0 * self.elements, 4 * self.experts)  # 4 x (4 + 4) + 2 + 2 bytes
        return (Entry(Term.elementwise, forward, backward, 3 * self.experts),)


@dataclass(frozen=True)
class Attention:
    """Scores, softmax and their product with the values: ``flops`` in the forward pass, over heads of ``head_dim``."""

    flops: float
    head_dim: float
    score_bytes: float = 0.0  # of all scores, where attention is unfused

    def seconds(self, context: LayerContext, device: Device) -> tuple[float, float]:
        """Of the forward and the backward pass."""
        dtype = context.numerics.unquantized.gemm
        if not self.score_bytes:
            forward = device.attention(self.flops, dtype, self.head_dim)
            return forward, _ATTENTION_BACKWARD * forward
        products = device.attention(self.flops, dtype)
        forward = products + device.stream(_SCORES_FORWARD * self.score_bytes, _SCORES_FORWARD_KERNELS)
        streamed = device.stream(_SCORES_BACKWARD * self.score_bytes, _SCORES_BACKWARD_KERNELS)
        return forward, _UNFUSED_BACKWARD * products + streamed

    def price(self, context: LayerContext, device: Device) -> Sequence[Entry]:
        return (Entry(Term.attention, *self.seconds(context, device), 2),)


@dataclass(frozen=True)
class RingExchange:
    """Keys and values passed around the context-parallel ring, where attention does not hide them."""

    moved_bytes: float  # in the forward pass, by each rank in all steps; twice that in the backward pass
    attention: Attention

    def price(self, context: LayerContext, device: Device) -> Sequence[Entry]:
        ring, steps = link(device, context.cp, context.tp), context.cp - 1
        forward, backward = self.attention.seconds(context, device)
        waits = ring.latency * steps
        exposed_forward = max(0.0, self.moved_bytes / ring.rate - _RING_OVERLAP * forward) + waits
        exposed_backward = max(0.0, 2 * self.moved_bytes / ring.rate - _RING_OVERLAP * backward) + waits
        return (Entry(Term.context_parallel, exposed_forward, exposed_backward),)


@dataclass(frozen=True)
class Scan:
    """Mamba-2's chunked scan: ``flops`` in the forward pass. The backward pass runs it again."""

    flops: float

    def price(self, context: LayerContext, device: Device) -> Sequence[Entry]:
        scan = _SCAN_OVER_ATTENTION * device.attention(self.flops, context.numerics.unquantized.gemm)
        return (Entry(Term.attention, scan, _SCAN_BACKWARD * scan),)


@dataclass(frozen=True)
class Group:
    """Ranks that communicate: ``size`` of them, ``stride`` ranks apart."""

    size: int
    stride: int


@dataclass(frozen=True)
class Gathers:
    """All-gathers or reduce-scatters of ``total_bytes`` on each rank, so many in either pass."""

    term: Term
    group: Group
    total_bytes: float
    forward: int
    backward: int
    hidden: float = 0.0  # share that computation hides
    kernels: int = 0

    def price(self, context: LayerContext, device: Device) -> Sequence[Entry]:
        one = link(device, self.group.size, self.group.stride).gather(self.total_bytes) * (1 - self.hidden)
        return (Entry(self.term, self.forward * one, self.backward * one, self.kernels),)


@dataclass(frozen=True)
class AllToAlls:
    """All-to-alls in which each rank sends ``sent_bytes``, so many in either pass."""

    term: Term
    group: Group
    sent_bytes: float
    times: int
    kernels: int
    across_bytes: float | None = None  # see Link.all_to_all
    hidden: float = 0.0

    def price(self, context: LayerContext, device: Device) -> Sequence[Entry]:
        ranks = link(device, self.group.size, self.group.stride)
        one = ranks.all_to_all(self.sent_bytes, self.across_bytes) * (1 - self.hidden)
        return (Entry(self.term, self.times * one, self.times * one, self.kernels),)


@dataclass(frozen=True)
class Logits:
    """The output layer and the cross-entropy over this rank's ``vocabulary``, never quantized."""

    rows: float
    vocabulary: float
    hidden: int

    def price(self, context: LayerContext, device: Device) -> Sequence[Entry]:
        dtype, (n, v, h) = context.numerics.unquantized.gemm, (self.rows, self.vocabulary, self.hidden)
        read_forward, read_backward = _LOGIT_BYTES[context.fused_cross_entropy]
        forward = device.gemm(n, v, h, dtype) + device.stream(n * v * read_forward, 4)
        weight_gradient = 0.0 if context.lora_rank else device.gemm(v, h, n, dtype)
        backward = device.gemm(n, h, v, dtype) + weight_gradient + device.stream(n * v * read_backward, 3)
        return (Entry(Term.loss, forward, backward),)
