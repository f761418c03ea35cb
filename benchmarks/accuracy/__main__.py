"""How far the planner is from published measurements, by cross-validation over whole models.

    python -m benchmarks.accuracy TRUTH/throughput.csv --out docs/img/accuracy.png
    python -m benchmarks.accuracy TRUTH/throughput.csv --write    intervals, to configs/calibration
    python -m benchmarks.accuracy TRUTH/throughput.csv --golden TRUTH/megatron_golden_memory.csv
    python -m benchmarks.accuracy TRUTH/throughput.csv --calibrate docs/img/calibrate.png

Each group is one GPU under one software generation. A model's rows are predicted with constants that were fitted
without any row of that model. Where a group has one model only, its pool's constants (or the priors) predict it. The
whole report, docs/accuracy.md, is written by benchmarks.figures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.accuracy import bands, few_rows, golden, tables
from benchmarks.accuracy.cross_validation import judge
from benchmarks.accuracy.fit import residuals
from benchmarks.accuracy.points import load
from benchmarks.accuracy.scatter import draw
from slipway.planner.bands import ERRORS
from slipway.planner.calibration import calibration_or_nearest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truth", type=Path, help="a CSV with the columns that `slipway validate` reads")
    parser.add_argument("--out", type=Path, help="draw predicted against measured speed into this PNG")
    parser.add_argument(
        "--golden", type=Path, help="Megatron-LM's golden memory values: compare these and nothing else"
    )
    parser.add_argument(
        "--order", action="store_true", help="how often close layouts are in the right order, in sample; nothing else"
    )
    parser.add_argument(
        "--calibrate", type=Path, help="calibrate on few rows, predict the rest, draw the curve here; nothing else"
    )
    parser.add_argument("--write", action="store_true", help="write the half-widths of the planner's intervals")
    parser.add_argument("--processes", type=int, default=1, help="groups are fitted in this many processes")
    options = parser.parse_args()
    if options.golden:
        values = golden.load(options.golden)
        print("\n".join([*tables.golden_table(values), "", *tables.golden_sentences(values)]))
        return
    if options.order:
        points = load(options.truth)
        constants = [calibration_or_nearest(point.spec.gpu, point.software) for point in points]
        errors = [float(residuals([p], own)[0]) for p, own in zip(points, constants, strict=True)]
        print("\n".join(tables.order_table(points, errors)))
        return
    if options.calibrate:
        any_model, same_model = (few_rows.curves(options.truth, same_model=same) for same in (False, True))
        print("\n".join([*few_rows.table(any_model), "", *few_rows.table(same_model)]))
        few_rows.draw(any_model, same_model, options.calibrate)
        return
    judged = judge(options.truth, options.processes)
    for table in (tables.group_table, tables.nvidia_table, tables.ranking_table, bands.coverage_table):
        print("\n".join([*table(judged), ""]))
    if options.write:
        bands.write(judged, ERRORS)
        print(f"wrote {ERRORS}")
    if options.out:
        draw(judged, options.out)
        print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
