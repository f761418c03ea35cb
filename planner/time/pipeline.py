"""Seconds of each pipeline stage's chunks over one micro-batch, and what they are spent on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from slipway.planner.memory.activations import offloaded_bytes
from slipway.planner.time.layer import Cost, model_costs
from slipway.planner.time.operations import Term
from slipway.planner.workload import Workload

_HOST_LINK_EFFICIENCY = 0.85  # copies from and to pinned memory: 55 of PCIe 5.0's 64 GB/s by NVIDIA's bandwidthTest


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

    def add(self, virtual: int, chunk: _ChunkCost) -> None:
        """Put a chunk's cost into the stage's chunk ``virtual``."""
        self.forward[virtual] += chunk.forward
        self.backward[virtual] += chunk.backward
        for term, seconds in chunk.spent.items():
            self.spent[term] = self.spent.get(term, 0.0) + seconds


@dataclass
class _ChunkCost:
    """Seconds of what stands in one chunk; ``spent`` stays empty where nobody asks for it."""

    forward: float = 0.0
    backward: float = 0.0
    spent: dict[Term, float] = field(default_factory=dict)


def _chunk_cost(priced: Iterable[tuple[Cost, int]], *, account: bool) -> _ChunkCost:
    chunk = _ChunkCost()
    for cost, count in priced:
        chunk.forward += count * cost.forward_s
        chunk.backward += count * cost.backward_s
        if account:
            for times in (cost.forward, cost.backward):
                for term, seconds in times.items():
                    chunk.spent[term] = chunk.spent.get(term, 0.0) + count * seconds
    return chunk


def stages(work: Workload, *, account: bool) -> list[Stage]:
    """Every stage's seconds; with ``account`` also what they are spent on."""
    lay, model = work.spec.layout, work.context.model
    costs = model_costs(work)
    out = [Stage([0.0] * lay.vpp, [0.0] * lay.vpp) for _ in range(lay.pp)]
    alike: dict[tuple[object, ...], _ChunkCost] = {}  # most chunks hold the same layers
    for index, (chunk, layers) in enumerate(zip(work.chunks, work.layers, strict=True)):
        content = (layers, chunk.embeds, chunk.loses)
        if content not in alike:
            priced = [(costs.layers[layer], count) for layer, count in layers]
            if chunk.embeds:
                priced.append((costs.embedding, 1))
            if chunk.loses:
                priced.append((costs.loss, 1 + model.mtp_num_layers))
                priced += [(cost, model.mtp_num_layers) for cost in costs.prediction]
            alike[content] = _chunk_cost(priced, account=account)
        out[chunk.stage].add(index // lay.pp, alike[content])
    if lay.cpu_offload_layers:
        out[0].add(0, _chunk_cost([(_offload(work, out[0]), 1)], account=account))
    return out


def _offload(work: Workload, stage: Stage) -> Cost:
    """Exposed seconds of the copies to host memory and back: each layer's copies hide under the next layer."""
    spec = work.spec
    copies = offloaded_bytes(work) / (spec.gpu.host_link_gb_per_s * 1e9 * _HOST_LINK_EFFICIENCY)
    share = spec.layout.cpu_offload_layers / spec.model.num_layers
    out, back = (max(copies - share * passes[0], 0.0) for passes in (stage.forward, stage.backward))
    return Cost({Term.offload: out}, {Term.offload: back})
