"""Constants of one's own: the shipped ones, moved by a few measured steps (maximum a posteriori).

Symbols:
    c_k   a constant; its logarithm, or its logit where it is a share between 0 and 1
    m_k   the shipped value, s_k its uncertainty: how far it differs between software generations
    z_k   (c_k - m_k) / s_k
    r_i   ln(predicted / measured) of measurement i, e its standard deviation where every constant is right
    minimized: sum over i of (r_i / e)^2 + sum over k of z_k^2, by Levenberg-Marquardt with numerical derivatives
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from slipway.configs import Calibration, Spec
from slipway.planner.time.step import step_time


@dataclass(frozen=True)
class Prior:
    """A constant's centre and its plausible spread: of its logarithm, or of its logit for a share between 0 and 1."""

    centre: float
    spread: float
    share: bool = False

    def value_at(self, deviation: float) -> float:
        """The constant that lies ``deviation`` spreads from the centre."""
        if self.share:
            logit = math.log(self.centre / (1 - self.centre)) + deviation * self.spread
            return 1 / (1 + math.exp(-logit))
        return self.centre * math.exp(deviation * self.spread)


# slipway.configs.Calibration says what each constant means. Centres are what datasheets, libraries' own benchmarks and
# profiles of comparable kernels let one expect before any row is read; spreads are wide where these differ.
PRIORS: dict[str, Prior] = {
    "gemm_efficiency": Prior(0.74, 0.40, share=True),
    "fp8_gemm_efficiency": Prior(0.62, 0.15),
    "mxfp8_gemm_efficiency": Prior(0.55, 0.15),
    "fp4_gemm_efficiency": Prior(0.45, 0.20),
    "attention_efficiency": Prior(0.50, 0.25),
    "memory_efficiency": Prior(0.80, 0.40, share=True),
    "elementwise_passes": Prior(1.5, 0.35),
    "gemm_tail": Prior(0.5, 0.8, share=True),
    "gemm_bytes_exposed": Prior(0.5, 0.5),
    "kernel_us": Prior(3.0, 0.5),
    "launch_us": Prior(5.0, 0.5),
    "layer_host_us": Prior(150.0, 0.8),
    "moe_host_us": Prior(2500.0, 0.5),
    "nvlink_efficiency": Prior(0.70, 0.50, share=True),
    "network_efficiency": Prior(0.70, 0.60, share=True),
    "collective_us": Prior(15.0, 0.6),
    "tp_overlap": Prior(0.3, 1.0, share=True),
    "dp_overlap": Prior(0.7, 1.0, share=True),
    "expert_overlap": Prior(0.2, 1.2, share=True),
    "expert_imbalance": Prior(1.05, 0.05),
    "jitter_per_doubling": Prior(0.004, 0.8),
    "step_overhead_s": Prior(0.02, 0.8),
}

# Of ln(measured / predicted): what a correct model would leave, from re-measurements and from what rows do not state.
NOISE = 0.06
# Of a prior's spread: how far a constant of one's own lies from the shipped one. On the published tables, 1 instead
# lowers the median errors by less than a quarter (python -m benchmarks.accuracy TRUTH/throughput.csv --calibrate PNG).
OWN_SPREAD = 0.7
LEAST_SPREAD = 0.03  # of ln(measured / predicted): re-measurements of one recipe differ by up to 3.8 %
_PRIOR_ROWS = 4.0  # measurements that the shipped spread counts as
DIFFERENCE_STEP = 1e-2  # of a deviation, for numerical derivatives: step times are smooth only on average
_MOST_STEPS = 20
_SETTLED = 1e-4  # relative decrease of what is minimized


@dataclass(frozen=True)
class Measurement:
    """One measured step: the run, and its median seconds."""

    name: str
    spec: Spec
    step_time_s: float
    dropout: bool = False  # whether it writes, keeps and reads dropout masks


@dataclass(frozen=True)
class Moved:
    """A constant before and after, and how far it was moved, in uncertainties of the shipped one."""

    name: str
    before: float
    after: float
    deviation: float


@dataclass(frozen=True)
class Calibrated:
    """Constants of one's own, and ln(predicted / measured) of each measurement before and after."""

    constants: Calibration
    before: tuple[float, ...]
    after: tuple[float, ...]
    moved: tuple[Moved, ...]  # the farthest first


def calibrate(measured: Sequence[Measurement], shipped: Calibration, name: str, source: str) -> Calibrated:
    """The most probable constants in the light of ``measured``, where ``shipped`` were expected."""
    names = [key for key in PRIORS if _can_move(getattr(shipped, key), PRIORS[key])]
    priors = {
        key: replace(PRIORS[key], centre=getattr(shipped, key), spread=OWN_SPREAD * PRIORS[key].spread) for key in names
    }

    def constants(deviations: np.ndarray) -> Calibration:
        values = {key: priors[key].value_at(d) for key, d in zip(names, deviations, strict=True)}
        return replace(shipped, name=name, source=source, **values)  # type: ignore[arg-type]

    start = np.zeros(len(names))
    found = _minimize(lambda deviations: residuals(measured, constants(deviations)), start)
    before, after = residuals(measured, shipped), residuals(measured, constants(found))
    spread = math.sqrt((_PRIOR_ROWS * shipped.spread**2 + float(after @ after)) / (_PRIOR_ROWS + len(measured)))
    final = replace(constants(found), spread=round(max(spread, LEAST_SPREAD), 3))
    moved = [
        Moved(key, getattr(shipped, key), getattr(final, key), float(d)) for key, d in zip(names, found, strict=True)
    ]
    moved.sort(key=lambda each: -abs(each.deviation))
    return Calibrated(final, tuple(map(float, before)), tuple(map(float, after)), tuple(moved))


def _can_move(value: float, prior: Prior) -> bool:
    return 0.0 < value < 1.0 if prior.share else value > 0.0


def residuals(measured: Sequence[Measurement], constants: Calibration) -> np.ndarray:
    """ln(predicted / measured) of the speed of each measurement."""
    used = [replace(constants, dropout=True) if each.dropout else constants for each in measured]
    predicted = [step_time(each.spec, own).step_time_s for each, own in zip(measured, used, strict=True)]
    return np.array([math.log(each.step_time_s / s) for each, s in zip(measured, predicted, strict=True)])


def _minimize(residual: Callable[[np.ndarray], np.ndarray], start: np.ndarray) -> np.ndarray:
    """The deviations with the least sum of squares of residuals, over their noise, and of deviations."""

    def cost(at: np.ndarray) -> np.ndarray:
        return np.concatenate([residual(at) / NOISE, at])

    at, damping = start, 1e-2
    here = cost(at)
    for _ in range(_MOST_STEPS):
        slopes = np.stack([(cost(at + DIFFERENCE_STEP * unit) - here) / DIFFERENCE_STEP for unit in np.eye(len(at))], 1)
        normal, gradient = slopes.T @ slopes, slopes.T @ here
        while damping < 1e6:
            trial = at - np.linalg.solve(normal + damping * np.diag(np.diag(normal)), gradient)
            there = cost(trial)
            if there @ there < here @ here:
                break
            damping *= 10
        else:
            return at
        settled = 1 - (there @ there) / (here @ here) < _SETTLED
        at, here, damping = trial, there, damping / 10
        if settled:
            break
    return at


def as_values(constants: Calibration) -> dict[str, object]:
    """What a file in a folder ``calibration`` holds of constants: everything but their name, in four digits."""
    values = {field.name: getattr(constants, field.name) for field in fields(constants) if field.name != "name"}
    return {key: float(f"{value:.4g}") if type(value) is float else value for key, value in values.items()}
