"""Seconds of each pipeline stage's chunks over one micro-batch, and what they are spent on."""

from __future__ import annotations

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
    costs = model_costs(work)
    out = [Stage([0.0] * lay.vpp, [0.0] * lay.vpp) for _ in range(lay.pp)]
    for index, (chunk, layers) in enumerate(zip(work.chunks, work.layers, strict=True)):
        priced = [(costs.layers[layer], count) for layer, count in layers]
        if chunk.embeds:
            priced.append((costs.embedding, 1))
        if chunk.loses:
            priced.append((costs.loss, 1 + model.mtp_num_layers))
            priced += [(cost, model.mtp_num_layers) for cost in costs.prediction]
        for cost, count in priced:
            out[chunk.stage].add(index // lay.pp, cost, count, account=account)
    if lay.cpu_offload_layers:
        out[0].add(0, _offload(work, out[0]), 1, account=account)
    return out


def _offload(work: Workload, stage: Stage) -> Cost:
    """Exposed seconds of the copies to host memory and back: each layer's copies hide under the next layer."""
    spec = work.spec
    copies = offloaded_bytes(work) / (spec.gpu.host_link_gb_per_s * 1e9 * _HOST_LINK_EFFICIENCY)
    share = spec.layout.cpu_offload_layers / spec.model.num_layers
    out, back = (max(copies - share * passes[0], 0.0) for passes in (stage.forward, stage.backward))
    return Cost({Term.offload: out}, {Term.offload: back})
