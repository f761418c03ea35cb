"""What surrounds every rank, whatever starts it: environment variables and, in a container, mounts."""

from __future__ import annotations

from pathlib import Path

from slipway.configs import Refusal, Spec
from slipway.configs.blend import prefixes
from slipway.configs.schema import BLACKWELL
from slipway.launch.executors.cluster_check import CONTROL_CHARACTER

MIN_SHUTDOWN_S = 30  # torchrun's own default


def environment(spec: Spec) -> dict[str, str]:
    """The environment variables of every rank: those that layout and levers need, then the cluster's own, which win."""
    if spec.cluster.accelerator == "cpu":
        ranks = {"OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    else:
        ranks = {
            "TORCH_NCCL_AVOID_RECORD_STREAMS": "1",  # tensors of finished collectives are freed at once
            "TOKENIZERS_PARALLELISM": "false",  # the data loader forks
            "TORCH_NCCL_HIGH_PRIORITY": "1",
        } | _of_levers(spec)
        if not spec.layout.cuda_graphs:  # graphs and expandable segments exclude each other
            ranks["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
        if spec.layout.tp > 1 or spec.layout.cp > 1:
            # Kernels must start in program order to overlap with communication; Blackwell has more queues.
            ranks["CUDA_DEVICE_MAX_CONNECTIONS"] = "32" if spec.gpu.compute_capability >= BLACKWELL else "1"
    # torchrun forwards SIGTERM to the ranks, and kills those that still run after this time
    ranks["PET_SHUTDOWN_TIMEOUT"] = str(max(MIN_SHUTDOWN_S, int(60 * spec.cluster.grace_minutes)))
    return ranks | spec.cluster.env


def _of_levers(spec: Spec) -> dict[str, str]:
    """As NeMo 2.7.3's performance scripts set them (PerfEnvPlugin, scripts/performance/executors.py)."""
    levers = spec.levers
    margin = str(levers.layernorm_sm_margin)
    found = {
        "NCCL_NVLS_ENABLE": str(int(levers.nvls)),
        "NVTE_FWD_LAYERNORM_SM_MARGIN": margin,
        "NVTE_BWD_LAYERNORM_SM_MARGIN": margin,
    }
    if levers.p2p_chunk_bytes and spec.layout.pp > 1:
        found["NCCL_P2P_NET_CHUNKSIZE"] = str(levers.p2p_chunk_bytes)
    return found


def mounts(spec: Spec) -> list[str]:
    """The cluster's mounts, and those that the run needs besides: its folder, its data and its tokenizer."""
    needed = [spec.run.dir, *(str(Path(p).parent) for p in prefixes(spec.data))]
    if spec.data.tokenizer and Path(spec.data.tokenizer).exists():
        needed.append(spec.data.tokenizer)
    given = list(spec.cluster.container_mounts)
    covered = [m.split(":")[0].rstrip("/") for m in given if m.split(":")[0] == m.split(":")[1]]
    for path in dict.fromkeys(needed):
        if any(path == folder or path.startswith(folder + "/") for folder in covered):
            continue
        if "," in path or ":" in path or CONTROL_CHARACTER.search(path):
            raise Refusal(
                f"{path!r} cannot be mounted into a container", "Give a path without commas, colons and line breaks."
            )
        given.append(f"{path}:{path}")
        covered.append(path)
    return given
