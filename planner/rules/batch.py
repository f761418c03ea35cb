"""Rules of the world size and the global batch."""

from __future__ import annotations

from slipway.configs import Spec
from slipway.planner.rules.registry import MCORE, Broken, Severity, divisors, nearest_values, rule


@rule(
    "world-size",
    says="TP x PP x CP divides the GPUs",
    why="the quotient is the number of data-parallel ranks",
    source=MCORE + "parallel_state.initialize_model_parallel",
)
def _world_size(spec: Spec) -> Broken | None:
    layout = spec.layout
    ranks = layout.tp * layout.pp * layout.cp
    if spec.gpus % ranks == 0:
        return None
    above = -(-spec.gpus // ranks) * ranks
    return Broken(
        f"tp={layout.tp} x pp={layout.pp} x cp={layout.cp} = {ranks} does not divide gpus={spec.gpus}",
        f"Use gpus={nearest_values(spec.gpus, [above - ranks, above]) if above > ranks else above}.",
    )


@rule(
    "expert-world",
    says="ETP x EP x PP divides the GPUs",
    why="the quotient is the number of expert-data-parallel ranks",
    source=MCORE + "parallel_state.initialize_model_parallel",
)
def _expert_world(spec: Spec) -> Broken | None:
    layout, gpus = spec.layout, spec.gpus
    ranks = layout.expert_tp * layout.ep * layout.pp
    if gpus % ranks == 0:
        return None
    each = layout.pp * layout.expert_tp
    most = gpus // each if gpus % each == 0 else 0
    legal = [ep for ep in divisors(max(spec.model.num_moe_experts, 1)) if most and most % ep == 0]
    return Broken(
        f"etp={layout.expert_tp} x ep={layout.ep} x pp={layout.pp} = {ranks} does not divide gpus={gpus}",
        f"Use layout.ep={nearest_values(layout.ep, legal)}." if legal else "Use layout.etp=1.",
    )


@rule(
    "whole-nodes",
    says="a run takes whole nodes",
    why="SLURM and torchrun start the same number of ranks on every node",
    source="NeMo-Run SlurmExecutor nodes x ntasks_per_node",
    severity=Severity.advice,
)
def _whole_nodes(spec: Spec) -> Broken | None:
    per_node = spec.gpus_per_node
    if spec.gpus <= per_node or spec.gpus % per_node == 0:
        return None
    below = spec.gpus // per_node * per_node
    return Broken(
        f"gpus={spec.gpus} is not a multiple of the {per_node} GPUs of a {spec.gpu.name} node",
        f"Use gpus={below} or {below + per_node}.",
    )


@rule(
    "batch",
    says="the global batch is a multiple of micro-batch x data-parallel ranks",
    why="every rank gets the same number of micro-batches",
    source=MCORE + "num_microbatches_calculator",
)
def _batch(spec: Spec) -> Broken | None:
    return batch_is_divided(spec, spec.layout.gbs)


def batch_is_divided(spec: Spec, gbs: int) -> Broken | None:
    """Whether a global batch of ``gbs`` sequences gives every rank whole micro-batches."""
    layout, dp = spec.layout, spec.dp
    unit = layout.mbs * dp
    if not dp or gbs % unit == 0:
        return None
    if gbs < unit:
        return Broken(
            f"layout.gbs={gbs} cannot feed {dp} data-parallel ranks with layout.mbs={layout.mbs}: "
            f"{unit} sequences are needed",
            f"Use layout.gbs={unit}, or fewer GPUs.",
        )
    below = gbs // unit * unit
    return Broken(
        f"layout.gbs={gbs} is not a multiple of mbs={layout.mbs} x dp={dp} = {unit}",
        f"Use layout.gbs={below} or {below + unit}.",
    )
