"""What NeMo turns on in callbacks only, on GPUs."""

from __future__ import annotations

import dataclasses
from typing import Any

import nemo_run as run
from nemo.collections.llm.recipes.tp_overlap_configs import userbuffers
from nemo.lightning.pytorch.callbacks.garbage_collection import GarbageCollectionCallback
from nemo.lightning.pytorch.callbacks.megatron_comm_overlap import MegatronCommOverlapCallback
from nemo.lightning.pytorch.callbacks.megatron_enable_experimental_callback import MegatronEnableExperimentalCallback

from slipway.configs import Spec
from slipway.configs.schema import BLACKWELL, Gemm
from slipway.planner.levers import aligns_param_gather, bucket_size


def gpu_callbacks(spec: Spec) -> list[run.Config]:
    """The callbacks of NeMo that switches of ``spec`` need on GPUs."""
    found = []
    if spec.model.is_mla:
        # The fused rotary embedding of multi-latent attention is a function that Megatron-Core calls experimental, and
        # refuses to call without its flag. NeMo's performance script for DeepSeek-V3 adds this callback too.
        found.append(run.Config(MegatronEnableExperimentalCallback))
    if spec.layout.tp_comm_overlap or spec.levers.wgrad_deferral_limit:
        found.append(_overlap(spec))
    if interval := spec.levers.gc_interval:
        found.append(run.Config(GarbageCollectionCallback, gc_interval_train=interval, gc_interval_val=interval))
    return found


def _overlap(spec: Spec) -> run.Config:
    """The callback that allocates Transformer Engine's user buffers, and defers weight gradients of the output layer.

    Megatron-Core refuses the deferral in a configuration that does not know its pipeline yet, as NeMo's has until its
    strategy has merged its sizes: the callback sets it afterwards. It also writes the overlap of data parallelism,
    which is therefore passed to it as the layout has it.
    """
    layout, levers = spec.layout, spec.levers
    overlaps = layout.tp_comm_overlap
    return run.Config(
        MegatronCommOverlapCallback,
        tp_comm_overlap=overlaps,
        tp_comm_overlap_cfg=_measured_overlap(spec) if overlaps else None,
        # The default is MPI where PyTorch has it, which torchrun does not start.
        tp_comm_bootstrap_backend="nccl" if overlaps else None,
        overlap_grad_reduce=layout.overlap_grad_reduce,
        overlap_param_gather=layout.overlap_param_gather and layout.distributed_optimizer,
        overlap_param_gather_with_optimizer_step=levers.overlap_param_gather_with_optimizer_step,
        align_param_gather=aligns_param_gather(spec),
        bucket_size=bucket_size(spec),
        defer_embedding_wgrad_compute=levers.wgrad_deferral_limit > 0,
        wgrad_deferral_limit=levers.wgrad_deferral_limit,
    )


def _measured_overlap(spec: Spec) -> run.Config | None:
    """NeMo's own settings of each overlapped GEMM, which it has for some shapes; None: Transformer Engine's default."""
    layout = spec.layout
    gpu = "b200" if spec.gpu.compute_capability >= BLACKWELL else "h100"
    format_ = "fp8" if spec.precision.gemm is Gemm.fp8 else "bf16"
    context = f"_cp{layout.cp}" if layout.cp > 1 else ""
    shape = f"h{spec.model.hidden_size}_tp{layout.tp}{context}_mbs{layout.mbs}_seqlen{spec.seq_length}"
    settings = getattr(userbuffers, f"userbuffers_{format_}_{gpu}_{shape}", None)
    if settings is None:
        return None
    products = _fields(settings)
    return run.Config(
        type(settings), **{name: run.Config(type(each), **_fields(each)) for name, each in products.items()}
    )


def _fields(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass (NeMo adds attributes that are not), with lists for tuples, which YAML has not."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
