"""How long commands take to answer, beside their aims, Python's own start and ``nemo llm pretrain --help``, in one run.

CPU seconds are what a command takes on an idle machine; wall seconds also have what else the machine does.

python -m benchmarks.startup
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

BIN = Path(sys.executable).parent
REPEATS = 5
NEMO_REPEATS = 2  # each takes tens of seconds

COMMANDS = {
    "slipway --help": 0.15,
    "slipway list": 0.0,
    "slipway check llama3_70b layout.tp=4 layout.pp=4 layout.cp=2": 0.0,
    "slipway check llama3_70b gpus=64": 0.35,
    "slipway check qwen3_235b_a22b": 1.0,
}
"""Each command and the CPU seconds that it may take; 0: no aim. The last two search for a layout."""
PYTHON = "python -c pass"
NEMO = "nemo llm pretrain --help"


class Taken(NamedTuple):
    """Medians of a command's runs after one warm-up, s."""

    cpu: float
    wall: float


# An installed package has its bytecode; with this variable a checkout would be compiled at every start.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def taken_by(command: str, repeats: int = REPEATS) -> Taken:
    program, *words = command.split()
    cpu, wall = [], []
    for i in range(repeats + 1):
        start, used = time.perf_counter(), _children_cpu()
        subprocess.run([str(BIN / program), *words], capture_output=True, check=True, env=_ENVIRONMENT)
        if i:
            wall.append(time.perf_counter() - start)
            cpu.append(_children_cpu() - used)
    return Taken(statistics.median(cpu), statistics.median(wall))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without-nemo", action="store_true", help="skip nemo, which takes about a minute")
    without_nemo: bool = parser.parse_args().without_nemo
    measured = {command: taken_by(command) for command in (PYTHON, *COMMANDS)}
    if not without_nemo:
        measured[NEMO] = taken_by(NEMO, NEMO_REPEATS)
    longest = max(map(len, measured))
    print(f"{'':{longest}}  {'CPU':>7}  {'aim':>6}  {'wall':>7}  {'CPU over that of':>16}")
    print(f"{'':{longest}}  {'s':>7}  {'s':>6}  {'s':>7}  {'python':>7}" + ("     nemo" if not without_nemo else ""))
    for command, taken in measured.items():
        aim = COMMANDS.get(command, 0.0)
        line = f"{command:{longest}}  {taken.cpu:7.3f}  {f'{aim:.2f}' if aim else '':>6}  {taken.wall:7.3f}"
        line += f"  {taken.cpu / measured[PYTHON].cpu:7.1f}"
        print(line + (f"  {taken.cpu / measured[NEMO].cpu:7.3f}" if NEMO in measured else ""))


if __name__ == "__main__":
    main()
