"""The planner's 68 % intervals, from predictions of models that the constants were not fitted to, and their coverage.

A group's half-width is a quantile of its errors, drawn towards that of the wider group by as much as one model weighs:
the rows of one model err alike. Coverage is judged with each model's rows left out of the bands that judge them.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.accuracy.cross_validation import Judged
from benchmarks.accuracy.fit import KNOWN
from slipway.planner.bands import COLUMNS, ENOUGH_ROWS, described, format_of

COVERED = 0.68  # of the predictions lie within a band
PARENT_MODELS = 1.0  # models that the wider group's half-width counts as
LEAST = 0.02  # half-width: two runs of one configuration differ by as much

Key = tuple[str, str, str, str]  # GPU, software, experts, format; empty: any


@dataclass(frozen=True)
class Error:
    """One published run: ln(predicted / measured), and the groups that it belongs to, from the widest."""

    keys: tuple[Key, ...]
    model: str
    error: float


def errors(judged: Iterable[Judged]) -> list[Error]:
    """The error of each published run of software with fused attention: no recipe resembles one without."""
    found = []
    for group in judged:
        if not KNOWN.get(group.software, {}).get("flash_attention", True):
            continue
        for point, error in zip(group.points, group.errors, strict=True):
            experts = "yes" if point.moe else "no"
            keys = (
                ("", "", experts, ""),
                (group.gpu, "", experts, ""),
                (group.gpu, group.software, experts, ""),
                (group.gpu, group.software, experts, format_of(point.spec)),
            )
            found.append(Error(keys, point.model, float(error)))
    return found


@dataclass(frozen=True)
class Width:
    """What the runs of a group say of its band."""

    rows: int
    models: int
    half_width: float


def widths(found: Sequence[Error]) -> dict[Key, Width]:
    """The half-width of every group, from the widest to the narrowest, each drawn towards the one around it."""
    out: dict[Key, Width] = {}
    for level in range(len(found[0].keys) if found else 0):
        members: dict[Key, list[Error]] = defaultdict(list)
        for each in found:
            members[each.keys[level]].append(each)
        for key, runs in members.items():
            own = math.log(_quantile(runs))
            models = len({run.model for run in runs})
            if level:
                parent = math.log(out[runs[0].keys[level - 1]].half_width)
                own = (models * own + PARENT_MODELS * parent) / (models + PARENT_MODELS)
            out[key] = Width(len(runs), models, max(math.exp(own), LEAST))
    return out


def _quantile(runs: Sequence[Error]) -> float:
    """The half-width that covers :data:`COVERED` of a group: each model counts alike, whatever its number of rows.

    Where the runs are few, n models of them, a share that is 1 + 1/n times as large covers as much of the next model
    (split conformal prediction, arXiv:1604.04173, section 2.2).
    """
    count = {model: sum(run.model == model for run in runs) for model in {run.model for run in runs}}
    ordered = sorted(runs, key=lambda run: abs(run.error))
    weights = np.cumsum([1.0 / count[run.model] for run in ordered])
    few = len(runs) < ENOUGH_ROWS
    share = min(COVERED * (1.0 + few / len(count)), 1.0)
    at = int(np.searchsorted(weights, share * weights[-1]))
    return max(abs(ordered[min(at, len(ordered) - 1)].error), LEAST)


def coverage(found: Sequence[Error]) -> dict[Key, tuple[int, float]]:
    """Rows, and the share of them within their band, of the groups of a GPU, software and experts.

    The band that judges a model's rows is made without them, so that a model that nobody has measured is judged.
    """
    inside: dict[Key, list[bool]] = defaultdict(list)
    for model in {each.model for each in found}:
        without = widths([each for each in found if each.model != model])
        for each in (each for each in found if each.model == model):
            key = next((key for key in reversed(each.keys) if key in without), None)
            inside[each.keys[2]].append(key is not None and abs(each.error) <= without[key].half_width)
    return {key: (len(values), float(np.mean(values))) for key, values in sorted(inside.items())}


def coverage_table(judged: Sequence[Judged]) -> list[str]:
    """The coverage of every group with enough rows to say something, and of all."""
    covered = coverage(errors(judged))
    lines = ["| group | rows | within the 68 % interval |", "|---|---|---|"]
    for key, (rows, share) in covered.items():
        if rows >= ENOUGH_ROWS:
            lines.append(f"| {described(*key)} | {rows} | {share:.0%} |")
    rows = sum(count for count, _ in covered.values())
    share = sum(count * share for count, share in covered.values()) / rows
    return [*lines, f"| all | {rows} | {share:.0%} |"]


def write(judged: Sequence[Judged], path: Path) -> None:
    """Write the half-widths as the planner reads them."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for key, width in sorted(widths(errors(judged)).items()):
            rows.writerow([*key, width.rows, width.models, f"{width.half_width:.3g}"])
