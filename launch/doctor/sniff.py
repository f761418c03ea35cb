"""A few seconds of matrix products and collectives on every rank, and the name of the node that is slow. GPUs over NCCL, or CPU over Gloo.

One slow GPU or cable holds up all others at every step, and training does not tell which.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SLOW = 0.85  # of the median; healthy GPUs of one kind are within a few per cent of each other
MARK = "SNIFF "  # before the line of JSON that rank 0 prints
_REPEATS = 7


@dataclass(frozen=True)
class Rank:
    """What one rank measured: matrix products in TFLOP/s, and GB/s sent to the next rank while receiving from the one before."""

    rank: int
    node: str
    device: str
    gemm_tflops: float
    neighbour_gb_per_s: float


def _median_seconds(work: Callable[[], Any], finish: Callable[[], Any]) -> float:
    work()
    finish()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        finish()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def sniff() -> None:
    """Measure this rank and, on rank 0, print all ranks as one line of JSON after :data:`MARK`. Run it under torchrun."""
    import torch
    import torch.distributed as dist

    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()

    def finish() -> None:
        if gpu:
            torch.cuda.synchronize()

    n, kind = (8192, torch.bfloat16) if gpu else (768, torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=kind) for _ in range(2))
    dist.barrier()
    gemm = 2 * n**3 / _median_seconds(lambda: a @ b, finish) / 1e12

    size = (256 << 20) if gpu else (4 << 20)
    out = torch.zeros(size, dtype=torch.uint8, device=device)
    into = torch.empty_like(out)

    def pass_on() -> None:
        asked = [dist.P2POp(dist.isend, out, (rank + 1) % world), dist.P2POp(dist.irecv, into, (rank - 1) % world)]
        for work in dist.batch_isend_irecv(asked):
            work.wait()

    dist.barrier()
    speed = size / _median_seconds(pass_on, finish) / 1e9 if world > 1 else 0.0
    everyone = torch.ones(1, device=device)
    dist.all_reduce(everyone)
    if int(everyone.item()) != world:
        raise RuntimeError(f"an all-reduce of ones over {world} ranks gave {everyone.item()}")
    mine = Rank(rank, os.environ.get("SLURMD_NODENAME") or socket.gethostname(), _name(device), gemm, speed).__dict__
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, mine)
    if rank == 0:
        print("\n" + MARK + json.dumps(gathered), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def _name(device: Any) -> str:
    if device.type == "cpu":
        return "CPU"
    import torch

    return torch.cuda.get_device_name(device)


def read(log: str) -> list[Rank]:
    """The ranks that a sniff's log tells of; none if it did not finish."""
    for line in log.splitlines():
        if MARK in line:
            return [Rank(**one) for one in json.loads(line.partition(MARK)[2])]
    return []


def slow(ranks: list[Rank]) -> list[str]:
    """Every rank that is much slower than the median, in words; by its own arithmetic first, as that slows its messages too."""
    out = []
    gemm = statistics.median(r.gemm_tflops for r in ranks)
    link = statistics.median(r.neighbour_gb_per_s for r in ranks)
    for r in ranks:
        if r.gemm_tflops < SLOW * gemm:
            out.append(
                f"{r.node} rank {r.rank} ({r.device}): {r.gemm_tflops / gemm:.2f} of the median in matrix products"
            )
        elif link and r.neighbour_gb_per_s < SLOW * link and _within_node(r, ranks):
            out.append(
                f"{r.node} rank {r.rank} ({r.device}): {r.neighbour_gb_per_s / link:.2f} of the median to its neighbours"
            )
    return out


def _within_node(rank: Rank, ranks: list[Rank]) -> bool:
    """Whether both neighbours are on its own node: only such links are alike."""
    by = {r.rank: r.node for r in ranks}
    return all(by[(rank.rank + d) % len(ranks)] == rank.node for d in (-1, 1))


if __name__ == "__main__":
    sniff()
