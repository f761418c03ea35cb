"""``check``: one spec judged by the rules, and its memory and time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from slipway.configs import Layout, Spec
from slipway.planner.calibration import calibration_for
from slipway.planner.memory import Memory, expert_load_that_fits, memory
from slipway.planner.parameters import ParameterCount, parameters
from slipway.planner.rules import Severity, Violation, violations
from slipway.planner.stages import chunks_of
from slipway.planner.time.step import StepTime, step_time


@dataclass(frozen=True)
class Verdict:
    """The answer of ``slipway check``. ``memory`` and ``time`` are None where the layout is not legal."""

    spec: Spec
    violations: list[Violation]
    advice: list[Violation]
    parameters: ParameterCount
    memory: Memory | None
    time: StepTime | None
    expert_load: float = math.inf  # times an even load that experts have room for; see memory.expert_load_that_fits

    @property
    def legal(self) -> bool:
        return not self.violations

    @property
    def fits(self) -> bool:
        return self.memory is not None and self.memory.fits


def check(spec: Spec) -> Verdict:
    """Judge a complete spec: its legality, and if it is legal its memory and time."""
    broken, advice = violations(spec), violations(spec, Severity.advice)
    countable = chunks_of(spec) is not None and not spec.model.num_attention_heads % spec.layout.tp
    count = parameters(spec if countable else replace(spec, layout=Layout()))
    if broken:
        return Verdict(spec, broken, advice, replace(count, per_rank=count.per_rank if countable else []), None, None)
    cal = calibration_for(spec)
    return Verdict(
        spec, broken, advice, count, memory(spec, cal), step_time(spec, cal), expert_load_that_fits(spec, cal)
    )
