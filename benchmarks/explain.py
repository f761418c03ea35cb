"""How fast ``slipway explain`` reads a large log, and in how much memory.

Writes a log of the given size: the lines of a training run of eight ranks (steps, NeMo's messages, and warnings that
hold the words that failures hold), with one rank out of memory at the end and the echoes of the others. Then each
command reads it in a process of its own.

    python -m benchmarks.explain --gb 2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BIN = Path(sys.executable).parent
RANKS = 8
WARNED_EVERY = 20  # steps between two lines that hold a word of a failure and are none

STEP = (
    "[default0]:Training epoch 0, iteration {step}/9999999 | lr: 0.0003 | global_step: {step} | "
    "reduced_train_loss: 2.345 | train_step_timing in s: 4.21 | consumed_samples: {samples}\n"
)
INFO = "[default{rank}]:[NeMo I 2026-11-27 05:40:24 pl:366] Using FullyParallelSaveStrategyWrapper(torch_dist, 1)\n"
NEAR = (
    "[default{rank}]:[NeMo W 2026-11-27 05:40:24 utils:1] retry {step}: no error, 0 failed reads in the last window\n"
)
END = (
    "[default5]:[rank5]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 5 has a total "
    "capacity of 79.11 GiB of which 1.50 GiB is free.\n"
)
LOST = "[default{rank}]:[rank{rank}]: RuntimeError: Read error [10.0.0.1]:1: Connection reset by peer\n"


def write_log(path: Path, size: int) -> None:
    """A log of about ``size`` bytes."""
    with path.open("w") as f:
        step = written = 0
        while written < size:
            lines = [STEP.format(step=step, samples=512 * step)]
            lines += [INFO.format(rank=rank) for rank in range(RANKS)] if step % 10 == 0 else []
            lines += [NEAR.format(rank=step % RANKS, step=step)] if step % WARNED_EVERY == 0 else []
            text = "".join(lines)
            f.write(text)
            written += len(text)
            step += 1
        f.write(END + "".join(LOST.format(rank=rank) for rank in range(RANKS) if rank != 5))


def read(path: Path) -> dict[str, float | str | int | None]:
    """Explain a log in a process of its own: seconds, MB/s, the peak of its memory, and what it found."""
    began = time.perf_counter()
    words = [str(BIN / "slipway"), "explain", str(path), "--json"]
    child = subprocess.Popen(words, stdout=subprocess.PIPE)
    printed = child.stdout.read() if child.stdout else b""
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"explain ended with {child.returncode}")
    wall = time.perf_counter() - began
    cpu = usage.ru_utime + usage.ru_stime
    found = json.loads(printed)
    megabytes = path.stat().st_size / 1e6
    return {
        "megabytes": round(megabytes),
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
        "mb_per_cpu_s": round(megabytes / cpu),
        "peak_rss_mib": round(usage.ru_maxrss / 1024),
        "class": found["class"],
        "rank": found["rank"],
        "lines": found["logs"][0]["lines"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.0, help="size of the log, GB")
    parser.add_argument("--folder", type=Path, default=None, help="where to write it; a temporary folder if not given")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for size in (1e6, 1e8, given.gb * 1e9):
            path = Path(folder) / "train.log"
            write_log(path, int(size))
            print(json.dumps(read(path)), flush=True)


if __name__ == "__main__":
    main()
