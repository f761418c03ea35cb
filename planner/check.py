"""``check``: one spec judged by the rules, and its memory and time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from slipway.configs import Layout, Spec
from slipway.planner.calibration import calibration_warning
from slipway.planner.memory import Memory, workload_expert_load, workload_memory
from slipway.planner.parameters import ParameterCount, parameters
from slipway.planner.rules import Severity, Violation, violations
from slipway.planner.stages import chunks_of
from slipway.planner.time.step import StepTime, workload_step_time
from slipway.planner.workload import workload_of


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
    if broken:
        return Verdict(spec, broken, advice, _count(spec), None, None)
    work = workload_of(spec)
    return Verdict(
        spec,
        broken,
        advice + _calibration_advice(spec),
        work.parameters,
        workload_memory(work),
        workload_step_time(work),
        workload_expert_load(work),
    )


def _count(spec: Spec) -> ParameterCount:
    """The parameters of an illegal spec: of the whole model only, where its layers or heads cannot be divided."""
    if chunks_of(spec) is not None and not spec.model.num_attention_heads % spec.layout.tp:
        return parameters(spec)
    return replace(parameters(replace(spec, layout=Layout())), per_rank=[])


def _calibration_advice(spec: Spec) -> list[Violation]:
    """A warning where the predicted time rests on constants that were not fitted to this GPU."""
    warning = calibration_warning(spec.gpu.name)
    fix = "Rely on the ranking of layouts more than on seconds; slipway report RUN compares a run with its prediction."
    return [Violation("calibration", f"{warning}.", fix)] if warning else []
