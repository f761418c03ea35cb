"""What a run costs: days, GPU-hours, dollars and energy follow from its steps, and agree with a published run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slipway import configs, planner
from slipway.configs import load

# Llama 3.1 model card (github.com/meta-llama/llama-models): H100-hours of the whole training, restarts included.
PUBLISHED_GPU_HOURS = 30.84e6


def test_the_cost_is_that_of_the_steps() -> None:
    spec = planner.complete(load("llama3_8b", ["gpus=64", "tokens=1T", "price=2.5"]))
    run, cost = planner.course(spec), planner.cost(spec)
    assert run.tokens >= 1e12 > run.tokens - spec.batch.tokens
    assert cost.gpu_hours == pytest.approx(64 * 24 * cost.days) == pytest.approx(64 * run.seconds / 3600)
    assert cost.dollars == pytest.approx(2.5 * cost.gpu_hours)
    assert cost.gpu_kwh == pytest.approx(0.7 * cost.gpu_hours)
    assert cost.system_kwh and cost.gpu_kwh and cost.system_kwh > cost.gpu_kwh


def test_what_nobody_states_is_not_invented() -> None:
    spec = planner.complete(load("llama3_8b"))
    cost = planner.cost(replace(spec, gpu=replace(spec.gpu, power_w=0.0, system_power_w=0.0)))
    assert cost.dollars is cost.gpu_kwh is cost.system_kwh is None


def test_short_names_are_the_keys_that_they_stand_for() -> None:
    short, long = (
        load("llama3_8b", ["tokens=2T", "price=3"]),
        load("llama3_8b", ["run.max_tokens=2T", "cluster.price=3"]),
    )
    assert short.spec == long.spec and short.given == long.given


@pytest.mark.parametrize("name", configs.gpu_names())
def test_the_power_of_every_gpu_is_stated(name: str) -> None:
    gpu = configs.gpu(name)
    assert 300 < gpu.power_w < gpu.system_power_w < 2.1 * gpu.power_w


def test_the_gpu_hours_of_llama_405b_are_those_that_meta_published() -> None:
    spec = planner.complete(load("llama31_405b", ["gpus=16384"]))
    assert planner.cost(spec).gpu_hours == pytest.approx(PUBLISHED_GPU_HOURS, rel=0.2)
