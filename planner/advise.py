"""``slipway advise``: which techniques this model needs on this hardware, and what each buys here in GiB and seconds.

Each technique is judged by taking it away from the best layout, or by adding it, with all else free to move.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from slipway.configs import Fsdp, Recompute, Spec
from slipway.planner.memory import expert_load_that_fits, has_room, memory
from slipway.planner.rules import is_legal
from slipway.planner.search import Candidate, plan
from slipway.planner.time.step import step_time


@dataclass(frozen=True)
class Advice:
    """One technique. GiB and seconds are of the peak stage and the step: positive is what the technique saves."""

    technique: str
    use: bool
    why: str
    gib: float | None
    seconds: float | None


def _compare(best: Candidate, other: Spec) -> tuple[float, float] | None:
    """What ``best`` saves over ``other``: GiB of the peak, seconds of the step."""
    if not is_legal(other):
        return None
    return memory(other).peak_gib - best.memory.peak_gib, step_time(other).step_time_s - best.time.step_time_s


def _judge(technique: str, used: bool, best: Candidate, other: Spec | None, absent: str) -> Advice:
    """Judge a technique by the layout in which it is taken away (if used) or added (if not)."""
    delta = _compare(best, other) if other is not None else None
    if delta is None:
        return Advice(technique, used, absent, None, None)
    gib, seconds = delta
    assert other is not None
    held = memory(other)
    if used:
        why = f"without it the step takes {seconds:+.2f} s and {gib:+.1f} GiB"
        if not held.fits:
            why = "without it the run does not fit"
        elif not has_room(other, held):
            why = f"without it experts fit only up to {expert_load_that_fits(other):.2f} times an even load"
        return Advice(technique, True, why, gib, seconds)
    why = f"it would cost {seconds:+.2f} s and change memory by {gib:+.1f} GiB; the run fits without"
    return Advice(technique, False, why, -gib, -seconds)


def advise(spec: Spec) -> tuple[Candidate, list[Advice]]:
    """The best layout and a judgement of every technique.

    Raises:
        Refusal: nothing fits.
    """
    best = plan(spec, top=1).candidates[0]
    lay, model = best.layout, spec.model

    def variant(**changes: object) -> Spec | None:
        trial = replace(best.spec, layout=replace(lay, **changes))  # type: ignore[arg-type]
        return trial if is_legal(trial) else None

    out = [
        _judge(
            "DDP (data parallelism)",
            best.spec.dp > 1,
            best,
            None,
            f"{best.spec.dp} copies of the model share the batch of {lay.gbs}"
            if best.spec.dp > 1
            else "the model takes every GPU",
        ),
        _judge(
            "ZeRO-1 (distributed optimizer)",
            lay.distributed_optimizer,
            best,
            variant(distributed_optimizer=False, fsdp=Fsdp.none),
            "one data-parallel rank has nothing to shard",
        ),
        _judge(
            "ZeRO-3 (Megatron-FSDP)",
            lay.fsdp is Fsdp.megatron,
            best,
            variant(fsdp=Fsdp.none if lay.fsdp is Fsdp.megatron else Fsdp.megatron) if lay.pp == 1 else None,
            "the layout is pipelined, and FSDP would gather the weights again for every micro-batch",
        ),
    ]
    tp_other = variant(tp=1, sp=None) if lay.tp > 1 else variant(tp=2)
    out.append(_judge("TP (tensor parallelism)", lay.tp > 1, best, tp_other, "no other tensor size is legal here"))
    sp_other = variant(sp=False) if lay.tp > 1 else None
    out.append(
        _judge(
            "SP (sequence parallelism)",
            lay.sequence_parallel,
            best,
            sp_other,
            "needs tensor parallelism" if lay.tp == 1 else "experts with TP require it",
        )
    )
    pp_other = (
        variant(pp=1, vpp=1, account_for_embedding=False, account_for_loss=False) if lay.pp > 1 else variant(pp=2)
    )
    out.append(
        _judge("PP (pipeline parallelism)", lay.pp > 1, best, pp_other, "no other pipeline is legal with this batch")
    )
    out.append(
        _judge(
            "VPP (interleaving)",
            lay.vpp > 1,
            best,
            variant(vpp=1) if lay.vpp > 1 else None,
            "needs pipeline parallelism" if lay.pp == 1 else "no interleaving is legal here",
        )
    )
    out.append(
        _judge(
            "CP (context parallelism)",
            lay.cp > 1,
            best,
            variant(cp=1) if lay.cp > 1 else variant(cp=2),
            "no other context size is legal here",
        )
    )
    if model.is_moe:
        out.append(
            _judge(
                "EP (expert parallelism)",
                lay.ep > 1,
                best,
                variant(ep=1) if lay.ep > 1 else variant(ep=2),
                "no other expert size is legal here",
            )
        )
    else:
        out.append(Advice("EP (expert parallelism)", False, f"{model.name} has no experts", None, None))
    used = lay.recompute is not Recompute.none
    other = variant(recompute=Recompute.none, recompute_modules=[]) if used else variant(recompute=Recompute.full)
    out.append(_judge(f"recompute ({lay.recompute.value})", used, best, other, "not legal with the rest"))
    out.append(
        _judge(
            "optimizer offload",
            lay.optimizer_cpu_offload,
            best,
            variant(optimizer_cpu_offload=True),
            "not legal with the rest",
        )
    )
    return best, out
