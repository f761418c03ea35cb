"""The probability that a run fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slipway import configs, planner
from slipway.configs import Spec, load
from slipway.planner.memory import memory
from slipway.planner.memory.probability import LIKELY, expands_segments, probability_of_fit
from slipway.planner.workload import workload_of


def _p(spec: Spec) -> float:
    return probability_of_fit(workload_of(spec), memory(spec))


def _with_memory(spec: Spec, gib: float) -> Spec:
    return replace(spec, gpu=replace(spec.gpu, usable_memory_gib=gib))


def test_it_grows_with_the_gpu_and_is_a_half_where_the_median_just_fits() -> None:
    spec = load("llama3_8b", ["layout.tp=2"]).spec
    estimate = memory(spec)
    assert _p(_with_memory(spec, 1.03 * estimate.peak_gib + estimate.outside_gib)) == pytest.approx(0.5)
    found = [_p(_with_memory(spec, gib)) for gib in (1.0, 40.0, 50.0, 55.0, 60.0, 80.0)]
    assert found == sorted(found)
    assert found[0] == 0.0
    assert found[-1] > 0.999


def test_uneven_routing_and_a_plain_allocator_lower_it() -> None:
    spec = load("mixtral_8x7b", ["layout.ep=8", "layout.pp=4"]).spec
    tight = _with_memory(spec, memory(spec).needed_gib * 1.1)
    padded = replace(tight, layout=replace(tight.layout, moe_expert_capacity_factor=1.0))
    assert _p(tight) < _p(padded), "with a capacity, no expert gets more"
    plain = replace(padded, cluster=replace(padded.cluster, env={"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}))
    assert expands_segments(padded) and not expands_segments(plain)
    near = 1.05 * memory(padded).peak_gib + memory(padded).outside_gib
    assert _p(_with_memory(plain, near)) < 0.5 < _p(_with_memory(padded, near))


@pytest.mark.parametrize("name", configs.recipe_names())
def test_every_default_is_likely_to_fit(name: str) -> None:
    verdict = planner.check(planner.complete(load(name)))
    assert verdict.p_fits >= LIKELY


def test_a_default_is_not_the_fastest_at_any_price() -> None:
    resolved = load("llama3_8b")
    fastest = planner.plan(resolved.spec, top=1).candidates[0]
    assert _p(fastest.spec) < LIKELY <= _p(planner.complete(resolved))
    assert planner.as_json(planner.check(fastest.spec))["memory"]["p_fits"] == _p(fastest.spec)
