"""``slipway compare``: run B against run A, or several seeds of each: speed-up, and loss difference with its noise."""

from __future__ import annotations

import glob
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slipway.configs import Refusal
from slipway.configs.record import record_of
from slipway.configs.schedule import Batches, batches_of
from slipway.launch.runs import pages
from slipway.launch.runs.charts import COLORS, Chart, Line, render
from slipway.launch.runs.pictures import draw_comparison
from slipway.launch.runs.read import Run, find_runs, read_run
from slipway.launch.runs.series import LOSS, STEP_TIME
from slipway.launch.runs.summary import ROWS, WARM_UP_STEPS, Summary, summarize, table

LEAST_COMMON_STEPS = 4  # fewer give no estimate of the noise
BLOCKS = 10  # of one pair's later half: many enough to estimate their spread, long enough to be nearly independent
# 97.5 % quantiles of Student's t distribution with 1, 2, ... degrees of freedom; beyond the last, two standard errors
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
_SHOWN_NOISE = 0.005  # of a speed-up, which is printed with two digits
_STANDARD_ERRORS = 2.0  # half of a 95 % interval of a normal distribution


@dataclass(frozen=True)
class Side:
    """One run, or several runs that differ only in their seed."""

    name: str
    runs: list[Run]


@dataclass(frozen=True)
class Comparison:
    """Side B against side A.

    ``speed_up`` is B's tokens per second over A's, and ``speed_noise`` half of its 95 % interval, None where one run
    recorded too few steps. ``loss_difference`` is relative, B over A less one, and
    ``loss_noise`` is half of its 95 % interval. ``compared`` counts the points at which the losses were compared, which
    are steps or numbers of tokens (``aligned_by``).
    """

    a: str
    b: str
    speed_up: float | None
    speed_noise: float | None
    loss_difference: float
    loss_noise: float
    aligned_by: str
    compared: int
    pairs: int
    sentence: str


@dataclass(frozen=True)
class Aligned:
    """The losses of two runs at the same points ``x``: steps, or millions of tokens. All arrays are of one length."""

    by: str
    x: np.ndarray
    a: np.ndarray
    b: np.ndarray

    @property
    def later(self) -> np.ndarray:
        """ln(b / a) in the later half."""
        half = len(self.x) // 2
        return np.log(self.b[half:]) - np.log(self.a[half:])


def read_side(given: str) -> Side:
    """The runs of one side: a run's folder, a folder of runs, or a pattern such as ``runs/a-*``.

    Raises:
        Refusal: there is no run.
    """
    folder = Path(given)
    paths, name = find_runs(folder), folder.name
    if not folder.exists():
        paths = [run for found in sorted(glob.glob(given)) for run in find_runs(Path(found))]
        name = re.sub(r"(seed|rank|run)?([*?]|\[.*?\])+", "", folder.name).strip(
            "-_."
        )  # without the pattern's wildcards
    if not paths:
        raise Refusal(
            f"{given} holds no run",
            "Give the folder that holds slipway/recipe.json, a folder of such folders, or a pattern.",
        )
    return Side(name or given, [read_run(path) for path in paths])


def align(a: Run, b: Run) -> Aligned:
    """The losses of two runs at the same points: numbers of tokens if their batches differ, else steps.

    Raises:
        Refusal: the runs have too few points in common, or a loss is not finite.
    """
    if a.spec and b.spec and batches_of(a.spec) != batches_of(b.spec):
        aligned = _align_by_tokens(a, b, batches_of(a.spec), batches_of(b.spec))
    else:
        loss_a, loss_b = a.get(LOSS), b.get(LOSS)
        steps, in_a, in_b = np.intersect1d(loss_a.steps, loss_b.steps, return_indices=True)
        aligned = Aligned("step", steps, loss_a.values[in_a], loss_b.values[in_b])
    if len(aligned.x) < LEAST_COMMON_STEPS:
        raise Refusal(
            f"{a.path} and {b.path} have {len(aligned.x)} steps in common",
            f"At least {LEAST_COMMON_STEPS} are needed to compare them.",
        )
    broken = [run.name for run, loss in ((a, aligned.a), (b, aligned.b)) if not np.isfinite(loss).all()]
    if broken:
        raise Refusal(
            f"the loss of {' and of '.join(broken)} is not finite at every step",
            "slipway report RUN shows where it breaks.",
        )
    return aligned


def _align_by_tokens(a: Run, b: Run, batches_a: Batches, batches_b: Batches) -> Aligned:
    """The losses after the same number of tokens, where A logged its own."""
    loss_a, loss_b = a.get(LOSS), b.get(LOSS)
    tokens_a, tokens_b = (
        np.array([batches.tokens_at(int(step) + 1) for step in loss.steps], float)
        for loss, batches in ((loss_a, batches_a), (loss_b, batches_b))
    )
    common = (tokens_a >= tokens_b[0]) & (tokens_a <= tokens_b[-1]) if len(tokens_b) else np.zeros(len(tokens_a), bool)
    points = tokens_a[common]
    if not len(points):
        return Aligned("tokens", points, points, points)
    at_points = (np.interp(points, tokens_a, loss_a.values), np.interp(points, tokens_b, loss_b.values))
    return Aligned("tokens", points / 1e6, *at_points)


def pair(a: Side, b: Side) -> list[tuple[Run, Run]]:
    """The runs that belong together: one of each side, or those of the same seed, which see the same data.

    Raises:
        Refusal: there are several runs, and their seeds are not the same on both sides.
    """
    if len(a.runs) == len(b.runs) == 1:
        return [(a.runs[0], b.runs[0])]
    seeds_a, seeds_b = _seeds(a), _seeds(b)
    run_a, run_b = dict(zip(seeds_a, a.runs, strict=True)), dict(zip(seeds_b, b.runs, strict=True))
    same = sorted(seeds_a, key=str) == sorted(seeds_b, key=str)
    if None in seeds_a or not same or len(run_a) != len(seeds_a):
        listed = " and ".join(
            f"{side.name} has {', '.join(map(str, seeds))}" for side, seeds in ((a, seeds_a), (b, seeds_b))
        )
        raise Refusal(
            f"of several runs the seeds must be the same on both sides, each once: {listed}",
            "Train both with run.seed=1,2,3.",
        )
    return [(run, run_b[seed]) for seed, run in run_a.items()]


def _seeds(side: Side) -> list[int | None]:
    return [run.spec.run.seed if run.spec else None for run in side.runs]


def loss_difference(pairs: list[Aligned], blocks: int = BLOCKS) -> tuple[float, float]:
    """The relative difference of the losses in their later half, and half of its 95 % interval.

    The interval of several pairs is that of Student's t distribution over the pairs. That of one pair is two standard
    errors of the means of ``blocks`` blocks, because neighbouring steps are correlated (Flyvbjerg and Petersen 1989);
    it does not contain the variation between seeds.
    """
    if len(pairs) == 1:
        ratio = pairs[0].later
        means = np.array([block.mean() for block in np.array_split(ratio, min(blocks, len(ratio)))])
        mean, factor = float(ratio.mean()), _STANDARD_ERRORS
    else:
        means = np.array([aligned.later.mean() for aligned in pairs])
        mean, factor = float(means.mean()), _student(len(pairs) - 1)
    return math.expm1(mean), factor * float(means.std(ddof=1)) / math.sqrt(len(means))


def _student(degrees_of_freedom: int) -> float:
    return _STUDENT[degrees_of_freedom - 1] if degrees_of_freedom <= len(_STUDENT) else _STANDARD_ERRORS


def compare(a: Side, b: Side) -> Comparison:
    """Compare the speed and the loss of two sides.

    Raises:
        Refusal: the runs cannot be compared.
    """
    return _Compared.of(a, b).result


@dataclass(frozen=True)
class _Compared:
    """A comparison and what it was made from, each computed once."""

    pairs: list[Aligned]
    summaries: list[Summary]  # of A's runs, then of B's
    result: Comparison

    @classmethod
    def of(cls, a: Side, b: Side) -> _Compared:
        pairs = [align(*runs) for runs in pair(a, b)]
        of_a, of_b = [summarize(run) for run in a.runs], [summarize(run) for run in b.runs]
        difference, noise = loss_difference(pairs)
        speed_up = _speed_up(of_a, of_b)
        speed_noise = _speed_noise(a, b) if speed_up else None
        result = Comparison(
            a=a.name,
            b=b.name,
            speed_up=speed_up,
            speed_noise=speed_noise,
            loss_difference=difference,
            loss_noise=noise,
            aligned_by=pairs[0].by,
            compared=min(len(aligned.x) for aligned in pairs),
            pairs=len(pairs),
            sentence=_sentence(a.name, b.name, (speed_up, speed_noise), difference, noise, len(pairs)),
        )
        return cls(pairs, of_a + of_b, result)


def _speed_up(of_a: list[Summary], of_b: list[Summary]) -> float | None:
    """The median speed of B's runs over that of A's; None if a side recorded none."""
    rates = [[s.tokens_per_s_per_gpu for s in side if s.tokens_per_s_per_gpu] for side in (of_a, of_b)]
    return float(np.median(rates[1]) / np.median(rates[0])) if all(rates) else None


def _speed_noise(a: Side, b: Side) -> float | None:
    """Half of the 95 % interval of the ratio of the sides' speeds.

    Of one run it follows from the medians of blocks of its step times, of several from their medians; what a rerun on
    another day would change is not in it.
    """
    variance = 0.0
    for side in (a, b):
        times = [run.of_last_start(STEP_TIME, WARM_UP_STEPS).values for run in side.runs]
        parts = np.array_split(times[0], min(BLOCKS, len(times[0]) // 2 or 1)) if len(times) == 1 else times
        medians = np.log([np.median(part) for part in parts if len(part)])
        if len(medians) < 2:
            return None
        variance += (_student(len(medians) - 1) ** 2) * float(medians.var(ddof=1)) / len(medians)
    return math.sqrt(variance)


def _faster(a: str, b: str, speed_up: float, noise: float | None) -> str:
    if noise is None or noise < _SHOWN_NOISE:
        return f"{b} is {speed_up:.2f}x as fast as {a}; "
    ratio = f"{b} is {speed_up:.2f}x as fast as {a} +- {noise:.2f}"
    return f"{ratio}, which is no significant difference; " if abs(math.log(speed_up)) <= noise else f"{ratio}; "


def _sentence(
    a: str, b: str, speed: tuple[float | None, float | None], difference: float, noise: float, pairs: int
) -> str:
    if abs(difference) <= noise:
        verdict = "no significant difference"
    else:
        verdict = "significantly lower" if difference < 0 else "significantly higher"
        if pairs == 1:
            verdict += " for this seed; another seed may change the loss as much"
    faster = _faster(a, b, speed[0], speed[1]) if speed[0] else ""
    over = f" over {pairs} seeds" if pairs > 1 else ""
    return f"{faster}its loss differs by {difference:+.2%} +- {noise:.2%}{over}: {verdict}."


def differences(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """The keys in which the runs' recipes differ, each with the runs' values."""
    specs = [_flat(record_of(run.spec)) if run.spec else {} for run in runs]
    keys = sorted({key for spec in specs for key in spec})
    values = [(key, [str(spec.get(key, "")) for spec in specs]) for key in keys]
    return [(key, of_runs) for key, of_runs in values if len(set(of_runs)) > 1]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def distinct_names(runs: list[Run]) -> list[str]:
    """A name of each run, with as much of its path as tells it from the others."""
    paths = [run.path.absolute().parts for run in runs]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return names


def _times(runs: list[Run], names: list[str]) -> Chart:
    series = [run.get(STEP_TIME) for run in runs]
    lines = [
        Line(name, of_run.steps, of_run.values, COLORS[i % len(COLORS)])
        for i, (name, of_run) in enumerate(zip(names, series, strict=True))
    ]
    return Chart("Step time (s)", lines, from_zero=True)


def write_comparison(a: Side, b: Side, out: Path) -> tuple[Comparison, list[Path]]:
    """Compare two sides and write compare.png, compare.html and compare.json into ``out``. Returns also their paths.

    Raises:
        Refusal: the runs cannot be compared, or the folder cannot be written.
    """
    compared = _Compared.of(a, b)
    runs = [*a.runs, *b.runs]
    of_run = [dict(table(summary)) for summary in compared.summaries]
    rows = [
        [row.label, *(values.get(row.label, "") for values in of_run)]
        for row in ROWS
        if any(row.label in values for values in of_run)
    ]
    names = distinct_names(runs)
    numbers = pages.table(rows, ["", *names])
    changed = [[key, *values] for key, values in differences(runs)]
    page = pages.Page(
        name="compare",
        title=f"{b.name} compared with {a.name}",
        lead=compared.result.sentence,
        picture_name="compare.png",
        picture=draw_comparison(compared.pairs, compared.result),
        data=pages.as_json(compared.result),
        after=pages.section("Numbers", numbers)
        + (
            pages.section("What differs in the configurations", pages.table(changed, ["key", *names]))
            if changed
            else ""
        )
        + render([_times(runs, names)]),
    )
    return compared.result, pages.write(page, out)
