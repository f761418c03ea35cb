"""A few seconds of matrix products and messages on every rank, to find the slow one. GPUs over NCCL, or CPU over Gloo.

Every rank waits for the slowest at each step, so one slow GPU or cable slows the whole job, and training does not show
which.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

SLOW = 0.85  # of the median: healthy GPUs of one kind differ by a few per cent
MARK = "SNIFF "  # precedes the line of JSON that rank 0 prints
REPEATS = 7  # the median of this many is not moved by one interruption
GPU_MATRIX, CPU_MATRIX = (
    8192,
    768,
)  # rows and columns: large enough to be limited by arithmetic, done within milliseconds
GPU_MESSAGE_BYTES, CPU_MESSAGE_BYTES = 256 << 20, 4 << 20  # large enough to be limited by bandwidth


@dataclass(frozen=True)
class Rank:
    """What one rank measured.

    Attributes:
        gemm_tflops: TFLOP/s of square matrix products, bf16 on a GPU and fp32 on a CPU.
        neighbour_gb_per_s: GB/s sent to the next rank while receiving from the previous one; 0 with one rank.
    """

    rank: int
    node: str
    device: str
    gemm_tflops: float
    neighbour_gb_per_s: float


def sniff() -> None:
    """Measure this rank and, on rank 0, print all ranks as one line of JSON after :data:`MARK`. Run it under torchrun.

    Raises:
        RuntimeError: an all-reduce gave a wrong sum.
    """
    import torch
    import torch.distributed as dist

    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    dist.barrier()
    gemm = _gemm_tflops(device)
    dist.barrier()
    speed = _neighbour_gb_per_s(device, rank, world) if world > 1 else 0.0
    total = torch.ones(1, device=device)
    dist.all_reduce(total)
    if int(total.item()) != world:
        raise RuntimeError(f"an all-reduce of ones over {world} ranks gave {total.item()}")
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, asdict(Rank(rank, node, _name(device), gemm, speed)))
    if rank == 0:
        print("\n" + MARK + json.dumps(gathered), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def _gemm_tflops(device: Any) -> float:
    import torch

    gpu = device.type == "cuda"
    size, dtype = (GPU_MATRIX, torch.bfloat16) if gpu else (CPU_MATRIX, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _median_seconds(lambda: a @ b, device) / 1e12


def _neighbour_gb_per_s(device: Any, rank: int, world: int) -> float:
    import torch
    import torch.distributed as dist

    size = GPU_MESSAGE_BYTES if device.type == "cuda" else CPU_MESSAGE_BYTES
    sent = torch.zeros(size, dtype=torch.uint8, device=device)
    received = torch.empty_like(sent)

    def exchange() -> None:
        send = dist.P2POp(dist.isend, sent, (rank + 1) % world)
        receive = dist.P2POp(dist.irecv, received, (rank - 1) % world)
        for request in dist.batch_isend_irecv([send, receive]):
            request.wait()

    return size / _median_seconds(exchange, device) / 1e9


def _median_seconds(work: Callable[[], Any], device: Any) -> float:
    """The median of :data:`REPEATS` runs, after one that is not counted."""
    import torch

    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _name(device: Any) -> str:
    if device.type == "cpu":
        return "CPU"
    import torch

    return torch.cuda.get_device_name(device)


def read(log: str) -> list[Rank]:
    """The ranks in the log of a finished sniff; none if it did not finish."""
    for line in log.splitlines():
        if MARK in line:
            return [Rank(**rank) for rank in json.loads(line.partition(MARK)[2])]
    return []


def slow(ranks: list[Rank]) -> list[str]:
    """Each rank that is much slower than the median, in words: slow arithmetic first, as it slows messages too."""
    out = []
    gemm = statistics.median(rank.gemm_tflops for rank in ranks)
    link = statistics.median(rank.neighbour_gb_per_s for rank in ranks)
    for rank in ranks:
        who = f"{rank.node} rank {rank.rank} ({rank.device})"
        if rank.gemm_tflops < SLOW * gemm:
            out.append(f"{who}: {rank.gemm_tflops / gemm:.2f} of the median in matrix products")
        elif link and rank.neighbour_gb_per_s < SLOW * link and _within_node(rank, ranks):
            out.append(f"{who}: {rank.neighbour_gb_per_s / link:.2f} of the median to its neighbours")
    return out


def _within_node(rank: Rank, ranks: list[Rank]) -> bool:
    """Whether both neighbours are on the rank's own node: only links within nodes can be compared."""
    nodes = {other.rank: other.node for other in ranks}
    return all(nodes[(rank.rank + step) % len(ranks)] == rank.node for step in (-1, 1))


if __name__ == "__main__":
    sniff()
