"""A prediction names the constants behind it, and warns where they were fitted to another GPU or to none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slipway import configs, planner
from slipway.planner.calibration import calibration


def _check(gpu: str) -> planner.Verdict:
    spec = configs.load("llama3_8b", ["gpus=8", "layout.tp=1", "layout.pp=1", "layout.cp=1"]).spec
    known = gpu in configs.gpu_names()
    return planner.check(replace(spec, gpu=configs.gpu(gpu) if known else replace(configs.gpu("a100"), name=gpu)))


@pytest.mark.parametrize(
    ("gpu", "name", "warning"),
    [
        ("h100", "h100/nemo_2025", ""),
        ("h200", "h100/nemo_2025", "the constants of h100"),
        ("a100", "a100/nemo_2025", "borrowed from h100/nemo_2025"),
        ("a100_40gb", "a100_40gb/nemo_2025", "borrowed from h100/nemo_2025"),
        ("mi300x", "defaults", "default constants that are fitted to no GPU"),
    ],
)
def test_check_names_its_calibration(gpu: str, name: str, warning: str) -> None:
    verdict = _check(gpu)
    assert verdict.time and verdict.time.calibration == name
    assert planner.as_json(verdict)["calibration"] == name
    warnings = [v.message for v in verdict.advice if v.rule == "calibration"]
    assert len(warnings) == bool(warning)
    assert all(warning in message for message in warnings)


def test_a_borrowed_calibration_is_the_lenders() -> None:
    assert replace(calibration(configs.gpu("h200")), name="") == replace(calibration(configs.gpu("h100")), name="")
