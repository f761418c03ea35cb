"""Fork the ranks of a small CPU world from one process that has already imported NeMo, and collect what they return.

Importing NeMo takes tens of seconds and forking takes milliseconds, so all rehearsals of a session share one import.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GRACE_S = 5.0  # how long the other ranks may run after one has failed
POLL_S = 0.02
LOG_END = 4000  # characters of a failed rank's log that its error carries


class RankFailure(RuntimeError):
    """A rank failed or was killed; ``log`` is the end of what it printed, and ``where`` the whole."""

    def __init__(self, rank: int, log: str, where: Path) -> None:
        super().__init__(f"rank {rank} failed; its log is {where}")
        self.rank = rank
        self.log = log
        self.where = where


@dataclass(frozen=True)
class Outcome:
    """What each rank returned, and the seconds from the fork of the first to the end of the last."""

    results: list[Any]
    seconds: float


def quiet_environment() -> None:
    """One thread a rank, no downloads, no telemetry. Call it before NeMo is imported."""
    os.environ.update(
        OMP_NUM_THREADS="1",
        TOKENIZERS_PARALLELISM="false",
        HF_HUB_OFFLINE="1",
        WANDB_MODE="disabled",
        CUDA_DEVICE_MAX_CONNECTIONS="1",
        GLOO_SOCKET_IFNAME="lo",
    )
    os.environ.pop("NVTE_FLASH_ATTN", None)


def prepare_to_fork() -> None:
    """Check that this process may fork, and exempt its modules from garbage collection to share their memory.

    Raises:
        RuntimeError: another thread runs, and could hold a lock at the moment of the fork.
    """
    if threading.active_count() != 1:
        names = [t.name for t in threading.enumerate()]
        raise RuntimeError(f"ranks can be forked only from a process with one thread; this one has {names}")
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _rank_main(rank: int, world: int, port: int, folder: Path, work: Callable[[int], Any]) -> int:
    """The child's side of the fork. Returns the exit code."""
    os.setpgid(0, 0)  # what a rank starts, such as checkpoint writers, is killed with it
    log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        GROUP_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="slipway",  # keeps Lightning from starting ranks of its own
    )
    try:
        result = work(rank)
        (folder / f"rank{rank}.json").write_text(json.dumps(result))
        return 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def run(world: int, work: Callable[[int], Any], *, timeout_s: float = 300.0, logs: Path | None = None) -> Outcome:
    """Run ``work(rank)`` in ``world`` forked processes and wait for all of them.

    Args:
        world: number of ranks.
        work: called in each child; it returns something that JSON can hold.
        logs: folder for the ranks' output; a temporary one by default.

    Raises:
        RankFailure: the first rank that failed or did not finish in time.
    """
    folder = Path(logs) if logs else Path(tempfile.mkdtemp(prefix="slipway-ranks-"))
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    sys.stdout.flush()
    sys.stderr.flush()
    start = time.monotonic()
    pids: dict[int, int] = {}
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            os._exit(_rank_main(rank, world, port, folder, work))
        pids[pid] = rank
    try:
        codes = _supervise(pids, start + timeout_s)
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, 9)
    failed = [rank for rank, code in codes.items() if code != 0]
    if failed:
        # a rank that was killed here only waited for the one that failed by itself
        rank = next((r for r in failed if codes[r] > 0), failed[0])
        where = folder / f"rank{rank}.log"
        raise RankFailure(rank, where.read_text(errors="replace")[-LOG_END:], where)
    results = [json.loads((folder / f"rank{r}.json").read_text()) for r in range(world)]
    return Outcome(results, time.monotonic() - start)


def _supervise(pids: dict[int, int], deadline: float) -> dict[int, int]:
    """The exit code of each rank. After a failure or the deadline, the ranks that still run are killed."""
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        for pid, rank in pids.items():
            if rank in codes:
                continue
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[rank] = os.waitstatus_to_exitcode(status)
                if codes[rank]:
                    deadline = min(deadline, time.monotonic() + GRACE_S)
        if time.monotonic() > deadline:
            for pid, rank in pids.items():
                if rank not in codes:
                    os.kill(pid, 9)
                    os.waitpid(pid, 0)
                    codes[rank] = -9
        time.sleep(POLL_S)
    return codes
