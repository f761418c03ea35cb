"""Seconds of each pipeline stage's chunks over one micro-batch, and what they are spent on."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field, replace

from slipway.configs.schema import LayerKind, LayerShape, layer_kinds
from slipway.planner.memory.activations import offloaded_bytes
from slipway.planner.stages import Chunk
from slipway.planner.time.kernels import Device
from slipway.planner.time.layer import Cost, embedding_cost, layer_cost, loss_cost, projection_cost
from slipway.planner.time.links import link
from slipway.planner.time.operations import Term
from slipway.planner.workload import Workload

_HOST_LINK_EFFICIENCY = 0.85  # copies from and to pinned memory: 55 of PCIe 5.0's 64 GB/s by NVIDIA's bandwidthTest
_INTERLEAVED_SEND = 0.5  # share of a send that stays exposed with interleaving: the next chunk hides the rest (assumed)


@dataclass
class Stage:
    """Seconds of one stage's chunks for one micro-batch, and what they are spent on."""

    forward: list[float]
    backward: list[float]
    spent: dict[Term, float] = field(default_factory=dict)

    @property
    def work(self) -> float:
        """Seconds of one micro-batch's forward and backward pass."""
        return sum(self.forward) + sum(self.backward)

    def add(self, virtual: int, cost: Cost, count: int, *, account: bool) -> None:
        """``count`` times ``cost`` in the stage's chunk ``virtual``."""
        self.forward[virtual] += count * cost.forward_s
        self.backward[virtual] += count * cost.backward_s
        if account:
            for times in (cost.forward, cost.backward):
                for term, seconds in times.items():
                    self.spent[term] = self.spent.get(term, 0.0) + count * seconds


def stages(work: Workload, *, account: bool) -> list[Stage]:
    """Every stage's seconds; with ``account`` also what they are spent on."""
    lay, model = work.spec.layout, work.context.model
    out = [Stage([0.0] * lay.vpp, [0.0] * lay.vpp) for _ in range(lay.pp)]
    layers = _LayerCosts(work)
    for index, chunk in enumerate(work.chunks):
        stage, virtual = out[chunk.stage], index // lay.pp
        for cost, count in layers.of(chunk):
            stage.add(virtual, cost, count, account=account)
        if chunk.embeds:
            stage.add(virtual, embedding_cost(work.context), 1, account=account)
        if chunk.loses:
            stage.add(virtual, loss_cost(work.context), 1 + model.mtp_num_layers, account=account)
            if model.mtp_num_layers:
                for cost in (layer_cost(work.context, model.mtp_kind), projection_cost(work.context)):
                    stage.add(virtual, cost, model.mtp_num_layers, account=account)
    if lay.cpu_offload_layers:
        out[0].add(0, _offload(work, out[0]), 1, account=account)
    return out


class _LayerCosts:
    """The price of each kind of decoder layer, where a quantized run can keep the first and last ones in bf16."""

    def __init__(self, work: Workload) -> None:
        precision = work.spec.precision
        self.context = self.edge = work.context
        self.shape = work.context.model.shape
        self.first, self.last = 0, work.context.model.num_layers
        if precision.first_last_layers_bf16:
            self.edge = replace(work.context, numerics=work.context.numerics.unquantized)
            self.first = precision.num_layers_at_start_in_bf16
            self.last -= precision.num_layers_at_end_in_bf16
        self.costs: dict[tuple[LayerKind, bool], Cost] = {}

    def of(self, chunk: Chunk) -> list[tuple[Cost, int]]:
        """The layers of a chunk: a price and how many layers have it."""
        out = []
        for key, count in _kinds(self.shape, chunk.start, chunk.stop, self.first, self.last):
            if key not in self.costs:
                self.costs[key] = layer_cost(self.edge if key[1] else self.context, key[0])
            out.append((self.costs[key], count))
        return out


@functools.lru_cache(maxsize=65536)
def _kinds(
    shape: LayerShape, start: int, stop: int, first: int, last: int
) -> tuple[tuple[tuple[LayerKind, bool], int], ...]:
    """How many layers of [start, stop) are of each kind, and whether they lie outside [first, last)."""
    kinds = layer_kinds(shape)
    return tuple(Counter((kinds[i], i < first or i >= last) for i in range(start, stop)).items())


def _offload(work: Workload, stage: Stage) -> Cost:
    """Exposed seconds of the copies to host memory and back: each layer's copies hide under the next layer."""
    spec = work.spec
    copies = offloaded_bytes(work) / (spec.gpu.host_link_gb_per_s * 1e9 * _HOST_LINK_EFFICIENCY)
    share = spec.layout.cpu_offload_layers / spec.model.num_layers
    out, back = (max(copies - share * passes[0], 0.0) for passes in (stage.forward, stage.backward))
    return Cost({Term.offload: out}, {Term.offload: back})


def send_seconds(work: Workload, device: Device) -> float:
    """Seconds from a stage's end of a pass to its neighbour's start."""
    spec, lay, context = work.spec, work.spec.layout, work.context
    if lay.pp == 1:
        return 0.0
    boundary = link(device, lay.pp, max(1, spec.gpus // lay.pp))
    moved = context.element_bytes * context.tokens * context.model.hidden_size / context.sequence_shards
    return boundary.send(moved) * (_INTERLEAVED_SEND if lay.vpp > 1 else 1.0)
