"""Rules of data parallelism: the distributed optimizer, Megatron-FSDP and their overlap."""

from __future__ import annotations

from slipway.configs import Fsdp, Spec
from slipway.planner.rules.registry import MCORE, Broken, Framework, Phase, Severity, divisors, nearest_values, rule


@rule(
    "fsdp-resume",
    says="no run shards its parameters with Megatron-FSDP",
    why="its runs cannot be resumed: every rank writes the same common.pt at the same time, with an empty state_dict "
    "that the load then takes for the weights; the save of an fp32 model fails; and such a checkpoint can be neither "
    "resharded to pipelines nor exported",
    source="NeMo 2.7.3 lightning.pytorch.strategies.MegatronStrategy._save_fsdp_dtensor_common_state and "
    "_load_fsdp_dtensor_checkpoint, which refer to Megatron-Bridge; NeMo issue 13913; converter to torch_dist: "
    "Megatron-LM pull request 5895",
    phase=Phase.never,
    only_in=Framework.nemo,
)
def fsdp_resume(spec: Spec) -> Broken | None:
    """Refuse Megatron-FSDP wherever a recipe is checked or built."""
    if spec.layout.fsdp is Fsdp.none:
        return None
    return Broken(
        "layout.fsdp=megatron cannot be trained: NeMo 2.7.3 writes checkpoints of it that cannot be resumed",
        "Use layout.fsdp=none, with a larger layout.tp or layout.pp if it does not fit.",
    )


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
    "precision-aware",
    says="the precision-aware optimizer needs the distributed optimizer",
    why="its states have their own dtypes in the distributed optimizer only",
    source=MCORE + "optimizer.OptimizerConfig.__post_init__",
)
def _precision_aware(spec: Spec) -> Broken | None:
    if spec.optim.precision_aware and not spec.layout.distributed_optimizer:
        return Broken(
            "optim.precision_aware=true with layout.distributed_optimizer=false",
            "Use layout.distributed_optimizer=true.",
        )
    return None


@rule(
    "optimizer-instances",
    says="several optimizer instances need the distributed optimizer, and their number divides the data-parallel ranks "
    "of the dense layers and of the experts",
    why="an instance is a part of the ranks that hold the same weights; Megatron-Core makes the groups of experts for "
    "dense models too",
    source=MCORE + "parallel_state.initialize_model_parallel",
)
def _optimizer_instances(spec: Spec) -> Broken | None:
    instances, layout = spec.levers.optimizer_instances, spec.layout
    if instances == 1:
        return None
    if not layout.distributed_optimizer:
        return Broken(
            f"levers.optimizer_instances={instances} with layout.distributed_optimizer=false",
            "Use layout.distributed_optimizer=true.",
        )
    ranks = {"data-parallel ranks": max(spec.dp, 1) * layout.cp, "data-parallel ranks of experts": spec.expert_dp}
    for name, count in ranks.items():
        if count % instances:
            return Broken(
                f"levers.optimizer_instances={instances} does not divide the {count} {name}",
                f"Use levers.optimizer_instances={nearest_values(instances, divisors(count))}.",
            )
    return None
