"""Seconds of one layer on one rank: its blocks' operations, priced and added up; and of the model's two ends."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from slipway.configs import Recompute
from slipway.configs.schema import CudaGraphScope, FeedForward, LayerKind, Mixer
from slipway.planner import flops
from slipway.planner.time.attention import attention
from slipway.planner.time.communication import tensor_parallel
from slipway.planner.time.experts import experts
from slipway.planner.time.kernels import device_of
from slipway.planner.time.mamba import mamba
from slipway.planner.time.mlp import feed_forward
from slipway.planner.time.operations import Gathers, Group, Linear, Logits, Module, Operation, Stream, Term
from slipway.planner.workload import LayerContext, PlacedLayer, Workload

# How sharply a layer is bound by either the CPU or the GPU: from one after the other (1) to the slower one alone
# (infinity).
_LAUNCH_SHARPNESS = 3.0
_WITHIN_MOE = {"moe_act", "shared_experts"}  # modules that recomputing "moe" runs again too


@dataclass(frozen=True)
class Cost:
    """Seconds of a layer's forward and backward pass on one rank, by what they are spent on."""

    forward: dict[Term, float]
    backward: dict[Term, float]
    kernels: int = 0  # launched in the forward pass

    @functools.cached_property
    def forward_s(self) -> float:
        return sum(self.forward.values())

    @functools.cached_property
    def backward_s(self) -> float:
        return sum(self.backward.values())


class _Ledger:
    """Adds up the prices of operations by term, and by the modules that recompute can run again."""

    def __init__(self, context: LayerContext, operations: Iterable[Operation | Module]) -> None:
        self.context = context
        self.device = device_of(context)
        self.forward: dict[Term, float] = {}
        self.backward: dict[Term, float] = {}
        self.kernels = 0
        self.by_module: dict[str, dict[Term, float]] = {}  # forward seconds
        self._add(operations, ())

    def _add(self, operations: Iterable[Operation | Module], modules: tuple[str, ...]) -> None:
        for operation in operations:
            if isinstance(operation, Module):
                self._add(operation.operations, (*modules, operation.name))
                continue
            for term, forward, backward, kernels in operation.price(self.context, self.device):
                for name in modules:
                    seconds = self.by_module.setdefault(name, {})
                    seconds[term] = seconds.get(term, 0.0) + forward
                self.forward[term] = self.forward.get(term, 0.0) + forward
                self.backward[term] = self.backward.get(term, 0.0) + backward
                self.kernels += kernels

    @property
    def cost(self) -> Cost:
        return Cost(self.forward, self.backward, self.kernels)


def _norms_and_residuals(context: LayerContext, kind: LayerKind) -> Iterator[Operation | Module]:
    parts, h = kind.parts, context.model.hidden_size
    residual = context.element_bytes * (context.tokens / context.sequence_shards) * h
    for module, count in (
        flops.norms(context.model, kind, all_separate=context.calibration.separate_norms)._asdict().items()
    ):
        yield Module(module, (Stream(count * 2 * residual, count * 3 * residual, count),))
    dropout = 1 if context.drops else 0  # a mask is written and read
    yield Stream((parts * 3 + dropout) * residual, (parts * 2 + dropout) * residual, parts)


def _operations(context: LayerContext, kind: LayerKind) -> Iterator[Operation | Module]:
    """Everything that a layer of this kind does, in the order of its forward pass but for the norms."""
    m, blocks = context.model, int(kind.mixer is not Mixer.none)
    yield from _norms_and_residuals(context, kind)
    if kind.mixer is Mixer.attention:
        yield from attention(context, kind.full_keys)
    elif kind.mixer is Mixer.mamba:
        yield from mamba(context)
    if kind.feed_forward is FeedForward.experts:
        yield Module("moe", tuple(experts(context)))
        blocks += bool(m.moe_shared_expert_intermediate_size)
    elif kind.feed_forward is FeedForward.dense:
        yield Module("mlp", tuple(feed_forward(context, m.ffn_hidden_size / context.tp)))
        blocks += 1
    yield from tensor_parallel(context, blocks)


def _host_seconds(context: LayerContext, kind: LayerKind) -> float:
    """CPU time of a layer's pass without its launches: the Python that runs it, and the wait for token counts."""
    cal, outside = context.calibration, _outside_graphs(context, kind)
    waits = kind.feed_forward is FeedForward.experts and not context.pads_experts
    return 1e-6 * outside * (cal.layer_host_us * kind.parts / 2 + (cal.moe_host_us if waits else 0.0))


def _outside_graphs(context: LayerContext, kind: LayerKind) -> float:
    """The share of a layer that the CPU launches kernel by kernel, because no CUDA graph holds it."""
    if not context.cuda_graphs:
        return 1.0
    captured = context.cuda_graph_scope is not CudaGraphScope.attention
    return 0.0 if captured else 1.0 - int(kind.mixer is Mixer.attention) / kind.parts


@functools.lru_cache(maxsize=8192)
def _ledger(context: LayerContext, kind: LayerKind) -> _Ledger:
    """The prices of a layer's operations; ``context`` recomputes nothing, so that every recomputation shares them."""
    return _Ledger(context, _operations(context, kind))


@functools.lru_cache(maxsize=8192)
def layer_cost(context: LayerContext, kind: LayerKind) -> Cost:
    """One decoder layer of this kind on one rank."""
    ledger = _ledger(context.without_recompute, kind)
    forward, backward = dict(ledger.forward), dict(ledger.backward)
    for again in _recomputed(context, ledger):
        for term, seconds in again.items():
            backward[term] += seconds
    kernels, host_s = ledger.kernels, _host_seconds(context, kind)
    launched = kernels * _outside_graphs(context, kind)
    _wait_for_launches(context, forward, launched, host_s)
    _wait_for_launches(context, backward, 2 * launched, 2 * host_s)
    return Cost(forward, backward, kernels)


def _recomputed(context: LayerContext, ledger: _Ledger) -> list[dict[Term, float]]:
    """The seconds of what the backward pass runs a second time."""
    if context.recompute is Recompute.full:
        return [ledger.forward]
    if context.recompute is Recompute.none:
        return []
    names = set(context.recompute_modules)
    if "moe" in names:
        names -= _WITHIN_MOE
    return [ledger.by_module.get(name, {}) for name in sorted(names)]


def _wait_for_launches(context: LayerContext, times: dict[Term, float], kernels: float, host_s: float) -> None:
    """Add the time that the GPU waits in a pass for the CPU, which spends ``host_s`` in addition to its launches.

    The GPU finishes kernels faster than the CPU launches them, throughout a layer or in a part of it.
    """
    host, busy = kernels * context.calibration.launch_us * 1e-6 + host_s, sum(times.values())
    idle = (host**_LAUNCH_SHARPNESS + busy**_LAUNCH_SHARPNESS) ** (1 / _LAUNCH_SHARPNESS) - busy
    if idle > 0:
        times[Term.launch] = times.get(Term.launch, 0.0) + idle


@functools.lru_cache(maxsize=1024)
def embedding_cost(context: LayerContext) -> Cost:
    """The lookup of this rank's vocabulary rows, and the scatter to the sequence's shards."""
    hidden = _hidden_state(context)
    operations: list[Operation | Module] = [Stream(2 * hidden, 4 * hidden, 2)]
    if context.tp > 1:
        operations.append(Gathers(Term.tensor_parallel, Group(context.tp, 1), hidden, 1, 1))
    return _Ledger(context, operations).cost


@functools.lru_cache(maxsize=1024)
def loss_cost(context: LayerContext) -> Cost:
    """Final norm, logits (never quantized) and cross-entropy over this rank's vocabulary."""
    m, tp = context.model, context.tp
    operations: list[Operation | Module] = [Logits(context.tokens, context.vocabulary / tp, m.hidden_size)]
    if tp > 1:
        operations.append(Gathers(Term.tensor_parallel, Group(tp, 1), _hidden_state(context), 1, 2))
    return _Ledger(context, operations).cost


@functools.lru_cache(maxsize=1024)
def output_weight_gradient_s(context: LayerContext) -> float:
    """Seconds of the weight gradient of the output layer, which ``loss_cost`` counts in its backward pass."""
    vocabulary, dtype = context.vocabulary / context.tp, context.numerics.unquantized.gemm
    return device_of(context).gemm(vocabulary, context.model.hidden_size, context.tokens, dtype)


@functools.lru_cache(maxsize=1024)
def projection_cost(context: LayerContext) -> Cost:
    """The input of a multi-token prediction layer: the next token's embedding, two norms, the projection of both."""
    h, hidden = context.model.hidden_size, _hidden_state(context)
    lookup, norms_and_concatenation = (2 * hidden, 4 * hidden), (3 * 2 * hidden, 3 * 3 * hidden)
    operations: list[Operation | Module] = [
        Stream(lookup[0] + norms_and_concatenation[0], lookup[1] + norms_and_concatenation[1], 5),
        Linear(h / context.tp, 2 * h, context.tokens),
    ]
    if context.tp > 1:
        operations.append(Gathers(Term.tensor_parallel, Group(context.tp, 1), hidden, 2, 2))
    return _Ledger(context, operations).cost


def _hidden_state(context: LayerContext) -> float:
    """Bytes of the hidden state of all tokens of a micro-batch on one context rank."""
    return context.element_bytes * context.tokens * context.model.hidden_size


@dataclass(frozen=True)
class ModelCosts:
    """The price of everything that stands on a pipeline's stages."""

    layers: dict[PlacedLayer, Cost]
    embedding: Cost
    loss: Cost
    prediction: tuple[Cost, ...]  # of one multi-token prediction layer: the layer, and its input


def model_costs(work: Workload) -> ModelCosts:
    """Price every kind of layer of a model, and its two ends."""
    context, bare, model = work.context, work.context.without_recompute, work.context.model
    present = {layer for layers in set(work.layers) for layer, _ in layers}
    layers = {layer: layer_cost(context.unquantized if layer.unquantized else context, layer.kind) for layer in present}
    prediction: tuple[Cost, ...] = ()
    if model.mtp_num_layers:
        prediction = (layer_cost(context, model.mtp_kind), projection_cost(bare))
    return ModelCosts(layers, embedding_cost(bare), loss_cost(bare), prediction)
