"""Bytes that stay on a rank between steps: parameters, gradients and optimizer states."""

from __future__ import annotations

from typing import NamedTuple

from slipway.configs import Fsdp, Spec
from slipway.planner.adapters import adapter_parameters
from slipway.planner.numerics import Numerics
from slipway.planner.parameters import Shard, model_parameters


class States(NamedTuple):
    """Bytes on one rank of one stage."""

    parameters: float
    gradients: float
    optimizer: float


def stage_states(spec: Spec, numerics: Numerics, shard: Shard) -> States:
    """Bytes of a stage whose ranks hold ``shard``, sharded over data-parallel ranks as the layout says."""
    lay = spec.layout
    instances = spec.levers.optimizer_instances
    dense_ranks, expert_ranks = max(max(spec.dp, 1) * lay.cp // instances, 1), max(spec.expert_dp // instances, 1)
    owned = shard.dense / dense_ranks + shard.expert / expert_ranks
    sharded_weights = lay.fsdp is not Fsdp.none
    held = owned if sharded_weights else shard.total
    updated = owned if sharded_weights or lay.distributed_optimizer else shard.total
    gradients, optimizer = numerics.reduced_gradient_bytes * held, numerics.state_bytes * updated
    if lay.optimizer_cpu_offload:
        optimizer = 0.0
    if not spec.task.lora_rank:
        return States(numerics.weight_bytes * held, gradients, optimizer)
    # The weights are frozen. Adapters are spread over the ranks as the weights are, and are never quantized.
    share = adapter_parameters(spec) / model_parameters(spec.model, spec.seq_length)[0]
    return States(
        numerics.weight_bytes * held + numerics.activation_bytes * share * shard.total,
        share * gradients,
        share * optimizer,
    )
