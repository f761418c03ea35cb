"""Rules that Megatron-LM's own training loop adds to those of Megatron-Core: what its ``validate_args`` asserts."""

from __future__ import annotations

from slipway.configs import Fsdp, Spec
from slipway.planner.rules.registry import Broken, Framework, rule

_SOURCE = "Megatron-LM core_v0.15.3 megatron/training/arguments.py validate_args"


@rule(
    "overlap-param-gather",
    says="Megatron-LM overlaps the parameter gather only with the distributed optimizer or Megatron-FSDP, and together "
    "with the gradient reduction",
    why="without sharded states there are no parameters to gather",
    source=_SOURCE,
    only_in=Framework.megatron_lm,
)
def _overlap_param_gather(spec: Spec) -> Broken | None:
    layout = spec.layout
    if not layout.overlap_param_gather:
        return None
    if not layout.distributed_optimizer and layout.fsdp is Fsdp.none:
        return Broken(
            "layout.overlap_param_gather=true with layout.distributed_optimizer=false",
            "Use layout.distributed_optimizer=true.",
        )
    if not layout.overlap_grad_reduce:
        return Broken(
            "layout.overlap_param_gather=true with layout.overlap_grad_reduce=false",
            "Use layout.overlap_grad_reduce=true.",
        )
    return None


@rule(
    "positions",
    says="Megatron-LM trains on sequences of at most max_position_embeddings tokens",
    why="it asserts so, whatever the kind of positions",
    source=_SOURCE,
    only_in=Framework.megatron_lm,
)
def _positions(spec: Spec) -> Broken | None:
    if spec.seq_length <= spec.model.max_position_embeddings:
        return None
    return Broken(
        f"layout.seq_length={spec.seq_length} with model.max_position_embeddings={spec.model.max_position_embeddings}",
        f"Use model.max_position_embeddings={spec.seq_length}.",
    )
