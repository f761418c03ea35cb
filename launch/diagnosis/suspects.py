"""What in a run's configuration is known to turn a loss into NaN, for a run whose loss did."""

from __future__ import annotations

from pathlib import Path

from slipway.configs import Spec
from slipway.launch.diagnosis.configured import configured_by_log, configured_by_record
from slipway.launch.diagnosis.diagnose import Diagnosis

NOT_A_NUMBER = "nan"  # the class of configs/failures.yaml


def suspects_of(found: Diagnosis, run: Path | None) -> list[str]:
    """What to turn off first, one sentence each; empty for a run that failed otherwise, or is not known.

    Args:
        run: the folder whose record describes the run; None: its logs may, as Megatron-LM's do.
    """
    if found.known is None or found.known.name != NOT_A_NUMBER:
        return []
    configured = configured_by_record(run) if run else None
    configured = configured or next((one for scan in found.scans if (one := configured_by_log(scan.path))), None)
    return suspects(configured.spec, found.rank) if configured else []


def suspects(spec: Spec, rank: int | None) -> list[str]:
    """The settings of a run that are known to give NaN, and the GPU of the rank that had it first.

    Sources: NVIDIA/Megatron-LM issue 2272 and NVIDIA-NeMo/Megatron-Bridge issue 1255 (mxfp8 with overlapped gathers of
    parameters), pytorch/torchtitan issue 1056 (fp8), NVIDIA/Megatron-LM issue 780 (experts).
    """
    layout, precision = spec.layout, spec.precision
    out = []
    if precision.name == "mxfp8" and layout.overlap_param_gather:
        out.append("mxfp8 with overlapped gathers of parameters: layout.overlap_param_gather=false")
    if precision.gemm in ("fp8", "fp4"):
        out.append(f"{precision.name}: train the same steps with precision=bf16")
    if layout.overlap_grad_reduce:
        out.append("overlapped gradient reduction: layout.overlap_grad_reduce=false")
    if layout.tp_comm_overlap:
        out.append("overlapped tensor-parallel communication: layout.tp_comm_overlap=false")
    if not precision.grad_reduce_in_fp32:
        out.append("gradients summed in bf16: precision.grad_reduce_in_fp32=true")
    if rank is not None:
        out.append(f"the GPU of rank {rank}, if the same steps are finite on another node")
    return out
