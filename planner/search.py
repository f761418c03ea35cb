"""Search every legal layout of a run and rank those that fit, by branch and bound: what is left out is proven slower.

A split holds the layouts that split a layer alike (TP, CP, EP, ETP, micro-batch), a group those of a split that
recompute alike. Their bound: the busiest stage does at least its share of the model's work, whatever PP and VPP are,
and no other term is negative. What does not fit is rejected by the cheapest test that can: by weights and states, then
by the first stage, then by every stage.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from slipway.configs import Calibration, Fsdp, Layout, Model, Recompute, Refusal, Spec
from slipway.configs.schema import RecomputeMethod
from slipway.configs.schema.pipeline_layout import chunks_of_text, predicts_after_layers
from slipway.planner.calibration import calibration_for
from slipway.planner.flops import recomputes_norms
from slipway.planner.layout import PLACEMENT, even_pipeline
from slipway.planner.memory.estimate import (
    FRAGMENTATION,
    GIB,
    REAL_EXPERT_LOAD,
    Memory,
    Pipeline,
    StageEstimate,
    has_room,
    outside_gib,
    routes_unevenly,
    workload_memory,
)
from slipway.planner.memory.probability import probability_of_fit
from slipway.planner.memory.states import stage_states
from slipway.planner.numerics import numerics_of
from slipway.planner.parameters import stage_shards
from slipway.planner.rules import Violation, divisors, first_violation
from slipway.planner.rules.precision import precision_gpu
from slipway.planner.stages import StageLayers, balanced, layers_of_stages
from slipway.planner.time.operations import TERM_WORDS, Term
from slipway.planner.time.step import (
    StepTime,
    embedding_cost,
    layer_cost,
    loss_cost,
    step_time_bound,
    workload_step_time,
)
from slipway.planner.workload import LayerContext, Workload, layer_context, model_layers, workload_of

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

    @functools.cached_property
    def p_fits(self) -> float:
        """The probability that it fits; see memory.probability."""
        return probability_of_fit(workload_of(self.spec), self.memory)

    @property
    def layout(self) -> Layout:
        return self.spec.layout


@dataclass(frozen=True)
class Plan:
    """The ranked candidates, and how the space was covered."""

    candidates: list[Candidate]
    considered: int  # layouts whose cost was computed
    pruned: int  # layouts proven slower than the last candidate kept, or too large whatever else is chosen
    did_not_fit: int


SEARCHED = (
    *("tp", "pp", "vpp", "cp", "ep", "etp", "mbs", "fsdp"),
    *("recompute", "recompute_modules", "recompute_method", "recompute_num_layers"),
    *PLACEMENT,
)
"""The fields of a layout that the search chooses, unless they are pinned; it leaves all others as they are."""

_NOTHING: frozenset[str] = frozenset()


def _powers(limit: int) -> list[int]:
    return [1 << i for i in range(limit.bit_length()) if 1 << i <= limit]


def _tensor_sizes(spec: Spec, pinned: frozenset[str] = _NOTHING) -> list[int]:
    m = spec.model
    if "tp" in pinned:
        tp = spec.layout.tp
        return [tp] if m.num_attention_heads % tp == 0 and spec.gpus % tp == 0 else []
    sizes = [m.num_attention_heads, m.num_query_groups]
    if m.has_dense_layers:
        sizes.append(m.ffn_hidden_size)
    domain = min(spec.gpu.nvlink_domain, 16, spec.gpus)
    return [t for t in divisors(m.num_attention_heads, domain) if all(s % t == 0 for s in sizes) and spec.gpus % t == 0]


_Frozen = TypeVar("_Frozen", Spec, Layout)


def _changed(original: _Frozen, **changes: Any) -> _Frozen:
    """As :func:`dataclasses.replace`, four times as fast: the search makes tens of thousands of layouts."""
    copy = object.__new__(type(original))
    copy.__dict__.update(original.__dict__)
    copy.__dict__.update(changes)
    return copy


def _splits(spec: Spec, pinned: frozenset[str] = _NOTHING) -> Iterator[Layout]:
    """Every way of splitting a layer, with PP and VPP switched off and nothing recomputed, without FSDP.

    The fields ``pinned`` have the values that they have in ``spec``.
    """
    m, given = spec.model, spec.layout
    base = given if pinned & set(PLACEMENT) else even_pipeline(given)
    context = [c for c in _powers(16) if spec.seq_length % (2 * c) == 0 or c == 1]
    micro = [b for b in _powers(16) if base.gbs % b == 0]
    experts = divisors(m.num_moe_experts, spec.gpus) if m.is_moe else [1]
    context = [given.cp] if "cp" in pinned else context
    micro = [given.mbs] if "mbs" in pinned else micro
    if "ep" in pinned:
        experts = [given.ep] if given.ep in experts else []
    off: dict[str, Any] = {
        "pp": 1,
        "vpp": 1,
        "recompute": Recompute.none,
        "recompute_modules": [],
        "recompute_method": RecomputeMethod.default,
        "recompute_num_layers": 0,
        "fsdp": Fsdp.none,
    }
    off = {name: value for name, value in off.items() if name not in pinned - set(_VARIED)}
    for tp, cp, ep, mbs in itertools.product(_tensor_sizes(spec, pinned), context, experts, micro):
        split_experts = (0,) if not m.is_moe else (1,) if tp == 1 else (1, tp)
        for etp in (given.etp,) if "etp" in pinned else split_experts:
            yield _changed(base, tp=tp, cp=cp, ep=ep, etp=etp, mbs=mbs, **off)


_VARIED = ("pp", "vpp", "recompute", "recompute_modules")
"""Fields that are off in a split whether they are pinned or not: its groups and shapes set them."""


def _recomputes_of(spec: Spec, pinned: frozenset[str]) -> list[tuple[Recompute, tuple[str, ...]]]:
    """The kinds of recompute that a search may choose."""
    found = _recomputes(spec.model)
    given, modules = spec.layout, tuple(spec.layout.recompute_modules)
    if "recompute_modules" in pinned and modules:
        found = [(Recompute.selective, modules)]
    elif "recompute_modules" in pinned:
        found = [(mode, names) for mode, names in found if not names]
    if pinned & {"recompute_method", "recompute_num_layers"}:
        found = [(mode, names) for mode, names in found if mode is Recompute.full]
    if "recompute" in pinned:
        found = [(mode, names) for mode, names in found if mode is given.recompute]
    return found


def _recomputes(model: Model) -> list[tuple[Recompute, tuple[str, ...]]]:
    """The kinds of recompute that a model has modules for; the first recomputes nothing."""
    there = {
        "layernorm": recomputes_norms(model),
        "mlp": model.has_dense_layers,
        "moe_act": model.is_moe,
        "mla_up_proj": model.is_mla,
    }
    return [(mode, modules) for mode, modules in _RECOMPUTE if all(there[module] for module in modules)]


class _Shape(NamedTuple):
    """What pipelines leave to choose once a layer is split."""

    pp: int = 1
    vpp: int = 1
    ends: bool = False  # the embedding and the loss count as layers
    last: int = 0  # layers of the last stage, where it is shorter
    keeps_placement: bool = False  # the layers are placed as the layout already says
    written: str = ""  # a pipeline layout

    def of(self, layout: Layout) -> Layout:
        """``layout`` with this shape."""
        if self.keeps_placement:
            return _changed(layout, pp=self.pp, vpp=self.vpp)
        return _changed(
            layout,
            pp=self.pp,
            vpp=self.vpp,
            account_for_embedding=self.ends,
            account_for_loss=self.ends,
            num_layers_in_last_pipeline_stage=self.last,
            pipeline_layout=self.written,
        )


def _shapes(spec: Spec, split: Layout, pinned: frozenset[str] = _NOTHING) -> Iterator[tuple[_Shape, int]]:
    """The shapes that ``split`` may have, as far as layers, GPUs and the batch go, and their micro-batches."""
    shapes = _shapes_as_placed(spec, split) if pinned & set(PLACEMENT) else _every_shape(spec, split)
    pipelines = spec.layout
    for shape, micro_batches in shapes:
        if ("pp" not in pinned or shape.pp == pipelines.pp) and ("vpp" not in pinned or shape.vpp == pipelines.vpp):
            yield shape, micro_batches


def _shapes_as_placed(spec: Spec, split: Layout) -> Iterator[tuple[_Shape, int]]:
    """The pipelines of ``split``, whose layers are placed as it says; the rules decide which are legal."""
    if spec.gpus % (split.tp * split.cp):
        return
    ranks = spec.gpus // (split.tp * split.cp)
    if split.pipeline_layout:
        chunks = len(chunks_of_text(split.pipeline_layout))
        for pp in divisors(math.gcd(ranks, chunks)):
            if micro_batches := _micro_batches(spec, split, ranks, pp):
                yield _Shape(pp=pp, vpp=chunks // pp, keeps_placement=True), micro_batches
        return
    for pp in divisors(ranks, spec.model.num_layers):
        if micro_batches := _micro_batches(spec, split, ranks, pp):
            chunks = spec.model.num_layers // pp + 1 if pp > 1 and micro_batches % pp == 0 else 1
            for vpp in range(1, chunks + 1):
                yield _Shape(pp=pp, vpp=vpp, keeps_placement=True), micro_batches


def _every_shape(spec: Spec, split: Layout) -> Iterator[tuple[_Shape, int]]:
    """The pipelines of ``split`` with the layers spread evenly, or with a last stage that is shorter."""
    if spec.gpus % (split.tp * split.cp):
        return
    ranks = spec.gpus // (split.tp * split.cp)  # for pipeline stages and data parallelism
    layers = spec.model.num_layers
    for ends in (False, True):
        slots = layers + 2 * ends
        for pp in divisors(slots, ranks):
            if pp == 1 and ends:
                continue
            micro_batches = _micro_batches(spec, split, ranks, pp)
            for vpp in _interleavings(slots // pp, pp, micro_batches):
                yield _Shape(pp=pp, vpp=vpp, ends=ends), micro_batches
    for pp in divisors(ranks, layers):  # where neither divides, the last stage is shorter
        each = -(-layers // pp)
        last = layers - each * (pp - 1)
        if layers % pp and (layers + 2) % pp and last > 0:
            micro_batches = _micro_batches(spec, split, ranks, pp)
            for vpp in _interleavings(math.gcd(each, last), pp, micro_batches):
                yield _Shape(pp=pp, vpp=vpp, last=last), micro_batches
    yield from _written_shapes(spec, split, ranks)


def _written_shapes(spec: Spec, split: Layout, ranks: int) -> Iterator[tuple[_Shape, int]]:
    """The pipelines whose layers a pipeline layout places, for models that no equal stages suit.

    Those are models whose layers do not divide, or whose last stage has multi-token prediction beside the loss. The
    embedding costs little: it counts as a layer or as nothing.
    """
    layers, predictions = spec.model.num_layers, spec.model.mtp_num_layers
    if spec.model.hybrid_override_pattern:
        return
    for pp in divisors(ranks, layers):
        divides = not layers % pp or not (layers + 2) % pp
        if pp == 1 or (divides and not predictions):
            continue
        micro_batches = _micro_batches(spec, split, ranks, pp)
        slots = layers + predictions + 2
        for vpp in _interleavings(-(-slots // pp), pp, micro_batches):
            if pp * vpp > layers or (vpp == 1 and not predictions):  # a shorter last stage is about as good
                continue
            for at_start in (0, 1) if predictions else (1,):
                text = balanced(layers, predictions, pp * vpp, at_end=1 + predictions, at_start=at_start)
                if not predictions or predicts_after_layers(text):  # else no recipe trains it
                    yield _Shape(pp=pp, vpp=vpp, written=text), micro_batches


def _micro_batches(spec: Spec, split: Layout, ranks: int, pp: int) -> int:
    """Micro-batches of each of the ``ranks // pp`` data-parallel ranks; 0 if ranks, experts or batch do not divide."""
    if ranks % pp or spec.gpus % (split.expert_tp * split.ep * pp):
        return 0
    sequences = split.mbs * (ranks // pp)
    return 0 if split.gbs % sequences else split.gbs // sequences


def _interleavings(layers: int, pp: int, micro_batches: int) -> list[int]:
    """The VPP sizes of a stage of ``layers`` layers; any above 1 needs a multiple of PP micro-batches."""
    if not micro_batches:
        return []
    return [1] if pp == 1 or micro_batches % pp else divisors(layers)


def _bound(spec: Spec, layout: Layout, context: LayerContext) -> float:
    """Seconds that no shape of ``layout``, whose layers have this context, can beat."""
    work = 0.0
    for placed, count in model_layers(spec):
        cost = layer_cost(context.unquantized if placed.unquantized else context, placed.kind)
        work += count * (cost.forward_s + cost.backward_s)
    for cost in (embedding_cost(context.without_recompute), loss_cost(context.without_recompute)):
        work += cost.forward_s + cost.backward_s
    return layout.gbs * layout.tp * layout.cp / (layout.mbs * spec.gpus) * work


@dataclass
class _Split:
    """A way of splitting a layer, and what its layouts share."""

    layout: Layout
    context: LayerContext
    shapes: list[tuple[_Shape, int]]  # those whose weights and states leave room, and their micro-batches


@dataclass
class _Group:
    """The layouts of a split that recompute alike."""

    layout: Layout
    context: LayerContext
    split: _Split


# Room for what differs in the last digits between the floor and the whole estimate, which adds in another order.
_ROUNDING = 1e-9


class _Room:
    """Rejects layouts by the weights and states of their stages, and by the whole memory of their first stage."""

    def __init__(self, spec: Spec, cal: Calibration) -> None:
        self.spec, self.cal = spec, cal
        self.numerics = numerics_of(spec)
        self.capacity = spec.gpu.usable_memory_gib * (1 + _ROUNDING)
        self._known: dict[tuple[object, ...], tuple[list[float], tuple[StageLayers, ...]]] = {}

    def _stages(self, split: Layout, shape: _Shape) -> tuple[list[float], tuple[StageLayers, ...]]:
        """GiB of each stage's weights, gradients and states, and its layers; the micro-batch and CP play no part."""
        key = (split.tp, split.ep, split.etp, shape)
        if key not in self._known:
            trial = _changed(self.spec, layout=shape.of(split))
            static = [sum(stage_states(trial, self.numerics, shard)) / GIB for shard in stage_shards(trial)]
            self._known[key] = static, layers_of_stages(self.spec.model.shape, trial.layout.placement)
        return self._known[key]

    def _has(self, split: Layout, pp: int, allocated_gib: float) -> bool:
        outside = outside_gib(self.cal, split.tp, pp, split.cp, split.ep)
        return allocated_gib * FRAGMENTATION + outside <= self.capacity

    def fullest(self) -> str:
        """What fills the GPU, in words: states where they leave no room in any layout, else activations."""
        least = min(max(static, default=math.inf) for static, _ in self._known.values())
        if least * FRAGMENTATION > self.capacity:
            return f"weights, gradients and optimizer states alone take {least:.1f} GiB where they take least"
        return f"weights, gradients and optimizer states take at least {least:.1f} GiB, and activations the rest"

    def for_states(self, split: Layout, shape: _Shape) -> bool:
        """Whether weights, gradients and states leave any room on the fullest stage."""
        return self._has(split, shape.pp, max(self._stages(split, shape)[0], default=0.0))

    def for_first_stage(self, split: Layout, shape: _Shape, micro_batches: int, estimate: StageEstimate) -> bool:
        """Whether the first stage has room, activations included."""
        static, stages = self._stages(split, shape)
        if not stages:
            return True  # not legal
        pipeline = Pipeline(shape.pp, shape.vpp, micro_batches)
        step = sum(estimate.activations_and_logits(0, stages[0], pipeline)) + estimate.buffers(shape.pp)
        return self._has(split, shape.pp, static[0] + step / GIB)


class _Search:
    """The queue of one search: splits, groups and layouts by their bounds, costed candidates by their time."""

    def __init__(self, spec: Spec, expert_load: float, pinned: frozenset[str]) -> None:
        self.spec = spec
        self.pinned = pinned
        self.cal = calibration_for(spec)
        self.expert_load = expert_load
        self.considered = self.did_not_fit = self.bounded = 0
        self.fits_evenly = False  # some layout that has no room for ``expert_load`` may fit with an even load
        self.refused: Counter[Violation] = Counter()  # by the first rule that a layout with room breaks
        self._room = _Room(spec, self.cal)
        self._order = itertools.count()
        self._queue: list[tuple[float, int, _Split | _Group | Workload | Candidate]] = []
        for layout in _splits(spec, pinned):
            self._push_split(layout)

    def candidates(self) -> Iterator[Candidate]:
        """The candidates, fastest first: what is popped first cannot be beaten by anything still in the queue."""
        while self._queue:
            _, _, item = heapq.heappop(self._queue)
            if isinstance(item, Candidate):
                yield item
            elif isinstance(item, _Split):
                self._divide(item)
            elif isinstance(item, _Group):
                self._expand(item)
            else:
                self._judge(item)

    def _push(self, seconds: float, item: _Split | _Group | Workload | Candidate) -> None:
        heapq.heappush(self._queue, (seconds, next(self._order), item))

    def _push_split(self, layout: Layout) -> None:
        """Queue a split by the bound of its layouts that recompute nothing: recompute only adds to a step."""
        shapes = []
        for shape, micro_batches in _shapes(self.spec, layout, self.pinned):
            if self._room.for_states(layout, shape):
                shapes.append((shape, micro_batches))
            else:
                self.did_not_fit += 1
        if shapes:
            context = layer_context(_changed(self.spec, layout=layout), self.cal)
            self._push(_bound(self.spec, layout, context), _Split(layout, context, shapes))

    def _divide(self, split: _Split) -> None:
        """Queue the groups of a split by their bounds."""
        for mode, modules in _recomputes_of(self.spec, self.pinned):
            layout = _changed(split.layout, recompute=mode, recompute_modules=list(modules))
            context = replace(split.context, recompute=mode, recompute_modules=modules)
            self._push(_bound(self.spec, layout, context), _Group(layout, context, split))

    def _expand(self, group: _Group) -> None:
        """Queue every legal layout of a group whose first stage has room, by its bound."""
        uneven = self.expert_load > 1 and routes_unevenly(_changed(self.spec, layout=group.layout))
        loads = (self.expert_load, 1.0) if uneven else (1.0,)
        estimates = [StageEstimate(group.layout, group.context, load) for load in loads]
        for shape, micro_batches in group.split.shapes:
            room = (self._room.for_first_stage(group.layout, shape, micro_batches, estimate) for estimate in estimates)
            if not next(room):
                self.did_not_fit += 1
                self.fits_evenly = self.fits_evenly or any(room)
                continue
            trial = _changed(self.spec, layout=shape.of(group.layout))
            if broken := first_violation(trial):
                self.refused[broken] += 1
                continue
            self.bounded += 1
            work = workload_of(trial, self.cal, group.context)
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

    def reason(self) -> Refusal:
        """Why no layout was found: the rule that refuses most of those with room, else what fills the GPU."""
        spec = self.spec
        what = f"no legal layout of {spec.model.name} on {spec.gpus} {spec.gpu.name} with layout.gbs={spec.layout.gbs} "
        if self.refused:
            (violation, _), *_ = self.refused.most_common(1)
            message = violation.message.removesuffix(".")
            return Refusal(f"{what}fits: those with room break rule {violation.rule} ({message})", violation.fix)
        if not self.did_not_fit:
            return Refusal(
                f"{what}divides the batch and the GPUs",
                "Use a layout.gbs that is a multiple of a divisor of the GPUs, or another number of GPUs.",
            )
        return Refusal(
            f"{what}fits {spec.gpu.usable_memory_gib:.0f} GiB: {self._room.fullest()}",
            "Use more GPUs, another GPU, or a batch that more ranks can share.",
        )


def _require_precision(spec: Spec) -> None:
    """Refuse a precision that the GPU has no units for, whatever the layout is."""
    if broken := precision_gpu(spec):
        raise Refusal(f"{broken.message}.", broken.fix, "precision-gpu")


def plan(
    spec: Spec,
    top: int = 10,
    *,
    exhaustive: bool = False,
    expert_load: float = REAL_EXPERT_LOAD,
    pinned: frozenset[str] = _NOTHING,
) -> Plan:
    """The ``top`` fastest legal layouts of ``spec`` that fit its GPUs: a best-first search.

    Args:
        exhaustive: cost every legal layout; the answer is the same, as a test shows.
        expert_load: the load, in times an even load, that a rank's experts must have room for. Where no layout has that
            room, the layouts that have room for an even load are ranked.
        pinned: fields of the layout that keep the values of ``spec``.

    Raises:
        Refusal: no legal layout fits; it says what refuses the layouts, or what fills the GPU.
    """
    _require_precision(spec)
    search = _Search(spec, expert_load, pinned)
    best = list(itertools.islice(search.candidates(), None if exhaustive else top))
    if not best and search.fits_evenly:
        return plan(spec, top, exhaustive=exhaustive, expert_load=0.0, pinned=pinned)
    if not best:
        raise search.reason()
    return Plan(best[:top], search.considered, search.bounded - search.considered, search.did_not_fit)


def why_slower(candidate: Candidate, best: Candidate) -> str:
    """The terms on which ``candidate`` loses to ``best``, largest first, in words and seconds."""
    if candidate is best:
        first = sorted(best.time.breakdown.items(), key=lambda x: -x[1])[:3]
        return "spends " + ", ".join(f"{seconds:.2f} s on {TERM_WORDS[Term(k)]}" for k, seconds in first)
    keys = set(candidate.time.breakdown) | set(best.time.breakdown)
    lost = {k: candidate.time.breakdown.get(k, 0.0) - best.time.breakdown.get(k, 0.0) for k in keys}
    worst = [(k, s) for k, s in sorted(lost.items(), key=lambda x: -x[1]) if s > 0.002 * best.time.step_time_s][:2]
    if not worst:
        return "as fast as the best within 0.2 %"
    return "loses " + " and ".join(f"{s:.2f} s on {TERM_WORDS[Term(k)]}" for k, s in worst)
