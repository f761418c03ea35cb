"""What a layout needs on GPUs that NeMo turns on in callbacks only."""

from __future__ import annotations

import dataclasses
from typing import Any

import nemo_run as run
from nemo.collections.llm.recipes.tp_overlap_configs import userbuffers
from nemo.lightning.pytorch.callbacks.megatron_comm_overlap import MegatronCommOverlapCallback
from nemo.lightning.pytorch.callbacks.megatron_enable_experimental_callback import MegatronEnableExperimentalCallback

from slipway.configs import Spec
from slipway.configs.schema import BLACKWELL, Gemm


def gpu_callbacks(spec: Spec) -> list[run.Config]:
    """The callbacks of NeMo without which switches of ``spec`` stop a run on GPUs in its first step."""
    found = []
    if spec.model.is_mla:
        # The fused rotary embedding of multi-latent attention is a function that Megatron-Core calls experimental, and
        # refuses to call without its flag. NeMo's performance script for DeepSeek-V3 adds this callback too.
        found.append(run.Config(MegatronEnableExperimentalCallback))
    if spec.layout.tp_comm_overlap:
        found.append(_userbuffers(spec))
    return found


def _userbuffers(spec: Spec) -> run.Config:
    """The callback that allocates Transformer Engine's user buffers before the first step.

    It also writes the overlap of data parallelism, which is therefore passed to it as the layout has it.
    """
    layout = spec.layout
    return run.Config(
        MegatronCommOverlapCallback,
        tp_comm_overlap=True,
        tp_comm_overlap_cfg=_measured_overlap(spec),
        # The default is MPI where PyTorch has it, which torchrun does not start.
        tp_comm_bootstrap_backend="nccl",
        overlap_grad_reduce=layout.overlap_grad_reduce,
        overlap_param_gather=layout.overlap_param_gather and layout.distributed_optimizer,
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
