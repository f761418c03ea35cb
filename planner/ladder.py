"""What frees memory: single changes to a layout, each with the GiB that it frees and the time that it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from slipway.configs import Dispatcher, Recompute, Refusal, Spec
from slipway.configs.load import override
from slipway.configs.overrides import text_of
from slipway.planner.memory.estimate import workload_memory
from slipway.planner.memory.probability import LIKELY
from slipway.planner.nvidia import with_nvidia_levers
from slipway.planner.rules import SELECTIVE_MODULES, first_violation, only_planned
from slipway.planner.search import Candidate
from slipway.planner.time.step import workload_step_time
from slipway.planner.workload import workload_of

_LEAST_GIB = 0.05  # freed: what frees less is no answer
_DOUBLED = ("tp", "pp", "cp", "ep")
_RISKS = {
    "optim.precision_aware=true": "Adam's moments in bf16 change the update",
    "precision.grad_reduce_in_fp32=false": "gradients are summed in bf16, which loses small contributions",
    "precision.fp8_param_gather=true": "weights are stored in fp8 beside their master copy",
    "layout.optimizer_cpu_offload=true": "the optimizer runs on the host: its time is an assumption",
    "layout.cpu_offload_layers": "activations go through host memory, which must have room",
    "gpus": "costs more GPUs",
}
"""What a change risks beside its time, by its first override or that override's key."""


@dataclass(frozen=True)
class Rung:
    """One change, as overrides to paste. GiB are of the fullest stage."""

    overrides: tuple[str, ...]
    candidate: Candidate | None  # None where a rule refuses it
    frees_gib: float
    slower: float  # GPU-seconds of a token over those of the layout that it starts from, less one
    risk: str
    why_not: str = ""

    @property
    def likely(self) -> bool:
        """Whether the run is likely to fit with this change alone."""
        return self.candidate is not None and self.candidate.p_fits >= LIKELY


def ladder(spec: Spec, untouched: frozenset[str] = frozenset()) -> list[Rung]:
    """Every single change to a legal ``spec`` that frees memory.

    Those with which it is likely to fit come first, the fastest of them on top; then those that do not suffice, by what
    they free; then those that a rule refuses.

    Args:
        untouched: keys that nobody set. Those that are levers become NVIDIA's again, where the change leaves them room.
    """
    start = _judged(spec)
    rungs = [_rung(start, overrides, untouched) for overrides in dict.fromkeys(_changes(spec))]
    useful = [rung for rung in rungs if rung.candidate is None or rung.frees_gib >= _LEAST_GIB]
    return sorted(useful, key=lambda rung: (rung.candidate is None, not rung.likely, _order(rung)))


def _order(rung: Rung) -> float:
    return rung.slower if rung.likely else -rung.frees_gib


def _judged(spec: Spec) -> Candidate:
    work = workload_of(spec)
    return Candidate(spec, workload_step_time(work), workload_memory(work))


def _rung(start: Candidate, overrides: tuple[str, ...], untouched: frozenset[str]) -> Rung:
    key = overrides[0].partition("=")[0]
    risk = _RISKS.get(overrides[0], _RISKS.get(key, ""))
    try:
        spec = override(start.spec, overrides).spec
    except Refusal as refusal:
        return Rung(overrides, None, 0.0, 0.0, risk, refusal.message)
    known = {broken.rule for broken in only_planned(start.spec)}  # of a file's model, which no recipe builds
    if broken := first_violation(spec) or next((b for b in only_planned(spec) if b.rule not in known), None):
        return Rung(overrides, None, 0.0, 0.0, risk, f"rule {broken.rule}: {broken.message}")
    found = _judged(with_nvidia_levers(spec, untouched - {each.partition("=")[0] for each in overrides}))
    slower = start.time.tokens_per_s_per_gpu / found.time.tokens_per_s_per_gpu - 1
    return Rung(overrides, found, start.memory.needed_gib - found.memory.needed_gib, slower, risk)


def _changes(spec: Spec) -> Iterator[tuple[str, ...]]:
    """The changes that may free memory, whether they are legal or not."""
    layout, model = spec.layout, spec.model
    if layout.mbs > 1:
        yield (f"layout.mbs={layout.mbs // 2}",)
        yield ("layout.mbs=1",)
    for name in _DOUBLED:
        if name != "ep" or model.is_moe:
            yield (f"layout.{name}={2 * getattr(layout, name)}",)
    if layout.vpp > 1:
        yield ("layout.vpp=1",)
    yield from _recomputes(spec)
    if layout.tp > 1 and not layout.sequence_parallel:
        yield ("layout.sp=true",)
    if not layout.distributed_optimizer:
        yield ("layout.distributed_optimizer=true",)
    if not layout.fused_cross_entropy:
        yield ("layout.fused_cross_entropy=true",)
    if not layout.optimizer_cpu_offload:
        yield ("layout.optimizer_cpu_offload=true",)
    if not layout.cpu_offload_layers:
        yield (f"layout.cpu_offload_layers={max(1, model.num_layers // layout.pp // 2)}",)
    if layout.pp > 1 and not (layout.account_for_loss or layout.pipeline_layout):
        yield ("layout.account_for_embedding=true", "layout.account_for_loss=true")
    yield from _levers(spec)
    yield (f"gpus={2 * spec.gpus}",)


def _levers(spec: Spec) -> Iterator[tuple[str, ...]]:
    """What frees memory and is no part of the layout's sizes."""
    if not spec.optim.precision_aware:
        yield ("optim.precision_aware=true", "optim.moments=bf16")
    if spec.precision.grad_reduce_in_fp32:
        yield ("precision.grad_reduce_in_fp32=false",)
    if spec.precision.gemm == "fp8" and not spec.precision.fp8_param_gather:
        yield ("precision.fp8_param_gather=true",)
    if spec.levers.wgrad_deferral_limit:
        yield ("levers.wgrad_deferral_limit=0",)
    if spec.layout.tp_comm_overlap:
        yield ("layout.tp_comm_overlap=false",)
    if spec.layout.cuda_graphs:
        yield ("layout.cuda_graphs=false",)
    if spec.model.is_moe and spec.layout.dispatcher is Dispatcher.allgather:
        yield ("layout.dispatcher=alltoall",)


def _recomputes(spec: Spec) -> Iterator[tuple[str, ...]]:
    """More recomputation than the layout has."""
    layout = spec.layout
    if layout.recompute is Recompute.full:
        if layout.recompute_num_layers:
            yield ("layout.recompute_num_layers=0", "layout.recompute_method=uniform")
        return
    there = {
        "mlp": spec.model.has_dense_layers,
        "moe": spec.model.is_moe,
        "moe_act": spec.model.is_moe,
        "mla_up_proj": spec.model.is_mla,
        "shared_experts": bool(spec.model.moe_shared_expert_intermediate_size),
    }
    for name in SELECTIVE_MODULES:
        if there.get(name, True) and name not in layout.recompute_modules:
            modules = text_of([*layout.recompute_modules, name])
            yield ("layout.recompute=selective", f"layout.recompute_modules={modules}")
    yield ("layout.recompute=full", "layout.recompute_modules=[]")
