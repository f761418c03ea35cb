"""The levers of NVIDIA's own recipes: which of them a run takes over, and why it does not take the others."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

from slipway.configs import Levers, Spec
from slipway.configs.levers import Theirs, nvidia_levers
from slipway.configs.overrides import text_of, value_of
from slipway.planner.levers import aligns_param_gather
from slipway.planner.memory.probability import LIKELY, p_fits
from slipway.planner.rules import first_violation, only_planned

KEYS = (
    "layout.tp_comm_overlap",
    "layout.dispatcher",
    "layout.moe_expert_capacity_factor",
    "layout.cuda_graphs",
    "layout.cpu_offload_layers",
    "layout.pipeline_layout",
    "layout.fsdp",
    *(f"levers.{field.name}" for field in fields(Levers)),
    "precision.grad_reduce_in_fp32",
    "precision.first_last_layers_bf16",
    "optim.precision_aware",
    "optim.moments",
)
"""Every lever, in the order in which they are shown."""

_OF_EXPERTS = (
    "layout.dispatcher",
    "layout.moe_expert_capacity_factor",
    "levers.moe_router_fusion",
    "levers.expert_comm_overlap",
    "levers.delay_wgrad",
)

KEPT = {
    "precision.grad_reduce_in_fp32": "fp32 is what NeMo's recipe has outside of benchmarks, and what Llama 3 was "
    "trained with (arXiv:2407.21783, section 3.3.2); performance_mode=True or the key turns it off",
    "precision.first_last_layers_bf16": "NVIDIA turns it off for benchmarks; the precision's own recipe has it",
    "levers.check_for_nan": "a NaN then ends the run in the step where it appears; performance_mode=True turns it off",
    "layout.moe_expert_capacity_factor": "the model was published without dropped tokens",
    "layout.cuda_graphs": "no run of ours has shown what it gains or holds",
    "layout.cpu_offload_layers": "the layout was chosen to fit without it",
    "layout.pipeline_layout": "the layout was chosen among others",
    "optim.precision_aware": "with moments in fp32 it changes neither memory nor speed; with optim.moments=bf16 it "
    "frees 4 bytes a parameter, and changes the update",
    "optim.moments": "without effect unless optim.precision_aware is on",
    "levers.moe_router_fusion": "NeMo leaves it off, and CPU ranks cannot rehearse it",
}
"""The levers that a run does not take over by itself, and why: they change what is computed, or are not proven."""


def with_nvidia_levers(spec: Spec, untouched: frozenset[str]) -> Spec:
    """``spec`` with each lever of NVIDIA's recipe in NeMo that nobody set and that is legal with its layout.

    None makes a run less likely to fit than a default is; of a limit, as much is taken as leaves it likely to.

    Args:
        untouched: the keys that nobody set.
    """
    for theirs in _published(spec):
        if not theirs.of_our_stack or theirs.key in KEPT or theirs.key not in untouched or _same(spec, theirs):
            continue
        trial = _with(spec, theirs)
        if trial is not spec and not _refusal(trial):
            spec = _that_fits(spec, trial)
    return spec


def _that_fits(spec: Spec, trial: Spec) -> Spec:
    """``trial``, or with fewer deferred micro-batches, if it is likely to fit; else ``spec``."""
    enough = min(LIKELY, p_fits(spec))
    while p_fits(trial) < enough:
        limit = trial.levers.wgrad_deferral_limit // 2
        if trial.levers.wgrad_deferral_limit == spec.levers.wgrad_deferral_limit or not limit:
            return spec
        trial = replace(trial, levers=replace(trial.levers, wgrad_deferral_limit=limit))
    return trial


@dataclass(frozen=True)
class Compared:
    """One lever: NVIDIA's value and the file that sets it, ours, and why they differ; empty where they do not."""

    key: str
    theirs: str  # empty where NVIDIA says nothing
    source: str
    ours: str
    why: str


def compare(spec: Spec, given: frozenset[str]) -> list[Compared]:
    """Every lever of a complete run beside NVIDIA's, once for each of its recipes that states it.

    Args:
        given: the keys that the user set.
    """
    found = []
    for key in KEYS:
        ours, published = text_of(ours_of(spec, key)), [each for each in _published(spec) if each.key == key]
        if not published and (spec.model.is_moe or key not in _OF_EXPERTS):
            found.append(Compared(key, "", "", ours, ""))
        for theirs in published:
            why = "" if _same(spec, theirs) else _why(spec, theirs, given)
            found.append(Compared(key, theirs.value, theirs.source, ours, why))
    return found


def source_of(spec: Spec, key: str) -> str:
    """The file in which NVIDIA sets a lever that a run took over."""
    return next(each.source for each in _published(spec) if each.key == key and each.of_our_stack)


def ours_of(spec: Spec, key: str) -> Any:
    """The value of a lever, resolved where it is left to the layout."""
    if key == "layout.dispatcher":
        return spec.dispatcher
    if key == "levers.align_param_gather" and spec.levers.align_param_gather == aligns_param_gather(spec):
        return None
    group, name = key.split(".")
    return getattr(getattr(spec, group), name)


def _same(spec: Spec, theirs: Theirs) -> bool:
    return text_of(value_of(theirs.key, theirs.value)) == text_of(ours_of(spec, theirs.key))


def _why(spec: Spec, theirs: Theirs, given: frozenset[str]) -> str:
    if theirs.key in given:
        return "you set it"
    trial = _with(spec, theirs)
    if trial is spec:
        return "nothing of NeMo's has it"
    if refusal := _refusal(trial):
        return refusal
    if theirs.key in KEPT:
        return KEPT[theirs.key]
    if (likely := p_fits(trial)) < LIKELY:
        return f"with it, the run would fit with a probability of {likely:.0%}"
    return "of Megatron-Bridge's newer Megatron-Core" if not theirs.of_our_stack else "set by the recipe's file"


def _published(spec: Spec) -> tuple[Theirs, ...]:
    return nvidia_levers(spec.model.name, spec.gpu.name, spec.precision.name)


def _refusal(spec: Spec) -> str:
    """The first rule that refuses a run, or that it can only be planned; empty where it can be trained."""
    broken = first_violation(spec) or next(iter(only_planned(spec)), None)
    return f"rule {broken.rule}: {broken.message.rstrip('.')}" if broken else ""


def _with(spec: Spec, theirs: Theirs) -> Spec:
    """``spec`` with one lever of NVIDIA's; ``spec`` itself where no value of ours means the same."""
    group, name = theirs.key.split(".")
    part = getattr(spec, group)
    value: Any = value_of(theirs.key, theirs.value)
    if isinstance(kind := getattr(part, name), Enum):
        if value not in [member.value for member in type(kind)]:
            return spec
        value = type(kind)(value)
    changed: dict[str, Any] = {name: value}
    return replace(spec, **{group: replace(part, **changed)})
