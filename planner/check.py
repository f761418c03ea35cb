"""``check``: one spec judged by the rules, and its memory and time."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass, replace

from slipway.configs import Refusal, Spec
from slipway.planner.bands import band_warning
from slipway.planner.calibration import calibration_for, calibration_warning
from slipway.planner.memory.estimate import Memory, workload_expert_load, workload_memory
from slipway.planner.memory.probability import probability_of_fit
from slipway.planner.parameters import ParameterCount, parameters
from slipway.planner.rules import Framework, Severity, Violation, violations
from slipway.planner.time.step import StepTime, workload_step_time
from slipway.planner.workload import workload_of

_CALIBRATION_FIX = (
    "Rely on the ranking of layouts more than on seconds; slipway report RUN compares a run with its prediction."
)


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
    p_fits: float = 0.0  # the probability that it fits; see memory.probability

    @property
    def legal(self) -> bool:
        return not self.violations

    @property
    def fits(self) -> bool:
        return self.memory is not None and self.memory.fits


def check(
    spec: Spec,
    framework: Framework = Framework.nemo,
    *,
    dropout: bool = False,
    lifted: Container[str] = (),
) -> Verdict:
    """Judge a complete spec: its legality in the framework that trains it, and if it is legal its memory and time.

    Args:
        dropout: whether the run writes, keeps and reads dropout masks, which no recipe of ours does.
        lifted: ids of rules that do not hold, for a reason that a spec does not hold.
    """
    broken, advice = (
        [found for found in violations(spec, severity, framework) if found.rule not in lifted]
        for severity in (Severity.error, Severity.advice)
    )
    if broken:
        return Verdict(spec, broken, advice, parameters(spec), None, None)
    constants = replace(calibration_for(spec), dropout=True) if dropout else None
    work = workload_of(spec, constants)
    if warning := calibration_warning(spec.gpu, work.calibration):
        advice.append(Violation("calibration", f"{warning}.", _CALIBRATION_FIX))
    if warning := band_warning(spec, work.calibration):
        advice.append(Violation("interval", f"{warning}.", _CALIBRATION_FIX))
    estimate, expert_load = workload_memory(work), workload_expert_load(work)
    p_fits = probability_of_fit(work, estimate)
    return Verdict(spec, broken, advice, work.parameters, estimate, workload_step_time(work), expert_load, p_fits)


def require_fit(spec: Spec, fix: str) -> None:
    """Require that a legal spec fits its GPUs.

    Args:
        fix: how to find a layout that fits.

    Raises:
        Refusal: the stage that needs most, and what its GPU has.
    """
    estimate = workload_memory(workload_of(spec))
    if not estimate.fits:
        raise too_large(spec, estimate, fix)


def too_large(spec: Spec, estimate: Memory, fix: str) -> Refusal:
    """Why a legal spec that does not fit is refused."""
    return Refusal(
        f"{spec.name} needs {estimate.needed_gib:.1f} GiB on stage {estimate.peak_stage.stage} "
        f"and a {spec.gpu.name.upper()} has {estimate.capacity_gib:.1f}",
        fix,
    )
