"""Calibration: constants that generated measurements are found again as far as the measurements determine them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slipway import configs, planner
from slipway.configs import Calibration, load
from slipway.planner.calibrate import Calibrated, Measurement, as_values, calibrate, residuals
from slipway.planner.calibration import calibration

SHIPPED = calibration(configs.gpu("h100"))
# A slower cluster: another power limit, and a network with half of the bandwidth.
TRUE = replace(SHIPPED, gemm_efficiency=0.62, network_efficiency=0.25, kernel_us=4.0)
LAYOUTS = (
    ("llama3_8b", ["gpus=16", "layout.tp=2"]),
    ("llama3_8b", ["gpus=64", "layout.tp=4", "layout.cp=2"]),
    ("llama3_70b", ["gpus=64", "layout.tp=4", "layout.pp=4", "layout.vpp=5", "layout.cp=2"]),
    ("llama3_70b", ["gpus=256", "layout.tp=8", "layout.pp=4"]),
    ("llama31_405b", ["gpus=576", "layout.tp=8", "layout.pp=9", "layout.vpp=7", "layout.gbs=504"]),
    ("llama2_13b", ["gpus=32", "layout.tp=2", "layout.pp=2"]),
)


def _measured(constants: Calibration, indices: range) -> list[Measurement]:
    found = []
    for name, overrides in (LAYOUTS[i] for i in indices):
        spec = load(name, overrides).spec
        found.append(Measurement(name, spec, planner.step_time(spec, constants).step_time_s))
    return found


def _calibrated(measured: list[Measurement]) -> Calibrated:
    return calibrate(measured, SHIPPED, "h100/mine", "a test")


def test_measurements_that_were_expected_move_nothing() -> None:
    found = _calibrated(_measured(SHIPPED, range(3)))
    assert max(abs(moved.deviation) for moved in found.moved) < 1e-3
    assert found.constants.name == "h100/mine" and found.constants.spread <= max(SHIPPED.spread, 0.03)


def test_three_measurements_predict_other_layouts_of_the_same_cluster() -> None:
    held_out = _measured(TRUE, range(3, 6))
    before = np.abs(residuals(held_out, SHIPPED))
    after = np.abs(residuals(held_out, _calibrated(_measured(TRUE, range(3))).constants))
    assert before.min() > 0.05 and after.max() < 0.5 * before.max() and after.mean() < 0.4 * before.mean()


def test_more_measurements_explain_more() -> None:
    measured = _measured(TRUE, range(6))
    errors = [np.abs(residuals(measured, _calibrated(measured[:count]).constants)).mean() for count in (1, 3, 6)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.02


def test_constants_that_a_run_does_not_depend_on_stay() -> None:
    found = _calibrated(_measured(TRUE, range(1)))
    moved = {each.name: each.deviation for each in found.moved}
    assert moved["mxfp8_gemm_efficiency"] == moved["expert_overlap"] == pytest.approx(0.0, abs=1e-6)
    assert moved["gemm_efficiency"] < -0.1


def test_what_is_written_is_what_is_read() -> None:
    found = _calibrated(_measured(TRUE, range(2)))
    again = Calibration(name=found.constants.name, **as_values(found.constants))  # type: ignore[arg-type]
    assert residuals(_measured(TRUE, range(2)), again) == pytest.approx(found.after, abs=1e-3)
    assert again.user_buffers is SHIPPED.user_buffers is True
