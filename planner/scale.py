"""How many GPUs: the best layout of a run at several sizes, what it takes, and which size is best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from slipway.configs import Refusal, Resolved
from slipway.planner.cost import Cost, cost_of_seconds
from slipway.planner.course import course
from slipway.planner.goodput import Goodput, goodput, with_save_interval
from slipway.planner.pins import plan_pinned
from slipway.planner.search import Candidate
from slipway.planner.time.step import StepTime

IN_TIME = 0.9
"""The probability with which a size has to meet the deadline."""


class Goal(Enum):
    """What the best size has least of."""

    days = "days"
    dollars = "dollars"
    gpus = "gpus"


@dataclass(frozen=True)
class Size:
    """A run on so many GPUs; ``why_not`` says why there is no layout."""

    gpus: int
    candidate: Candidate | None = None
    step_seconds: float = 0.0  # of all steps, without interruptions
    goodput: Goodput | None = None
    p_in_time: float | None = None  # the probability that it ends by the deadline, where there is one
    why_not: str = ""

    @property
    def seconds(self) -> float:
        """The expected time of the run, interruptions included; infinite where there is none."""
        value = self.goodput.value if self.goodput else 0.0
        return self.step_seconds / value if value else math.inf

    @property
    def cost(self) -> Cost:
        """Of the expected time."""
        assert self.candidate is not None, "a size without a layout has no cost"
        return cost_of_seconds(self.candidate.spec, self.seconds)


def sizes(resolved: Resolved, gpus: Iterable[int], deadline_s: float | None = None) -> Iterator[Size]:
    """The fastest layout of a recipe on each number of GPUs that keeps what is pinned, and what the run then takes."""
    for count in gpus:
        try:
            found = plan_pinned(replace(resolved.spec, gpus=count), resolved.pinned, 1, resolved.untouched)
        except Refusal as refusal:
            yield Size(count, why_not=refusal.message)
            continue
        best = found.candidates[0]
        spec = with_save_interval(best.spec, resolved.untouched)
        run = course(spec)
        lost = goodput(spec, run.parts[-1].step_time_s, best.memory.checkpoint_gib)
        in_time = None if deadline_s is None else _p_in_time(lost, run.seconds, best.time, deadline_s)
        yield Size(count, replace(best, spec=spec), run.seconds, lost, in_time)


def _p_in_time(lost: Goodput, step_seconds: float, time: StepTime, deadline_s: float) -> float:
    if not lost.value:
        return 0.0
    taken = lost.simulate(step_seconds, spread=math.log(time.high_s / time.step_time_s))
    return float((taken <= deadline_s).mean())


def not_dominated(found: Sequence[Size]) -> list[Size]:
    """The sizes of which no other is both faster and cheaper, the fastest first."""
    kept: list[Size] = []
    for size in sorted((size for size in found if math.isfinite(size.seconds)), key=lambda size: size.seconds):
        if not kept or size.cost.gpu_hours < kept[-1].cost.gpu_hours:
            kept.append(size)
    return kept


def best_size(found: Sequence[Size], goal: Goal) -> Size | None:
    """The size that has least of what ``goal`` counts; of those that meet the deadline, where there is one."""
    able = [size for size in found if math.isfinite(size.seconds)]
    able = [size for size in able if size.p_in_time is None or size.p_in_time >= IN_TIME]
    keys = {
        Goal.days: lambda size: size.seconds,
        Goal.dollars: lambda size: size.cost.gpu_hours,  # one price: the order is the same
        Goal.gpus: lambda size: size.gpus,
    }
    return min(able, key=keys[goal], default=None)
