"""Rules of data parallelism: the distributed optimizer, Megatron-FSDP and their overlap."""

from __future__ import annotations

from slipway.configs import Fsdp, Spec
from slipway.planner.rules.registry import MCORE, Broken, Phase, Severity, rule


@rule(
    "fsdp-pp",
    says="Megatron-FSDP is used without pipeline parallelism or interleaving",
    why="NeMo wraps a single model chunk",
    source="NeMo 2.7.3 MegatronStrategy; Megatron-Core docs, Megatron-FSDP",
    severity=Severity.advice,
)
def _fsdp_pp(spec: Spec) -> Broken | None:
    if spec.layout.fsdp is Fsdp.megatron and spec.layout.pp > 1:
        return Broken(f"layout.fsdp=megatron with layout.pp={spec.layout.pp}", "Use layout.pp=1.")
    return None


@rule(
    "overlap-flags",
    says="the parameter gather overlaps with compute only if the gradient reduction does",
    why="without overlap_grad_reduce there is a single bucket, whose gather nothing can hide",
    source=MCORE + "distributed.DistributedDataParallel.__init__ (bucket_size)",
    severity=Severity.advice,
)
def _overlap_flags(spec: Spec) -> Broken | None:
    layout = spec.layout
    if spec.dp == 1 or not layout.overlap_param_gather or layout.overlap_grad_reduce:
        return None
    if not layout.distributed_optimizer:
        return None  # no parameters are gathered
    return Broken(
        "layout.overlap_grad_reduce=false leaves layout.overlap_param_gather nothing to hide under",
        "Leave layout.overlap_grad_reduce on.",
    )


@rule(
    "fsdp-optimizer",
    says="Megatron-FSDP needs the distributed optimizer",
    why="it shards parameters in the distributed optimizer's buffers",
    source="NeMo 2.7.3 MegatronStrategy",
    phase=Phase.step,
)
def _fsdp_optimizer(spec: Spec) -> Broken | None:
    if spec.layout.fsdp is Fsdp.megatron and not spec.layout.distributed_optimizer:
        return Broken(
            "layout.fsdp=megatron with layout.distributed_optimizer=false", "Leave layout.distributed_optimizer on."
        )
    return None
