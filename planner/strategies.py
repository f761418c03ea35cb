"""Every kind of parallelism on one model and cluster: the best layout of each, its memory, and why (not) to use it.

ZeRO-1 shards the optimizer states over the data-parallel ranks, ZeRO-2 the gradients too, ZeRO-3 (FSDP) the weights too
(arXiv:1910.02054). ZeRO-2 is priced and cannot be built: Megatron-Core's distributed optimizer keeps whole gradients.
The rules are those of Megatron-LM, so that Megatron-FSDP is judged by what it needs and not by NeMo's checkpoints.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from slipway.configs import Fsdp, Layout, Model, Recompute, Refusal, Spec
from slipway.configs.schema import layer_kinds
from slipway.planner.choose import split_layers
from slipway.planner.layout import on_one_rank
from slipway.planner.memory import FRAGMENTATION, GIB, Memory
from slipway.planner.memory.estimate import workload_memory
from slipway.planner.numerics import numerics_of
from slipway.planner.parameters import layer
from slipway.planner.rules import Framework, Severity, divisors, violations
from slipway.planner.search import Candidate, plan, why_slower
from slipway.planner.time.step import workload_step_time
from slipway.planner.workload import workload_of

_MICRO_BATCHES = (1, 2, 4, 8)
_DEEPEST = 64  # stages that are tried
_MOST_CONTEXT = 16  # context ranks that are tried
_TRIED = 32  # fastest layouts among which one of a combination is looked for
_LONG_SEQUENCE = 131_072
_SLOW = 8.0  # times slower than the cluster's, of the case of a slow network


@dataclass(frozen=True)
class Strategy:
    """A kind of parallelism: the best layout that fits, else the one that needs least, and a sentence."""

    name: str
    best: Candidate | None  # of those that fit, or the smallest of those that do not; None: no legal layout
    fits: bool
    gradients_shared_by: int  # ranks over which gradients are sharded beyond what the layout says (ZeRO-2)
    why: str = ""

    @property
    def parts(self) -> dict[str, float]:
        """GiB of the fullest stage: parameters, gradients, optimizer, activations and logits, buffers."""
        assert self.best is not None, "a strategy without a legal layout has no memory"
        stage = self.best.memory.peak_stage
        return {
            "parameters_gib": stage.parameters_gib,
            "gradients_gib": stage.gradients_gib / self.gradients_shared_by,
            "optimizer_gib": stage.optimizer_gib,
            "activations_gib": stage.activations_gib + stage.logits_gib,
            "buffers_gib": stage.buffers_gib,
        }

    @property
    def needed_gib(self) -> float:
        """What the GPU must have: the allocator's reserve, and what lives outside it."""
        assert self.best is not None, "a strategy without a legal layout has no memory"
        return _needed(self.best.memory, sum(self.parts.values()))


def _needed(memory: Memory, peak_gib: float) -> float:
    return peak_gib * FRAGMENTATION + memory.outside_gib


@dataclass(frozen=True)
class _Tried:
    """What a strategy may set: lists of sizes, and the switches that are its own."""

    name: str
    sizes: dict[str, list[int]]
    switches: dict[str, Any]
    shards_gradients: bool = False


def _strategies(spec: Spec) -> Iterator[_Tried]:
    """Those that are tried size by size, simplest first."""
    model, gpus, zero1 = spec.model, spec.gpus, {"distributed_optimizer": True}
    yield _Tried("DDP", {}, {"distributed_optimizer": False, "overlap_param_gather": False})
    yield _Tried("ZeRO-1", {}, zero1)
    yield _Tried("ZeRO-2", {}, zero1, shards_gradients=True)
    yield _Tried("ZeRO-3 (FSDP)", {}, zero1 | {"fsdp": Fsdp.megatron})
    domain = min(spec.gpu.nvlink_domain, gpus)
    yield _Tried("2D: TP x DP", {"tp": [n for n in divisors(domain) if n > 1]}, zero1 | {"etp": 0})
    stages = [n for n in divisors(gpus, _DEEPEST) if 1 < n <= model.num_layers]
    yield _Tried("2D: PP x DP", {"pp": stages, "vpp": divisors(model.num_layers, 8)}, zero1)
    yield _Tried("2D: CP x DP", {"cp": [n for n in (2, 4, 8, 16) if gpus % n == 0 and n <= _MOST_CONTEXT]}, zero1)
    if model.is_moe:
        yield _Tried("2D: EP x DP", {"ep": [n for n in divisors(model.num_moe_experts, gpus) if n > 1]}, zero1)


def _tried(spec: Spec, tried: _Tried) -> Iterator[Candidate]:
    """The legal layouts of a strategy, whether they fit or not."""
    start = replace(on_one_rank(spec.layout), etp=1 if spec.model.is_moe else 0)
    for sizes in itertools.product(*tried.sizes.values()):
        chosen: dict[str, Any] = dict(zip(tried.sizes, sizes, strict=True))
        for mbs, recompute in (*((mbs, Recompute.none) for mbs in _MICRO_BATCHES), (1, Recompute.full)):
            options: dict[str, Any] = {"mbs": mbs, "recompute": recompute, "recompute_modules": []}
            trial = _spec(spec, replace(start, **options | chosen | tried.switches))
            if violations(trial, Severity.error, Framework.megatron_lm):
                continue
            work = workload_of(trial)
            yield Candidate(trial, workload_step_time(work), workload_memory(work))


def _spec(spec: Spec, layout: Layout) -> Spec:
    return split_layers(replace(spec, layout=layout))


def _judged(spec: Spec, tried: _Tried) -> Strategy:
    found = list(_tried(spec, tried))
    if not found:
        return Strategy(tried.name, None, False, 1, _refusal(spec, tried))
    judged = [
        Strategy(tried.name, each, False, max(each.spec.dp * each.layout.cp, 1) if tried.shards_gradients else 1)
        for each in found
    ]
    fitting = [each for each in judged if each.best and each.needed_gib <= each.best.memory.capacity_gib]
    if fitting:
        return replace(min(fitting, key=_step), fits=True)
    return min(judged, key=lambda each: each.needed_gib)


def _step(strategy: Strategy) -> float:
    assert strategy.best is not None, "selected by the caller"
    return strategy.best.time.step_time_s


def _refusal(spec: Spec, tried: _Tried) -> str:
    """The rule that refuses the smallest sizes of a strategy."""
    if not all(tried.sizes.values()):
        return f"no size of {', '.join(tried.sizes)} divides {spec.gpus} GPUs"
    chosen: dict[str, Any] = {name: sizes[0] for name, sizes in tried.sizes.items()} | {"mbs": 1} | tried.switches
    layout = replace(on_one_rank(spec.layout), **{"etp": 1 if spec.model.is_moe else 0} | chosen)
    broken = violations(_spec(spec, layout), Severity.error, Framework.megatron_lm)
    return broken[0].message.rstrip(".") if broken else "no layout"


def _combined(spec: Spec, name: str, pinned: frozenset[str], sizes: tuple[str, ...]) -> Strategy:
    """The fastest layout in which all ``sizes`` are above 1 and the fields ``pinned`` are 1."""
    try:
        found = plan(replace(spec, layout=on_one_rank(spec.layout)), _TRIED, pinned=pinned).candidates
    except Refusal as refusal:
        return Strategy(name, None, False, 1, refusal.message)
    best = next((each for each in found if all(getattr(each.layout, size) > 1 for size in sizes)), None)
    if best is None:
        return Strategy(name, None, False, 1, f"the {len(found)} fastest layouts do without one of them")
    return Strategy(name, best, True, 1)


def compare_strategies(spec: Spec) -> list[Strategy]:
    """Every kind of parallelism on the model, GPUs and batch of ``spec``, with the sentence why or why not."""
    found = [_judged(spec, tried) for tried in _strategies(spec)]
    no_experts = frozenset({"ep", "etp"} if spec.model.is_moe else set())
    found.append(_combined(spec, "3D: TP x PP x DP", frozenset({"cp", *no_experts}), ("tp", "pp")))
    found.append(_combined(spec, "4D: TP x PP x CP x DP", no_experts, ("tp", "pp", "cp")))
    if spec.model.is_moe:
        found.append(_combined(spec, "4D: PP x EP x TP x DP", frozenset({"cp"}), ("pp", "ep")))
    able = [each for each in found if each.fits]
    best = min(able, key=_step, default=None)
    return [each if each.best is None else replace(each, why=_why(each, best)) for each in found]


def _why(strategy: Strategy, best: Strategy | None) -> str:
    candidate = strategy.best
    assert candidate is not None, "selected by the caller"
    if not strategy.fits:
        parts, capacity = strategy.parts, candidate.memory.capacity_gib
        states = parts["parameters_gib"] + parts["gradients_gib"] + parts["optimizer_gib"]
        if states > capacity:
            return f"weights, gradients and optimizer states alone take {states:.0f} of {capacity:.0f} GiB"
        return f"needs {strategy.needed_gib:.0f} of {capacity:.0f} GiB even in its smallest layout"
    assert best is not None and best.best is not None, "one that fits is best"
    if strategy is best:
        return f"the fastest: {why_slower(candidate, candidate)}"
    slower = candidate.time.step_time_s / best.best.time.step_time_s - 1
    return f"{slower:.0%} slower: {why_slower(candidate, best.best)}"


@dataclass(frozen=True)
class Case:
    """A named case and what it means here, in a sentence."""

    name: str
    sentence: str


def cases(spec: Spec) -> list[Case]:
    """What the largest layer, one node, a slow network and a long context ask for on this model and GPU."""
    return [
        Case("the largest layer", _largest_layer(spec)),
        Case("one node", _best_of(replace(spec, gpus=spec.gpus_per_node), f"on {spec.gpus_per_node} GPUs")),
        Case("slow network", _slow_network(spec)),
        Case("long context", _long_context(spec)),
    ]


def _largest_layer(spec: Spec) -> str:
    numerics, capacity = numerics_of(spec), spec.gpu.usable_memory_gib
    count = _largest(spec.model)
    whole = count * (numerics.weight_bytes + numerics.reduced_gradient_bytes + numerics.state_bytes) / GIB
    gathered = count * (numerics.weight_bytes + numerics.reduced_gradient_bytes) / GIB
    size = f"it has {count:,} parameters, {whole:.1f} GiB with gradients and states of {capacity:.0f} GiB"
    if whole < capacity / 2:
        return f"{size}: a GPU can hold it whole, so DDP, ZeRO and PP are possible without TP"
    if gathered < capacity / 2:
        return f"{size}: its states must be sharded (ZeRO or TP); FSDP gathers {gathered:.1f} GiB of it at a time"
    return f"{size}: only TP or EP can divide it, because PP and ZeRO keep or gather whole layers"


def _largest(model: Model) -> int:
    return max(layer(model, kind, 1, 1, 1).total for kind in set(layer_kinds(model.shape)))


def _best_of(spec: Spec, where: str) -> str:
    try:
        best = plan(spec, 1).candidates[0]
    except Refusal as refusal:
        return f"{where} it does not run: {refusal.message}"
    sizes = " ".join(f"{name.upper()}{getattr(best.layout, name)}" for name in ("tp", "pp", "cp", "ep"))
    return f"{where} the fastest layout is {sizes} DP{best.spec.dp} at {best.time.mfu:.0%} MFU"


def _slow_network(spec: Spec) -> str:
    slow = replace(spec, gpu=replace(spec.gpu, nic_gb_per_s=spec.gpu.nic_gb_per_s / _SLOW))
    rate = slow.gpu.nic_gb_per_s
    return _best_of(slow, f"with {rate:.3g} instead of {spec.gpu.nic_gb_per_s:g} GB/s a GPU between nodes")


def _long_context(spec: Spec) -> str:
    tokens = spec.layout.gbs * spec.seq_length
    layout = replace(spec.layout, seq_length=_LONG_SEQUENCE, gbs=max(1, tokens // _LONG_SEQUENCE))
    return _best_of(
        replace(spec, layout=layout), f"with {_LONG_SEQUENCE:,} tokens a sequence and {layout.gbs} sequences a step"
    )
