"""The interval of a step time is that of published runs like the predicted one, and says where they are few."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest

from slipway import configs, planner
from slipway.planner.bands import COLUMNS, ENOUGH_ROWS, ERRORS, band_of
from slipway.planner.calibration import calibration

LAYOUT = ["layout.tp=1", "layout.pp=1", "layout.cp=1"]


def _spec(recipe: str = "llama3_8b", *overrides: str) -> configs.Spec:
    return configs.load(recipe, ["gpus=8", *LAYOUT, *overrides]).spec


def test_the_file_has_each_group_once_and_each_lies_in_a_wider_one() -> None:
    with ERRORS.open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    keys = [(row["gpu"], row["software"], row["experts"], row["format"]) for row in rows]
    assert len(set(keys)) == len(keys)
    for gpu, software, experts, form in keys:
        wider = (gpu, software, experts, "") if form else (gpu, "", experts, "") if software else ("", "", experts, "")
        assert wider in keys
    counts = {key: int(row["rows"]) for key, row in zip(keys, rows, strict=True)}
    for gpu in {gpu for gpu, *_ in keys if gpu}:
        parts = sum(n for (g, software, _, form), n in counts.items() if g == gpu and software and not form)
        assert parts == sum(n for (g, software, _, _), n in counts.items() if g == gpu and not software)


def test_dense_runs_and_runs_with_experts_have_intervals_of_their_own() -> None:
    """One spread for both held 1 of 8 published runs with experts on H100."""
    constants = calibration(configs.gpu("h100"))
    dense = band_of(_spec(), constants)
    experts = band_of(_spec("mixtral_8x7b", "layout.ep=8"), constants)
    assert dense.rows >= ENOUGH_ROWS
    assert experts.half_width > 2 * dense.half_width


def test_a_step_time_has_the_interval_of_its_group() -> None:
    verdict = planner.check(_spec())
    assert verdict.time is not None
    band = band_of(verdict.spec, calibration(configs.gpu("h100")))
    assert verdict.time.high_s / verdict.time.step_time_s == pytest.approx(band.factor)
    assert verdict.time.step_time_s / verdict.time.low_s == pytest.approx(band.factor)


def test_few_published_runs_are_said_to_be_few() -> None:
    few = planner.check(_spec("mixtral_8x7b", "layout.ep=8"))
    assert any(v.rule == "interval" and "published run" in v.message for v in few.advice)
    assert not any(v.rule == "interval" for v in planner.check(_spec()).advice)


def test_constants_that_nobody_measured_have_the_interval_of_any_gpu() -> None:
    spec = replace(_spec(), gpu=replace(configs.gpu("a100"), name="mi300x"))
    band = band_of(spec, calibration(spec.gpu))
    assert band.of == "dense models on any GPU"
    assert band.half_width > band_of(_spec(), calibration(configs.gpu("h100"))).half_width
