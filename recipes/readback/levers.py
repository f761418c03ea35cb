"""The levers of what trains. What surrounds a rank, its environment, is not in the recipe: it stays the base's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nemo.lightning.pytorch.callbacks.garbage_collection import GarbageCollectionCallback
from nemo.lightning.pytorch.callbacks.megatron_comm_overlap import MegatronCommOverlapCallback

from slipway.configs import Layout, Levers, Spec
from slipway.configs.schema import CudaGraphScope
from slipway.planner.levers import aligns_param_gather, bucket_size
from slipway.recipes.readback.parts import Parts, choice, kind_of, value

_CUDA_GRAPH_SCOPES = {
    "full": CudaGraphScope.layer.value,
    "attn": CudaGraphScope.attention.value,
}  # Megatron-Core's words


def read_levers(parts: Parts, base: Spec, layout: Layout, gpus: int) -> Levers:
    """The levers of ``parts``, whose layout and number of GPUs are given. A value that is left to NeMo stays so."""
    ddp, strategy, optim = parts.ddp, parts.strategy, parts.optim
    changed: dict[str, Any] = {
        "check_for_nan": bool(value(ddp, "check_for_nan_in_grad")),
        "optimizer_instances": value(strategy, "num_distributed_optimizer_instances", 1),
        "sharp": bool(value(strategy, "use_sharp")),
        "overlap_param_gather_with_optimizer_step": bool(value(optim, "overlap_param_gather_with_optimizer_step")),
        "expert_comm_overlap": bool(value(parts.model, "overlap_moe_expert_parallel_comm")),
        "delay_wgrad": bool(value(parts.model, "delay_wgrad_compute")),
    }
    left = replace(base, layout=layout, gpus=gpus)
    aligned = bool(value(ddp, "align_param_gather"))
    changed["align_param_gather"] = base.levers.align_param_gather
    if aligned != aligns_param_gather(left):
        changed["align_param_gather"] = aligned
    bucket = value(ddp, "bucket_size") or 0
    changed["bucket_size"] = base.levers.bucket_size if bucket == bucket_size(left) else bucket
    if not parts.cpu:
        changed |= _of_gpus(parts)
    return replace(base.levers, **changed)


def _of_gpus(parts: Parts) -> dict[str, Any]:
    """What only GPUs have: CPU ranks are built without it."""
    scope = value(parts.model, "cuda_graph_scope", "full")
    collector = _callback(parts, GarbageCollectionCallback)
    overlap = _callback(parts, MegatronCommOverlapCallback)
    given = value(overlap, "user_comm_overlap_cfg", overlap)  # where a callback that is built keeps its arguments
    defers = value(given, "defer_embedding_wgrad_compute") or value(parts.model, "defer_embedding_wgrad_compute")
    limit = value(given, "wgrad_deferral_limit") or value(parts.model, "wgrad_deferral_limit")
    return {
        "moe_router_fusion": bool(value(parts.model, "moe_router_fusion")),
        "cuda_graph_scope": choice(CudaGraphScope, _CUDA_GRAPH_SCOPES.get(scope, scope)),
        "gc_interval": value(collector, "gc_interval_train", 0),
        "wgrad_deferral_limit": limit if defers else 0,
    }


def _callback(parts: Parts, kind: type) -> Any:
    """The callback of this class; None where there is none."""
    return next((each for each in parts.callbacks if kind_of(each) is kind), None)
