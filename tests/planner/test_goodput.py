"""Goodput: the expectation agrees with runs whose interruptions are drawn at random, and with what Meta published."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from slipway import planner
from slipway.configs import load
from slipway.configs.reliability import default_interruptions, published_interruptions
from slipway.planner.goodput import Goodput

FAILING = Goodput(
    mtbf_s=3 * 3600,
    save_s=20.0,
    write_s=100.0,
    restart_s=700.0,
    interval_s=1800.0,
    checkpoint_gib=5000.0,
    storage_gb_per_s=50.0,
    spare_nodes=0,
)
WORK_S = 30 * 86_400.0


@pytest.mark.parametrize("interval", [300.0, 650.0, 1800.0, 5400.0])
@pytest.mark.parametrize("write_s", [0.0, 100.0])
def test_the_expectation_is_the_mean_of_simulated_runs(interval: float, write_s: float) -> None:
    found = replace(FAILING, write_s=write_s)
    simulated = WORK_S / found.simulate(WORK_S, interval).mean()
    assert found.at(interval) == pytest.approx(simulated, rel=0.005)


def test_no_interval_beats_the_best_one_and_youngs_is_close() -> None:
    found = replace(FAILING, write_s=0.0)
    best = found.at(found.best_s)
    assert all(found.at(found.best_s * factor) <= best for factor in (0.3, 0.9, 0.99, 1.01, 1.1, 3.0))
    assert found.best_s == pytest.approx(found.young_s, rel=0.05)
    assert FAILING.best_s >= FAILING.write_s, "a save ends before the next one begins"


def test_without_interruptions_only_saves_cost_time() -> None:
    found = replace(FAILING, mtbf_s=1e12)
    assert found.at(1800.0) == pytest.approx(1800.0 / 1820.0, rel=1e-6)
    assert found.simulate(18_000.0).mean() == pytest.approx(18_000.0 + 10 * 20.0)


def test_a_run_that_never_ends_has_no_goodput() -> None:
    assert replace(FAILING, mtbf_s=1.0).value == 0.0


def test_llama_405b_has_the_effective_training_time_that_meta_published() -> None:
    """arXiv:2407.21783 section 3.3.4: more than 90 %, with 419 interruptions in 54 days of 16,384 GPUs."""
    known = default_interruptions()
    assert (known.gpus, known.days, known.interruptions) == (16_384, 54, 419)
    spec = planner.complete(load("llama31_405b", [f"gpus={known.gpus}"]))
    found = planner.goodput(spec, planner.step_time(spec).step_time_s)
    assert 0.9 < found.value < 0.95
    assert known.days * 86_400 / found.mtbf_s == pytest.approx(known.interruptions)


def test_a_recipe_saves_as_often_as_its_goodput_asks_for_unless_it_is_told() -> None:
    large, small = (planner.complete(load("llama31_405b", [f"gpus={gpus}"])) for gpus in (16_384, 576))
    assert large.run.checkpoint_every_minutes < 5 < small.run.checkpoint_every_minutes == 30
    told = planner.complete(load("llama31_405b", ["gpus=16384", "run.checkpoint_every_minutes=60"]))
    assert told.run.checkpoint_every_minutes == 60


def test_more_gpus_break_more_often_and_need_more_spares() -> None:
    small, large = (
        planner.goodput(planner.complete(load("llama31_405b", [f"gpus={gpus}"])), 10.0) for gpus in (576, 16_384)
    )
    assert large.mtbf_s < small.mtbf_s and large.spare_nodes > small.spare_nodes >= 1
    assert large.at(1800.0) < small.at(1800.0)


@pytest.mark.parametrize("known", published_interruptions(), ids=lambda known: known.name)
def test_every_published_rate_has_its_source(known: object) -> None:
    assert "arXiv" in known.source and 5e3 < known.mtbf_gpu_hours < 2e5  # type: ignore[attr-defined]
    assert math.isfinite(known.days)  # type: ignore[attr-defined]
