"""The layout of what trains: sizes, batch, recompute, switches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from slipway.configs import Dispatcher, Fsdp, Layout, Recompute, Spec
from slipway.configs.schema.layout import AttentionBackend, RecomputeMethod
from slipway.configs.schema.pipeline_layout import DECODER, EMBEDDING, LOSS, PREDICTION, text_of_chunks
from slipway.recipes.readback.parts import Parts, choice, kind_of, value

# Field of the layout -> argument of NeMo's strategy; where the strategy has None, the layout has what follows.
_SIZES: dict[str, tuple[str, int]] = {
    "tp": ("tensor_model_parallel_size", 1),
    "pp": ("pipeline_model_parallel_size", 1),
    "vpp": ("virtual_pipeline_model_parallel_size", 1),
    "cp": ("context_parallel_size", 1),
    "ep": ("expert_model_parallel_size", 1),
    "etp": ("expert_tensor_parallel_size", 0),
    "num_layers_in_first_pipeline_stage": ("num_layers_in_first_pipeline_stage", 0),
    "num_layers_in_last_pipeline_stage": ("num_layers_in_last_pipeline_stage", 0),
}


def read_layout(parts: Parts, base: Spec) -> Layout:
    """The layout of ``parts``. A value that means the same as that of ``base`` is written as ``base`` writes it."""
    changed: dict[str, Any] = {
        name: _or(value(parts.strategy, theirs), default) for name, (theirs, default) in _SIZES.items()
    }
    changed["account_for_embedding"] = bool(value(parts.strategy, "account_for_embedding_in_pipeline_split"))
    changed["account_for_loss"] = bool(value(parts.strategy, "account_for_loss_in_pipeline_split"))
    changed["pipeline_layout"] = _written_pipeline(value(parts.strategy, "pipeline_model_parallel_layout"))
    changed["mbs"] = value(parts.data, "micro_batch_size")
    changed["gbs"] = value(parts.data, "global_batch_size")
    length = value(parts.model, "seq_length")
    changed["seq_length"] = 0 if not base.layout.seq_length and length == base.model.seq_length else length
    sharded = bool(value(parts.strategy, "sequence_parallel"))
    changed["sp"] = None if base.layout.sp is None and sharded == (changed["tp"] > 1) else sharded
    changed["fused_cross_entropy"] = bool(value(parts.model, "cross_entropy_loss_fusion"))
    changed |= _data_parallelism(parts, base.layout)
    changed |= _recompute(parts.model, base.layout)
    if base.model.is_moe:
        changed |= _dispatch(parts.model)
    if not parts.cpu:
        changed |= _kernels(parts, base.layout)
    found = replace(base.layout, **changed)
    return _with_auto_dispatcher(found, base) if base.layout.dispatcher is Dispatcher.auto else found


def _with_auto_dispatcher(layout: Layout, base: Spec) -> Layout:
    """``layout`` with ``auto`` in place of the dispatcher to which that comes."""
    left = replace(layout, dispatcher=Dispatcher.auto)
    return left if replace(base, layout=left).dispatcher is layout.dispatcher else layout


def _written_pipeline(given: Any) -> str:
    """NeMo takes Megatron-Core's notation, or the names of the pieces of each chunk."""
    if not given or isinstance(given, str):
        return given or ""
    letters = {"embedding": EMBEDDING, "decoder": DECODER, "mtp": PREDICTION, "loss": LOSS}
    return text_of_chunks(["".join(letters.get(str(piece), str(piece)) for piece in chunk) for chunk in given])


def _or(given: Any, default: int) -> Any:
    return default if given is None else given


def _data_parallelism(parts: Parts, base: Layout) -> dict[str, Any]:
    ddp, strategy = parts.ddp, parts.strategy
    sharded = bool(value(parts.optim, "use_distributed_optimizer"))
    gathered = bool(value(ddp, "overlap_param_gather"))
    fsdp = value(strategy, "fsdp") or value(strategy, "_fsdp") or value(ddp, "use_megatron_fsdp")
    return {
        "distributed_optimizer": sharded,
        "overlap_grad_reduce": bool(value(ddp, "overlap_grad_reduce")),
        # Parameters that are not sharded are not gathered, whatever the layout says.
        "overlap_param_gather": gathered if sharded or gathered else base.overlap_param_gather,
        "fsdp": Fsdp.megatron if fsdp else Fsdp.none,
        "optimizer_cpu_offload": bool(value(parts.optim, "optimizer_cpu_offload")),
    }


def _recompute(model: Any, base: Layout) -> dict[str, Any]:
    granularity = value(model, "recompute_granularity")
    if granularity == "selective":
        modules = list(value(model, "recompute_modules") or [])
        default = not base.recompute_modules and modules in ([], ["core_attn"])
        return {"recompute": Recompute.selective, "recompute_modules": [] if default else modules}
    if granularity != "full":
        return {"recompute": Recompute.none}
    method, layers = value(model, "recompute_method"), value(model, "recompute_num_layers")
    default_method = base.recompute_method is RecomputeMethod.default and method == RecomputeMethod.uniform.value
    return {
        "recompute": Recompute.full,
        "recompute_method": RecomputeMethod.default if default_method else choice(RecomputeMethod, method or ""),
        "recompute_num_layers": 0 if not base.recompute_num_layers and layers == 1 else _or(layers, 0),
    }


def _dispatch(model: Any) -> dict[str, Any]:
    return {
        "dispatcher": choice(Dispatcher, value(model, "moe_token_dispatcher_type")),
        "moe_expert_capacity_factor": float(value(model, "moe_expert_capacity_factor") or 0.0),
        "moe_pad_expert_input_to_capacity": bool(value(model, "moe_pad_expert_input_to_capacity")),
    }


def _kernels(parts: Parts, base: Layout) -> dict[str, Any]:
    """What only GPUs have: CPU ranks are built without it."""
    model = parts.model
    graphs = bool(value(model, "enable_cuda_graph")) or value(model, "cuda_graph_impl", "none") != "none"
    offloaded = value(model, "cpu_offloading_num_layers") if value(model, "cpu_offloading") else 0
    backend = value(model, "attention_backend")
    of_class = getattr(kind_of(model), "attention_backend", None)
    if base.attention_backend is AttentionBackend.auto and backend is of_class:
        backend = AttentionBackend.auto
    return {
        "tp_comm_overlap": bool(value(model, "tp_comm_overlap")),
        "cuda_graphs": graphs,
        "cpu_offload_layers": offloaded,
        "attention_backend": choice(AttentionBackend, getattr(backend, "name", backend) or "auto"),
    }
