"""Search every legal layout of a run and rank those that fit, by branch and bound: what is left out is proven slower.

A group holds the layouts that split a layer alike (TP, CP, EP, ETP, micro-batch, recompute, FSDP). Its bound: the
busiest stage does at least its share of the model's work, whatever PP and VPP are, and no other term is negative.
Groups that differ only in recompute and FSDP are a family, whose bound is the one without recompute.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from slipway.configs import Calibration, Fsdp, Layout, Model, Precision, Recompute, Refusal, Spec
from slipway.configs.schema import RecomputeMethod, layer_kinds
from slipway.planner.calibration import calibration_for
from slipway.planner.flops import recomputes_norms
from slipway.planner.layout import PARALLEL, even_pipeline, key
from slipway.planner.memory import (
    REAL_EXPERT_LOAD,
    Memory,
    first_stage_fits,
    has_room,
    least_needed_gib,
    workload_memory,
)
from slipway.planner.rules import divisors, is_legal
from slipway.planner.time.step import (
    StepTime,
    embedding_cost,
    layer_cost,
    loss_cost,
    step_time_bound,
    workload_step_time,
)
from slipway.planner.workload import Workload, layer_context, workload_of

T = TypeVar("T")

_RECOMPUTE: tuple[tuple[Recompute, tuple[str, ...]], ...] = (
    (Recompute.none, ()),
    (Recompute.selective, ("layernorm",)),
    (Recompute.selective, ("mlp",)),
    (Recompute.selective, ("moe_act",)),
    (Recompute.selective, ("mla_up_proj", "moe_act")),
    (Recompute.full, ()),
)


@dataclass(frozen=True)
class Candidate:
    """One layout that is legal and fits, with what it costs."""

    spec: Spec
    time: StepTime
    memory: Memory

    @property
    def layout(self) -> Layout:
        return self.spec.layout


@dataclass(frozen=True)
class Plan:
    """The ranked candidates, and how the space was covered."""

    candidates: list[Candidate]
    considered: int  # layouts whose cost was computed
    pruned: int  # layouts proven slower than the last candidate kept
    did_not_fit: int  # layouts that are too large


def _powers(limit: int) -> list[int]:
    return [1 << i for i in range(limit.bit_length()) if 1 << i <= limit]


def _tensor_sizes(spec: Spec) -> list[int]:
    m = spec.model
    sizes = [m.num_attention_heads, m.num_query_groups]
    if m.has_dense_layers:
        sizes.append(m.ffn_hidden_size)
    domain = min(spec.gpu.nvlink_domain, 16, spec.gpus)
    return [t for t in divisors(m.num_attention_heads, domain) if all(s % t == 0 for s in sizes) and spec.gpus % t == 0]


def _families(spec: Spec) -> Iterator[Layout]:
    """Every way of splitting a layer, without recompute and FSDP: the layout with PP and VPP left at 1."""
    m, base = spec.model, even_pipeline(spec.layout)
    context = [c for c in _powers(16) if spec.seq_length % (2 * c) == 0 or c == 1]
    micro = [b for b in _powers(16) if base.gbs % b == 0]
    experts = divisors(m.num_moe_experts, spec.gpus) if m.is_moe else [1]
    for tp, cp, ep, mbs in itertools.product(_tensor_sizes(spec), context, experts, micro):
        for etp in (0,) if not m.is_moe else (1,) if tp == 1 else (1, tp):
            yield replace(
                base,
                tp=tp,
                pp=1,
                vpp=1,
                cp=cp,
                ep=ep,
                etp=etp,
                mbs=mbs,
                recompute=Recompute.none,
                recompute_modules=[],
                recompute_method=RecomputeMethod.default,
                recompute_num_layers=0,
                fsdp=Fsdp.none,
            )


def _recomputations(model: Model) -> list[tuple[Recompute, tuple[str, ...]]]:
    """What the search may recompute of a model, nothing first."""
    there = {
        "layernorm": recomputes_norms(model),
        "mlp": model.has_dense_layers,
        "moe_act": model.is_moe,
        "mla_up_proj": model.is_mla,
    }
    return [(mode, modules) for mode, modules in _RECOMPUTE if all(there[module] for module in modules)]


def _changed(value: T, **changes: Any) -> T:
    """As :func:`dataclasses.replace`, in a tenth of its time: the search makes tens of thousands of layouts."""
    made: T = object.__new__(type(value))
    made.__dict__.update(value.__dict__, **changes)
    return made


def _pipelines(spec: Spec, group: Layout) -> Iterator[Layout]:
    """The pipelines that ``group`` may have: legal as far as layers, GPUs and the batch go."""
    if spec.gpus % (group.tp * group.cp):
        return
    ranks = spec.gpus // (group.tp * group.cp)  # for pipeline stages and data parallelism
    if group.fsdp is Fsdp.megatron:
        if _micro_batches(spec, group, ranks, 1):
            yield group
        return
    layers = spec.model.num_layers
    for embedding, loss in ((False, False), (True, True)):
        slots = layers + embedding + loss
        for pp in divisors(slots, ranks):
            if pp == 1 and embedding:
                continue
            micro_batches = _micro_batches(spec, group, ranks, pp)
            for vpp in _interleavings(slots // pp, pp, micro_batches):
                yield _changed(group, pp=pp, vpp=vpp, account_for_embedding=embedding, account_for_loss=loss)
    for pp in divisors(ranks, layers):  # where neither divides, the last stage is shorter
        each = -(-layers // pp)
        last = layers - each * (pp - 1)
        if layers % pp and (layers + 2) % pp and last > 0:
            micro_batches = _micro_batches(spec, group, ranks, pp)
            for vpp in _interleavings(math.gcd(each, last), pp, micro_batches):
                yield _changed(group, pp=pp, vpp=vpp, num_layers_in_last_pipeline_stage=last)


def _micro_batches(spec: Spec, group: Layout, ranks: int, pp: int) -> int:
    """Micro-batches of each of the ``ranks // pp`` data-parallel ranks; 0 if ranks, experts or batch do not divide."""
    if ranks % pp or spec.gpus % (group.expert_tp * group.ep * pp):
        return 0
    sequences = group.mbs * (ranks // pp)
    return 0 if group.gbs % sequences else group.gbs // sequences


def _interleavings(layers: int, pp: int, micro_batches: int) -> list[int]:
    """The VPP sizes of a stage of ``layers`` layers; any above 1 needs a multiple of PP micro-batches."""
    if not micro_batches:
        return []
    return [1] if pp == 1 or micro_batches % pp else divisors(layers)


def _bound(spec: Spec, group: Layout, calibration: Calibration) -> float:
    """Seconds that no pipeline of this group can beat."""
    trial = replace(spec, layout=group)
    context = layer_context(trial, calibration)
    model = spec.model
    work = 0.0
    for kind, count in Counter(layer_kinds(model.shape)).items():
        cost = layer_cost(context, kind)
        work += count * (cost.forward_s + cost.backward_s)
    if spec.precision.first_last_layers_bf16:
        work *= 0.5  # layers kept in bf16 cost more or less than the others: stay safely below
    for cost in (embedding_cost(context), loss_cost(context)):
        work += cost.forward_s + cost.backward_s
    return spec.layout.gbs * group.tp * group.cp / (group.mbs * spec.gpus) * work


# What weights, gradients and optimizer states depend on.
_STATES = (*PARALLEL, "fsdp", "account_for_loss", "num_layers_in_last_pipeline_stage")


class _Family(NamedTuple):
    """The groups that split a layer alike and differ in recompute and FSDP, by the one that has neither."""

    plain: Layout


class _Search:
    """The queue of one search: families, groups and layouts by their bounds, costed candidates by their time."""

    def __init__(self, spec: Spec, expert_load: float) -> None:
        self.spec = spec
        self.calibration = calibration_for(spec)
        self.expert_load = expert_load
        self.considered = self.did_not_fit = self.queued = 0
        self.fits_evenly = False  # some layout that has no room for ``expert_load`` fits with an even load
        self._states_fit: dict[tuple[object, ...], bool] = {}
        self._modes = _recomputations(spec.model)
        self._order = itertools.count()
        self._queue: list[tuple[float, int, _Family | Layout | Workload | Candidate]] = []
        for plain in _families(spec):
            self._push(_bound(spec, plain, self.calibration), _Family(plain))

    def candidates(self) -> Iterator[Candidate]:
        """The candidates, fastest first: what is popped first cannot be beaten by anything still in the queue."""
        while self._queue:
            bound, _, item = heapq.heappop(self._queue)
            match item:
                case Candidate():
                    yield item
                case _Family():
                    self._divide(item.plain, bound)
                case Layout():
                    self._expand(item)
                case Workload():
                    self._judge(item)

    def _push(self, seconds: float, item: _Family | Layout | Workload | Candidate) -> None:
        heapq.heappush(self._queue, (seconds, next(self._order), item))

    def _divide(self, plain: Layout, bound: float) -> None:
        """Queue the groups of a family by their bounds."""
        for mode, modules in self._modes:
            group = plain
            if mode is not Recompute.none:
                group = replace(plain, recompute=mode, recompute_modules=list(modules))
                bound = _bound(self.spec, group, self.calibration)
            self._push(bound, group)
            self._push(bound, replace(group, fsdp=Fsdp.megatron))

    def _expand(self, group: Layout) -> None:
        """Queue every legal pipeline of a group by its bound, unless it is certainly too large."""
        context = layer_context(replace(self.spec, layout=group), self.calibration)
        for layout in _pipelines(self.spec, group):
            trial = _changed(self.spec, layout=layout)
            work = None
            sizes = key(layout, _STATES)
            if sizes not in self._states_fit:
                work = workload_of(trial, self.calibration, context)
                self._states_fit[sizes] = least_needed_gib(work) <= trial.gpu.usable_memory_gib
            if not self._states_fit[sizes]:
                self.did_not_fit += 1
                continue
            work = work or workload_of(trial, self.calibration, context)
            if not first_stage_fits(work, self.expert_load):
                # More than is true, perhaps: the other stages may not fit. The search for an even load then finds out.
                self.fits_evenly = self.fits_evenly or first_stage_fits(work)
                self.did_not_fit += 1
            elif is_legal(trial):
                self.queued += 1
                self._push(step_time_bound(work), work)

    def _judge(self, work: Workload) -> None:
        """Queue a layout as a candidate by its time, if it fits."""
        self.considered += 1
        needed = workload_memory(work)
        if has_room(work, needed, self.expert_load):
            time = workload_step_time(work)
            self._push(time.step_time_s, Candidate(work.spec, time, needed))
            return
        self.fits_evenly |= needed.fits
        self.did_not_fit += 1


def plan(spec: Spec, top: int = 10, *, exhaustive: bool = False, expert_load: float = REAL_EXPERT_LOAD) -> Plan:
    """The ``top`` fastest legal layouts of ``spec`` that fit its GPUs: a best-first search.

    Args:
        exhaustive: cost every legal layout; the answer is the same, as a test shows.
        expert_load: the load, in times an even load, that a rank's experts must have room for. Where no layout has that
            room, the layouts that have room for an even load are ranked.

    Raises:
        Refusal: no legal layout fits.
    """
    search = _Search(spec, expert_load)
    best = list(itertools.islice(search.candidates(), None if exhaustive else top))
    if not best and search.fits_evenly:
        return plan(spec, top, exhaustive=exhaustive, expert_load=0.0)
    if not best:
        raise Refusal(
            f"no legal layout of {spec.model.name} on {spec.gpus} {spec.gpu.name} with layout.gbs={spec.layout.gbs} "
            f"fits {spec.gpu.usable_memory_gib:.0f} GiB",
            "Use more GPUs, another GPU, or a batch that more ranks can share.",
        )
    return Plan(best[:top], search.considered, search.queued - search.considered, search.did_not_fit)


def plan_precisions(spec: Spec, precisions: list[Precision], top: int = 10) -> Plan:
    """As :func:`plan`, over several precisions: the fastest of all of them.

    Raises:
        Refusal: nothing fits in any of them.
    """
    plans = []
    for precision in precisions:
        try:
            plans.append(plan(replace(spec, precision=precision), top))
        except Refusal as refusal:
            last = refusal
    if not plans:
        raise last
    ranked = sorted((c for p in plans for c in p.candidates), key=lambda c: c.time.step_time_s)
    return Plan(
        ranked[:top], sum(p.considered for p in plans), sum(p.pruned for p in plans), sum(p.did_not_fit for p in plans)
    )


_TERMS = {
    "gemm": "matrix products",
    "attention": "attention",
    "elementwise": "memory-bound kernels",
    "tp": "tensor-parallel communication",
    "cp": "context-parallel exchange",
    "ep": "expert all-to-all",
    "bubble": "pipeline bubble",
    "dp": "exposed data-parallel communication",
    "optimizer": "optimizer step",
    "loss": "logits and loss",
    "launch": "kernel launches",
    "offload": "activations to host memory and back",
    "other": "stragglers and step overhead",
}


def why_slower(candidate: Candidate, best: Candidate) -> str:
    """The terms on which ``candidate`` loses to ``best``, largest first, in words and seconds."""
    if candidate is best:
        first = sorted(best.time.breakdown.items(), key=lambda x: -x[1])[:3]
        return "spends " + ", ".join(f"{seconds:.2f} s on {_TERMS.get(k, k)}" for k, seconds in first)
    keys = set(candidate.time.breakdown) | set(best.time.breakdown)
    lost = {k: candidate.time.breakdown.get(k, 0.0) - best.time.breakdown.get(k, 0.0) for k in keys}
    worst = [(k, s) for k, s in sorted(lost.items(), key=lambda x: -x[1]) if s > 0.002 * best.time.step_time_s][:2]
    if not worst:
        return "as fast as the best within 0.2 %"
    return "loses " + " and ".join(f"{s:.2f} s on {_TERMS.get(k, k)}" for k, s in worst)
