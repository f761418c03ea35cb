"""``slipway compare``: run B against run A, or several of each; how much faster, and whether the loss differs by more than its noise."""

from __future__ import annotations

import glob
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slipway.configs import Refusal
from slipway.launch.runs import page
from slipway.launch.runs.read import LOSS, Run, find_runs, read_run
from slipway.launch.runs.report import ROWS, Summary, draw_times, summarize, table

# 97.5 % quantiles of Student's t by degrees of freedom; beyond, two standard errors
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


@dataclass(frozen=True)
class Side:
    """One run, or several that differ in their seed alone."""

    name: str
    runs: list[Run]


def read_side(given: str) -> Side:
    """A run's folder, a folder of runs, or a pattern such as ``runs/a-*``.

    Raises:
        Refusal: nothing of the kind is there.
    """
    paths = find_runs(Path(given)) or [p for found in sorted(glob.glob(given)) for p in find_runs(Path(found))]
    if not paths:
        raise Refusal(
            f"{given} holds no run",
            "Give the folder that holds slipway/recipe.json, a folder of such folders, or a pattern.",
        )
    return Side(re.sub(r"[*?]|\[.*?\]", "", Path(given).name).strip("-_.") or given, [read_run(path) for path in paths])


@dataclass(frozen=True)
class Comparison:
    """Side B against side A. ``speed_up`` above 1: B is faster per token. The loss difference is relative, B over A.

    ``loss_noise`` is half of its 95 % interval.
    """

    a: str
    b: str
    speed_up: float | None
    loss_difference: float
    loss_noise: float
    aligned_by: str
    compared: int
    pairs: int
    sentence: str


@dataclass(frozen=True)
class Aligned:
    """Two losses at the same points, which are steps or millions of tokens."""

    by: str
    x: np.ndarray
    a: np.ndarray
    b: np.ndarray

    @property
    def later(self) -> np.ndarray:
        """ln(b / a) in the later half."""
        half = len(self.x) // 2
        return np.log(self.b[half:]) - np.log(self.a[half:])


def _tokens(run: Run) -> np.ndarray | None:
    loss = run.get(LOSS)
    return (loss.steps + 1) * float(run.spec.batch.tokens) if run.spec else None


def align(a: Run, b: Run) -> Aligned:
    """The losses of two runs at the same points: of tokens where their batches differ, else of steps.

    Raises:
        Refusal: too few common steps, or a loss that is not finite.
    """
    la, lb = a.get(LOSS), b.get(LOSS)
    ta, tb = _tokens(a), _tokens(b)
    if ta is not None and tb is not None and a.spec and b.spec and a.spec.batch.tokens != b.spec.batch.tokens:
        grid = ta[(ta >= tb[0]) & (ta <= tb[-1])] if len(tb) else np.zeros(0)
        out = Aligned("tokens", grid / 1e6, np.interp(grid, ta, la.values), np.interp(grid, tb, lb.values))
    else:
        steps, ia, ib = np.intersect1d(la.steps, lb.steps, return_indices=True)
        out = Aligned("step", steps, la.values[ia], lb.values[ib])
    if len(out.x) < 4:
        raise Refusal(
            f"{a.path} and {b.path} have {len(out.x)} steps in common", "At least 4 are needed to compare them."
        )
    broken = [run.name for run, loss in ((a, out.a), (b, out.b)) if not np.isfinite(loss).all()]
    if broken:
        raise Refusal(
            f"the loss of {' and of '.join(broken)} is not finite at every step",
            "slipway report RUN shows where it breaks.",
        )
    return out


def pair(a: Side, b: Side) -> list[tuple[Run, Run]]:
    """The runs that belong together: one each, or those of one seed, which see the same data in the same order.

    Raises:
        Refusal: several runs whose seeds are not the same on both sides.
    """
    if len(a.runs) == len(b.runs) == 1:
        return [(a.runs[0], b.runs[0])]
    seeds = [[run.spec.run.seed if run.spec else None for run in side.runs] for side in (a, b)]
    by_seed = [dict(zip(seen, side.runs, strict=True)) for seen, side in zip(seeds, (a, b), strict=True)]
    if None in seeds[0] or sorted(seeds[0], key=str) != sorted(seeds[1], key=str) or len(by_seed[0]) != len(seeds[0]):
        told = " and ".join(
            f"{side.name} has {', '.join(map(str, seen))}" for side, seen in zip((a, b), seeds, strict=True)
        )
        raise Refusal(
            f"of several runs the seeds must be the same on both sides, each once: {told}",
            "Train both with run.seed=1,2,3.",
        )
    return [(run, by_seed[1][seed]) for seed, run in by_seed[0].items()]


def loss_difference(pairs: list[Aligned], blocks: int = 10) -> tuple[float, float]:
    """Relative difference of the later half of the aligned losses, and half of its 95 % interval.

    Of several pairs, by Student's t from pair to pair. Of one, two standard errors of block means, because neighbouring steps
    are correlated (Flyvbjerg and Petersen 1989): that is the noise of this pair, and another seed may move it further.
    """
    count, factor = len(pairs), 2.0
    means = np.array([p.later.mean() for p in pairs])
    if count == 1:
        ratio = pairs[0].later
        count = min(blocks, len(ratio))
        means = np.array([chunk.mean() for chunk in np.array_split(ratio, count)])
        mean = float(ratio.mean())
    else:
        mean = float(means.mean())
        factor = _STUDENT[count - 2] if count - 2 < len(_STUDENT) else 2.0
    return math.expm1(mean), factor * float(means.std(ddof=1)) / math.sqrt(count)


def compare(a: Side, b: Side) -> Comparison:
    """Weigh speed and loss; a Refusal where the runs cannot be compared."""
    return _weigh(a, b, _align(a, b), _summarize(a), _summarize(b))


def _align(a: Side, b: Side) -> list[Aligned]:
    return [align(x, y) for x, y in pair(a, b)]


def _summarize(side: Side) -> list[Summary]:
    return [summarize(run) for run in side.runs]


def _weigh(a: Side, b: Side, pairs: list[Aligned], of_a: list[Summary], of_b: list[Summary]) -> Comparison:
    difference, noise = loss_difference(pairs)
    rates = [[s.tokens_per_s_per_gpu for s in told if s.tokens_per_s_per_gpu] for told in (of_a, of_b)]
    speed = float(np.median(rates[1]) / np.median(rates[0])) if all(rates) else None
    seen = (
        "no difference seen"
        if abs(difference) <= noise
        else ("its loss is lower" if difference < 0 else "its loss is higher")
    )
    if abs(difference) > noise and len(pairs) == 1:
        seen += ", of one run each: another seed may move it as far"
    faster = f"{b.name} is {speed:.2f}x as fast as {a.name}; " if speed else ""
    of = f" over {len(pairs)} seeds" if len(pairs) > 1 else ""
    sentence = f"{faster}its loss differs by {difference:+.2%} +- {noise:.2%}{of}: {seen}."
    return Comparison(
        a.name, b.name, speed, difference, noise, pairs[0].by, min(len(p.x) for p in pairs), len(pairs), sentence
    )


def _draw(a: Side, b: Side, pairs: list[Aligned], result: Comparison) -> Any:
    """Both losses, and below them what B's differ from A's by, with the noise of the mean that is reported."""
    figure, (top, bottom) = page.figure(height=5.6, nrows=2, sharex=True, height_ratios=[2, 1])
    for i, one in enumerate(pairs):
        for side, values, color in ((a, one.a, "C0"), (b, one.b, "C1")):
            label, width = "" if i else side.name, 1.8 / math.sqrt(len(pairs))
            page.curve(top, one.x, values, label, color, width=width, raw=len(pairs) == 1)
        bottom.plot(one.x, page.smooth(100 * (one.b / one.a - 1)), color="C1", linewidth=1.2 / math.sqrt(len(pairs)))
    top.set_ylabel("loss (nats per token)")
    top.legend(frameon=False)
    longest = max((one.x for one in pairs), key=len)
    mean, noise = 100 * result.loss_difference, 100 * result.loss_noise
    bottom.axhline(0, color="0.5", linewidth=1)
    bottom.fill_between(longest[len(longest) // 2 :], mean - noise, mean + noise, color="0.5", alpha=0.25, linewidth=0)
    bottom.set_ylabel("difference (%)")
    bottom.set_xlabel("step" if result.aligned_by == "step" else "tokens (millions)")
    return figure


def write_comparison(a: Side, b: Side, out: Path) -> tuple[Comparison, list[Path]]:
    """Write compare.png, compare.html and compare.json into ``out``."""
    pairs, of_a, of_b = _align(a, b), _summarize(a), _summarize(b)
    result = _weigh(a, b, pairs, of_a, of_b)
    runs = [*a.runs, *b.runs]
    told = [dict(table(summary)) for summary in (*of_a, *of_b)]
    rows = [[label, *(t.get(label, "") for t in told)] for label, _, _ in ROWS if any(label in t for t in told)]
    body = "{picture}<h2>Numbers</h2>" + page.table(rows, ["", *(run.name for run in runs)])
    body += "<h2>Step time</h2>" + page.svg(draw_times(runs))
    drawn = _draw(a, b, pairs, result)
    written = page.write(
        out,
        "compare",
        ("compare.png", drawn),
        f"{a.name} against {b.name}",
        result.sentence,
        body,
        page.as_json(result),
    )
    return result, written
