"""One layout under four pipeline schedules, priced: python -m benchmarks.schedules [NAME KEY=VALUE...]

The default is Llama 3 70B on 64 H100. ``interleaved`` runs with the VPP of the layout, or 2; the others with VPP 1.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

from slipway import configs, planner
from slipway.configs import Schedule, Spec

_NAMES = {"1f1b": "1F1B", "interleaved": "interleaved 1F1B", "gpipe": "GPipe", "zero_bubble": "zero bubble (ZB-H1)"}
_DEFAULT = ("llama3_70b", "gpus=64", "layout.tp=8", "layout.pp=4", "layout.vpp=5", "layout.gbs=32")


@dataclass(frozen=True)
class Row:
    """One schedule: the share of the step in which the busiest stage waits, the fullest stage, and the step."""

    schedule: str
    bubble: float
    peak_gib: float
    fits: bool
    step_time_s: float


def compare(spec: Spec) -> list[Row]:
    """The layout of ``spec`` under every schedule that is legal for it.

    Raises:
        Refusal: the layout is not legal under any schedule.
    """
    rows = []
    for name, words in _NAMES.items():
        vpp = max(spec.layout.vpp, 2) if name == "interleaved" else 1
        trial = replace(spec, layout=replace(spec.layout, schedule=Schedule(name), vpp=vpp))
        verdict = planner.check(trial)
        if verdict.memory and verdict.time:
            time, memory = verdict.time, verdict.memory
            rows.append(Row(words, time.bubble_fraction, memory.peak_gib, memory.fits, time.step_time_s))
    if not rows:
        planner.require_legal(spec)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.schedules", description=__doc__)
    parser.add_argument("recipe", nargs="*", default=_DEFAULT, help="a recipe, and key=value overrides of its layout")
    name, *overrides = parser.parse_args().recipe
    spec = configs.load(name, overrides).spec
    print("| schedule | bubble | peak GiB | fits | step s |")
    print("|---|---|---|---|---|")
    for row in compare(spec):
        fits = "yes" if row.fits else "no"
        print(f"| {row.schedule} | {row.bubble:.1%} | {row.peak_gib:.1f} | {fits} | {row.step_time_s:.2f} |")


if __name__ == "__main__":
    main()
