"""How long commands take to answer, as ratios to ``nemo llm pretrain --help`` measured in the same run.

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


def seconds(*words: str, repeats: int) -> float:
    """Median wall time of a command after one warm-up."""
    times = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run([str(BIN / words[0]), *words[1:]], capture_output=True, check=True)
        if i:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    listed = seconds("slipway", "list", repeats=5)
    check = seconds("slipway", "check", "llama3_70b", "layout.tp=4", "layout.pp=4", "layout.cp=2", repeats=5)
    nemo = seconds("nemo", "llm", "pretrain", "--help", repeats=2)
    ours = f"slipway list {listed:.2f} s, slipway check llama3_70b {check:.2f} s"
    print(f"{ours}, nemo llm pretrain --help {nemo:.1f} s: check is {nemo / check:.0f}x as fast to answer")


if __name__ == "__main__":
    main()
