"""How long commands take to answer, beside Python's own start and ``nemo llm pretrain --help``, all in one run.

python -m benchmarks.startup
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
REPEATS = 5
NEMO_REPEATS = 2  # each takes tens of seconds

COMMANDS = (
    "slipway --help",
    "slipway list",
    "slipway check llama3_70b layout.tp=4 layout.pp=4 layout.cp=2",
    "slipway check llama3_70b gpus=64",
)
PYTHON = "python -c pass"
NEMO = "nemo llm pretrain --help"


def seconds(command: str, repeats: int = REPEATS) -> float:
    """Median wall time of a command after one warm-up, s."""
    program, *words = command.split()
    times = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run([str(BIN / program), *words], capture_output=True, check=True)
        if i:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without-nemo", action="store_true", help="skip nemo, which takes about a minute")
    without_nemo: bool = parser.parse_args().without_nemo
    measured = {command: seconds(command) for command in (PYTHON, *COMMANDS)}
    if not without_nemo:
        measured[NEMO] = seconds(NEMO, NEMO_REPEATS)
    longest = max(map(len, measured))
    for command, taken in measured.items():
        ratio = f"{taken / measured[PYTHON]:7.1f} x python"
        faster = f"  {measured[NEMO] / taken:6.0f} x as fast as nemo" if NEMO in measured else ""
        print(f"{command:{longest}}  {taken:7.3f} s  {ratio}{faster}")


if __name__ == "__main__":
    main()
