"""How long the search for a layout takes on one core: llama31_405b on 16,384 H100; pruned against exhaustive.

python -m benchmarks.search
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence

from slipway import configs, planner
from slipway.planner.search import Plan

LARGE = ("llama31_405b", ["gpus=16384", "layout.gbs=2048"])
SMALL = ("llama3_8b", ["gpus=8"])  # small enough to cost every layout


def timed_plan(name: str, overrides: Sequence[str], *, exhaustive: bool = False) -> tuple[Plan, float]:
    """The best layout, and the seconds that its search took."""
    spec = configs.load(name, overrides).spec
    start = time.perf_counter()
    plan = planner.plan(spec, top=1, exhaustive=exhaustive)
    return plan, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    large, large_s = timed_plan(*LARGE)
    everything, exhaustive_s = timed_plan(*SMALL, exhaustive=True)
    pruned, pruned_s = timed_plan(*SMALL)
    best = large.candidates[0].layout
    assert pruned.candidates[0].layout == everything.candidates[0].layout, "pruning must not change the answer"
    sizes = f"TP{best.tp} PP{best.pp} VPP{best.vpp} CP{best.cp} MBS{best.mbs}"
    print(f"405B on 16,384 H100: {sizes} in {large_s:.2f} s on one core")
    print(f"  {large.considered} layouts costed, {large.pruned} pruned, {large.did_not_fit} did not fit")
    ratio = exhaustive_s / pruned_s
    print(f"8B on 8 H100: pruned {ratio:.1f}x as fast as exhaustive ({everything.considered} costed), same answer")


if __name__ == "__main__":
    main()
