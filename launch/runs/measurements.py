"""Measured steps: of a run's folder, of a training log of Megatron-LM, or of a table of runs."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

from slipway.configs import Refusal
from slipway.planner.calibrate import Measurement
from slipway.planner.layout import describe
from slipway.planner.rules import first_violation

_ITERATION = re.compile(r"elapsed time per iteration \(ms\): ([\d.]+)")
_WARM_UP_LINES = 3  # of a log: the first lines average over compilation and cold caches


def measurements(path: Path) -> list[Measurement]:
    """The steps that a file or folder holds.

    Raises:
        Refusal: it holds none, or none that the planner can predict.
    """
    if path.is_dir():
        found = list(_of_folder(path))
    elif path.suffix == ".csv":
        found = list(_of_table(path))
    else:
        found = [_of_log(path)]
    for each in found:
        if broken := first_violation(each.spec):
            raise Refusal(f"{each.name} has a layout that the planner refuses: {broken.message}", broken.fix)
    return found


def _of_folder(folder: Path) -> Iterator[Measurement]:
    from slipway.launch.runs.read import find_runs, read_run
    from slipway.launch.runs.summary import spec_as_run, summarize

    paths = find_runs(folder)
    if not paths:
        raise Refusal(f"{folder} holds no run", "Give the folder that holds slipway/recipe.json.")
    for path in paths:
        run = read_run(path)
        spec, seconds = spec_as_run(run), summarize(run).step_time_median_s
        if spec is None:
            device = run.record.device_name or run.record.device or "an unknown device"
            raise Refusal(f"{path} ran on {device}, which the planner does not predict", "Give runs on GPUs.")
        if not seconds:
            raise Refusal(f"{path} has no step times", "Give a run that trained a few steps.")
        yield Measurement(str(path), spec, seconds)


def _of_table(path: Path) -> Iterator[Measurement]:
    from slipway.planner.published.rows import interpret, stated_rate
    from slipway.planner.published.table import read_rows

    rows = read_rows(path)
    reasons = []
    for row, read in zip(rows, interpret(rows), strict=True):
        if read.spec is None:
            reasons.append(read.skipped)
        elif rate := stated_rate(row, read.spec):
            seconds = read.spec.batch.tokens / read.spec.gpus / rate
            yield Measurement(f"{read.spec.name} {describe(read.spec)}", read.spec, seconds)
        else:
            reasons.append("no speed is given")
    if len(reasons) == len(rows):
        raise Refusal(f"no row of {path} is a measurement: {reasons[0]}", "slipway validate says why of each row.")


def _of_log(path: Path) -> Measurement:
    from slipway.launch import foreign
    from slipway.launch.foreign.kinds import training_log

    reading = foreign.read(path, foreign.Request())
    if reading.kind != training_log.NAME:
        raise Refusal(f"{path} is a {reading.kind}, which has no step times", "Give a run's folder or a training log.")
    with path.open(errors="replace") as file:
        times = [float(found[1]) / 1000 for line in file if (found := _ITERATION.search(line))]
    steady = times[_WARM_UP_LINES:] or times
    if not steady or not all(math.isfinite(each) and each > 0 for each in steady):
        raise Refusal(f"{path} has no line with the elapsed time per iteration", "Give a log that trained a few steps.")
    return Measurement(path.name, reading.resolved.spec, statistics.median(steady), reading.dropout)
