"""``slipway advise``: which techniques this model needs on this hardware, and what each buys here in GiB and seconds.

Each technique is judged by taking it away from the best layout, or by adding it, with all else free to move.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from slipway.configs import Fsdp, Recompute, Spec
from slipway.planner.memory import has_room, workload_expert_load, workload_memory
from slipway.planner.pins import plan_pinned
from slipway.planner.rules import violations
from slipway.planner.search import Candidate
from slipway.planner.time.step import workload_step_time
from slipway.planner.workload import workload_of


@dataclass(frozen=True)
class Advice:
    """One technique. GiB and seconds are of the peak stage and the step: positive is what the technique saves."""

    technique: str
    use: bool
    why: str
    gib: float | None
    seconds: float | None


@dataclass(frozen=True)
class _Technique:
    """Judge a technique by the layout without it (if it is in use) or with it (if it is not)."""

    name: str
    used: bool
    other: dict[str, Any] | None  # the fields of the layout that change; None: there is nothing to compare with
    absent: str  # why there is no comparison


_EVEN = {"account_for_embedding": False, "account_for_loss": False}


def _sharding(spec: Spec) -> list[_Technique]:
    """Data parallelism and the sharding of states over its ranks."""
    layout, dp = spec.layout, spec.dp
    copies = f"{dp} copies of the model share the batch of {layout.gbs}" if dp > 1 else "the model takes every GPU"
    return [
        _Technique("DDP (data parallelism)", dp > 1, None, copies),
        _Technique(
            "ZeRO-1 (distributed optimizer)",
            layout.distributed_optimizer,
            {"distributed_optimizer": False, "fsdp": Fsdp.none},
            "one data-parallel rank has nothing to shard",
        ),
        _Technique(
            "ZeRO-3 (Megatron-FSDP)",
            False,
            None,
            "NeMo 2.7.3 writes checkpoints of it that cannot be resumed (rule fsdp-resume)",
        ),
    ]


def _parallelism(spec: Spec) -> list[_Technique]:
    """What splits one copy of the model over ranks."""
    layout = spec.layout
    tp, pp, vpp, cp, ep = layout.tp, layout.pp, layout.vpp, layout.cp, layout.ep
    return [
        _Technique(
            "TP (tensor parallelism)",
            tp > 1,
            {"tp": 1, "sp": None} if tp > 1 else {"tp": 2},
            "no other tensor size is legal here",
        ),
        _Technique(
            "SP (sequence parallelism)",
            layout.sequence_parallel,
            {"sp": False} if tp > 1 else None,
            "needs tensor parallelism" if tp == 1 else "experts with TP require it",
        ),
        _Technique(
            "PP (pipeline parallelism)",
            pp > 1,
            {"pp": 1, "vpp": 1, **_EVEN} if pp > 1 else {"pp": 2},
            "no other pipeline is legal with this batch",
        ),
        _Technique(
            "VPP (interleaving)",
            vpp > 1,
            {"vpp": 1} if vpp > 1 else None,
            "needs pipeline parallelism" if pp == 1 else "no interleaving is legal here",
        ),
        _Technique(
            "CP (context parallelism)", cp > 1, {"cp": 1 if cp > 1 else 2}, "no other context size is legal here"
        ),
        _Technique(
            "EP (expert parallelism)",
            spec.model.is_moe and ep > 1,
            {"ep": 1 if ep > 1 else 2} if spec.model.is_moe else None,
            "no other expert size is legal here" if spec.model.is_moe else f"{spec.model.name} has no experts",
        ),
    ]


def _memory_savers(spec: Spec) -> list[_Technique]:
    layout = spec.layout
    used = layout.recompute is not Recompute.none
    return [
        _Technique(
            f"recompute ({layout.recompute.value})",
            used,
            {"recompute": Recompute.none, "recompute_modules": []} if used else {"recompute": Recompute.full},
            "not legal with the rest",
        ),
        _Technique(
            "optimizer offload",
            layout.optimizer_cpu_offload,
            {"optimizer_cpu_offload": True},
            "not legal with the rest",
        ),
    ]


def _judge(technique: _Technique, best: Candidate) -> Advice:
    """Judge a technique by the layout in which it is taken away (if used) or added (if not)."""
    other = None
    if technique.other is not None:
        other = replace(best.spec, layout=replace(best.layout, **technique.other))
    broken = violations(other) if other else []
    if other is None or broken:
        required = f"required: without it, {broken[0].message.removesuffix('.')}" if broken else ""
        why = required if required and technique.used else technique.absent
        return Advice(technique.name, technique.used, why, None, None)
    work = workload_of(other)
    needed = workload_memory(work)
    gib = needed.peak_gib - best.memory.peak_gib
    seconds = workload_step_time(work).step_time_s - best.time.step_time_s
    if not technique.used:
        why = f"it would cost {seconds:+.2f} s and change memory by {gib:+.1f} GiB; the run fits without"
        return Advice(technique.name, False, why, -gib, -seconds)
    why = f"without it the step takes {seconds:+.2f} s and {gib:+.1f} GiB"
    if not needed.fits:
        why = "without it the run does not fit"
    elif not has_room(work, needed):
        why = f"without it experts fit only up to {workload_expert_load(work):.2f} times an even load"
    return Advice(technique.name, True, why, gib, seconds)


def advise(
    spec: Spec, pinned: frozenset[str] = frozenset(), untouched: frozenset[str] = frozenset()
) -> tuple[Candidate, list[Advice]]:
    """The best layout with the fields ``pinned`` as ``spec`` has them, and a judgement of every technique.

    Args:
        untouched: as in :func:`slipway.planner.plan_pinned`.

    Raises:
        Refusal: nothing fits.
    """
    best = plan_pinned(spec, pinned, 1, untouched).candidates[0]
    table = _sharding(best.spec) + _parallelism(best.spec) + _memory_savers(best.spec)
    return best, [_judge(technique, best) for technique in table]
